import datetime

import pytest

from wespeaker.documents import parse_json, parse_yaml
from wespeaker.errors import InputError

BOMB = "a0: &a0 [x, x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))


def test_plain_values():
    assert parse_json('{"a": [1, 2.5, null]}', "here") == {"a": [1, 2.5, None]}
    text = "a: [1, 2.5, null, yes, 2024-01-02]\nb: {c: 0x1F, d: 'text'}\n"
    assert parse_yaml(text, "here") == {
        "a": [1, 2.5, None, True, datetime.date(2024, 1, 2)],
        "b": {"c": 31, "d": "text"},
    }


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
