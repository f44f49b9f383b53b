import pickle

import numpy as np
import pytest

from wespeaker.data.audio import AudioSource
from wespeaker.data.riff import Pcm16
from wespeaker.data.utterances import TableBuilder, Texts, Utterance, make_table, merge_tables
from wespeaker.errors import InputError

UTTS = [
    Utterance("b/1", "zoe", AudioSource("/x.tar", 512, 100, Pcm16(44, 28)), (28, 16000)),
    Utterance("a/ä", "adam", AudioSource("/a file.wav"), (32000, 8000)),
    Utterance("b/10", "zoe", AudioSource("/x.tar", 1 << 40, 100), (5, 16000)),
    Utterance("a", "mia", AudioSource("/y.wav"), (1 << 33, 48000)),
]


def test_what_goes_in_comes_out_sorted_by_key():
    table = make_table(UTTS)
    assert list(table) == sorted(UTTS, key=lambda utt: utt.key)
    assert table[-1] == table[3] == UTTS[2]
    assert table[1:3] == list(table)[1:3]
    assert table.speakers == ["adam", "mia", "zoe"]
    assert [table.speakers[label] for label in table.labels] == [utt.spk for utt in table]
    np.testing.assert_array_equal(table.seconds, [utt.seconds for utt in table])
    with pytest.raises(IndexError):
        table[4]


def test_finding_and_selecting():
    table = make_table(UTTS)
    for utt in UTTS:
        assert table.find(utt.key) == utt
    assert table.find("b/2") is None
    assert table.find("zz") is None
    kept = table.select(table.seconds > 1)
    assert [utt.key for utt in kept] == ["a", "a/ä"]
    assert kept.speakers == ["adam", "mia"]
    assert list(kept) == [utt for utt in table if utt.seconds > 1]
    assert len(table.select(np.zeros(4, bool))) == 0


def test_merging_and_keys_that_come_twice():
    merged = merge_tables([make_table(UTTS[2:]), make_table(UTTS[:2])])
    assert list(merged) == list(make_table(UTTS))
    assert merged.speakers == ["adam", "mia", "zoe"]
    with pytest.raises(InputError, match=r"a/ä is the key of two utterances, in /a file\.wav and in /a file\.wav"):
        merge_tables([make_table(UTTS[:2]), make_table(UTTS[1:])])


def test_order_is_that_of_python_for_any_text():
    rng = np.random.default_rng(0)
    letters = list("aAbz019/._-ä€😀")
    keys = list({"".join(rng.choice(letters, size=rng.integers(1, 12))) for _ in range(3000)})
    table = make_table(Utterance(key, key[0], AudioSource(key), (1, 1)) for key in keys)
    assert list(table.keys) == sorted(keys)
    assert [utt.source.path for utt in table] == sorted(keys)
    rows = rng.permutation(len(keys))
    assert list(Texts.of(keys).take(rows)) == [keys[i] for i in rows]


def test_a_table_of_nothing():
    table = make_table([])
    assert (len(table), table.speakers, list(merge_tables([table, table]))) == (0, [], [])
    assert table.find("a") is None
    with pytest.raises(IndexError):
        table[0]


def test_it_survives_pickling():
    """As loader processes need where they are spawned, not forked."""
    assert list(pickle.loads(pickle.dumps(make_table(UTTS)))) == list(make_table(UTTS))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"key": "a b"}, r"the key 'a b' and the speaker 's' must be of 1 to 1024 bytes"),
        ({"key": "a\nid1 touch /tmp/x |"}, "the key"),
        ({"key": ""}, "the key ''"),
        ({"key": "a" * 1025}, "the key"),
        ({"key": "\ud800"}, "the key"),
        ({"spk": "s\u2028t"}, "the speaker"),
        ({"source": AudioSource("\ud800.wav")}, "not UTF-8"),
        ({"length": (0, 16000)}, "cannot have 0 samples at 16000 Hz"),
        ({"length": (-5, 16000)}, "cannot have -5 samples"),
        ({"length": (2**80, 16000)}, "cannot have"),
        ({"length": (5, 0)}, "5 samples at 0 Hz"),
        ({"length": (5, 2**31)}, "Hz"),
    ],
)
def test_names_and_lengths_that_nothing_can_hold_are_refused(change, match):
    good = {"key": "a", "spk": "s", "source": AudioSource("a.wav"), "length": (5, 16000)}
    TableBuilder().add(Utterance(**good))
    with pytest.raises(InputError, match=match):
        TableBuilder().add(Utterance(**{**good, **change}))
