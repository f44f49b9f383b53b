import datetime
import json
import os

import pytest

import wespeaker
from wespeaker.documents import parse_json, parse_yaml, write_json
from wespeaker.errors import InputError

BOMB = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


def test_plain_values():
    assert parse_json('{"a": [1, 2.5, null]}', "here") == {"a": [1, 2.5, None]}
    text = "a: [1, 2.5, null, yes, 2024-01-02]\nb: {c: 0x1F, d: 'text'}\n"
    assert parse_yaml(text, "here") == {
        "a": [1, 2.5, None, True, datetime.date(2024, 1, 2)],
        "b": {"c": 31, "d": "text"},
    }


def test_what_is_written_begins_with_the_version_that_wrote_it(tmp_path):
    path = tmp_path / "new" / "results.json"
    contents = {"z": 0.1 + 0.2, "a": {"ü": [None, True]}, "path": os.fsdecode(b"data/\xff")}
    write_json(path, contents)
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f'{{\n  "wespeaker_q": "{wespeaker.__version__}",\n  "z": 0.30000000000000004,')
    assert text.endswith("\n}\n")
    assert "ü" in text
    found = json.loads(text)
    assert found.pop("wespeaker_q") == wespeaker.__version__
    assert found == contents


def test_what_json_has_no_value_for_leaves_the_old_file(tmp_path):
    path = tmp_path / "results.json"
    write_json(path, {"eer": 0.1})
    with pytest.raises(TypeError):
        write_json(path, {"eer": object()})
    assert parse_json(path.read_text(), path)["eer"] == 0.1


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "7" * 5000, '{"a": 1} {}'])
def test_what_is_not_json_is_a_sentence(text):
    with pytest.raises(InputError, match=r"^metrics\.jsonl:3 is not valid JSON: .*; make it again, or remove it$"):
        parse_json(text, "metrics.jsonl:3")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (BOMB, r"aliases \(\*name\) are not read; write the value again .* line 2"),
        ("a: 1\na: 2\n", "key 'a' is given twice"),
        ("[a, b]: 1\n", "a key must be one word"),
        ("? {a: 1}\n: 2\n", "a key must be one word"),
        ("[" * 5000, "RecursionError"),
        ("a: 2024-13-01\n", "ValueError month must be in 1..12"),
        ("a: !!bool maybe\n", "KeyError"),
        ("a: !!int ''\n", "IndexError"),
        ("a: !!timestamp x\n", "AttributeError"),
        ("a: 0x" + "f" * 20_000, "a number of more than 100 digits"),
        ("a: " + "9" * 20_000, "a number of more than 100 digits"),
        ("a: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("a: !!python/name:os.system\n", "could not determine a constructor"),
        ("a: \0\n", "special characters are not allowed"),
    ],
)
def test_what_is_not_plain_yaml_is_a_sentence(text, match):
    with pytest.raises(InputError, match=rf"^config\.yaml is not valid YAML: .*{match}") as caught:
        parse_yaml(text, "config.yaml")
    assert "\n" not in str(caught.value)
