"""tools/compare.py as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import wespeaker
from wespeaker.eval.comparison import compare_scores, comparison_table

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def systems(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(0)
    utts = [f"id{i // 4}/v/{i % 4}.wav" for i in range(32)]
    pairs = [(a, b, a[:3] == b[:3]) for i, a in enumerate(utts) for b in utts[i + 1 :]]
    for name, gain in (("a", 1.5), ("b", 2.5)):
        lines = [
            f"{a} {b} {gain * same + rng.standard_normal():.5f} {'target' if same else 'nontarget'}\n"
            for a, b, same in pairs
        ]
        (tmp_path / f"{name}.score").write_text("".join(lines))
    return [tmp_path / "a.score", tmp_path / "b.score"]


def test_a_comparison_is_printed_and_written(systems: list[Path], tool: Tool) -> None:
    output = systems[0].parent / "new" / "comparison.json"
    options = ["--far", "1e-1", "1e-2", "--replicates", "200", "--seed", "4"]
    done = tool("compare", *systems, *options, "--output", output)
    assert done.returncode == 0, done.stderr
    comparison = compare_scores(systems, fars=[1e-1, 1e-2], replicates=200, seed=4)
    assert done.stdout == f"{comparison_table(comparison)}\ncomparison: {output}\n"
    written = json.loads(output.read_text())
    assert written.pop("wespeaker_q") == wespeaker.__version__
    assert written == comparison.contents()
    again = tool("compare", *systems, *options)
    assert again.stdout == comparison_table(comparison) + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{a}"], "at least two score files, found 1"),
        (["{a}", "{a}.gone"], "a.score.gone does not exist"),
        (["{a}", "{less}"], "1 is in {a} only (first: id0/v/0.wav id0/v/1.wav)"),
        (["{a}", "{b}", "--replicates", "0"], "at least 100 replicates"),
        (["{a}", "{b}", "--far", "0"], "FAR must lie in"),
        (["{plain}", "{plain}"], "do not begin with 'speaker/'"),
        (["{a}", "{b}", "--utt2spk", "{a}"], "{a}:2: id0/v/0.wav is in the speaker of each utterance twice"),
        ([], "the following arguments are required: SCORE"),
    ],
)
def test_misuse_is_one_sentence_and_leaves_nothing(
    systems: list[Path], tool: Tool, arguments: list[str], message: str
) -> None:
    root = systems[0].parent
    names = {"a": systems[0], "b": systems[1], "less": root / "less.score", "plain": root / "plain.score"}
    names["less"].write_text("".join(systems[0].read_text().splitlines(keepends=True)[1:]))
    names["plain"].write_text("a b 0.5 target\na c 0.1 nontarget\n")
    done = tool("compare", *(text.format(**names) for text in arguments), "--output", root / "new" / "c.json")
    assert done.returncode == 1
    assert message.format(**names) in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not (root / "new").exists()
