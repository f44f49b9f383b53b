"""tools/score.py as a user runs it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np
import pytest

from wespeaker.eval.scoring import evaluate_scores

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def exp(tmp_path: Path) -> Path:
    """An experiment with embeddings of 8 speakers x 4 utterances, a mean vector and two trial lists."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "exp" / "embeddings" / "vox1"
    folder.mkdir(parents=True)
    utts = [f"id{i // 4}/v/{i % 4}.wav" for i in range(32)]
    vectors = np.repeat(rng.standard_normal((8, 8)), 4, axis=0) + 0.7 * rng.standard_normal((32, 8)) + 2
    kaldiio.save_ark(
        str(folder / "xvector.ark"),
        dict(zip(utts, vectors.astype(np.float32), strict=True)),
        scp=str(folder / "xvector.scp"),
    )
    np.save(tmp_path / "mean_vec.npy", vectors.mean(axis=0).astype(np.float32))
    pairs = [(a, b, a[:3] == b[:3]) for i, a in enumerate(utts) for b in utts[i + 1 :]]
    kaldi = "".join(f"{a} {b} {'target' if same else 'nontarget'}\n" for a, b, same in pairs)
    (tmp_path / "all.kaldi").write_text(kaldi)
    (tmp_path / "half.txt").write_text("".join(f"{same:d} {a} {b}\n" for a, b, same in pairs[::2]))
    return tmp_path / "exp"


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_scoring_prints_the_table_and_where_the_files_are(exp: Path, tool: Tool) -> None:
    root, scores = exp.parent, exp / "scores"
    done = tool(
        "score",
        *("--embeddings", exp / "embeddings/vox1/xvector.scp"),
        *("--trials", root / "all.kaldi", root / "half.txt"),
        *("--mean_vec", root / "mean_vec.npy", "--output_dir", scores),
        *("--far", "1e-1", "1e-2", "1e-3", "--target_far", "1e-2", "--replicates", "200"),
        *("--note", "a synthetic corpus"),
    )
    assert done.returncode == 0, done.stderr
    evaluation_files = {"results.json", "results.txt", "det.png", "det.svg", "threshold.json"}
    assert _files(scores) == evaluation_files | {"all.kaldi.score", "half.txt.score"}
    table = (scores / "results.txt").read_text()
    assert done.stdout == (
        f"{table}\nDET plot:   {scores / 'det.png'}\nresults:    {scores / 'results.json'}\n"
        f"thresholds: {scores / 'threshold.json'}\n"
    )
    results = json.loads((scores / "results.json").read_text())
    assert results["note"] == table.splitlines()[0] == "a synthetic corpus"
    assert results["exp_dir"] == str(exp)
    assert list(results["trials"]) == ["all", "half"]
    entry = results["trials"]["all"]
    assert (entry["num_target"], entry["num_nontarget"]) == (48, 448)
    assert list(entry["tar_at_far"]) == ["0.1", "0.01", "0.001"]
    assert [point["resolvable"] for point in entry["tar_at_far"].values()] == [True, True, False]
    assert 0 < entry["eer"] < 0.5
    assert entry["interval"]["replicates"] == 200
    assert entry["interval"]["num_speakers"] == 8
    assert "95 %" in table
    points = json.loads((scores / "threshold.json").read_text())["trials"]["all"]["target_far"]
    assert points["0.01"]["threshold"] == entry["tar_at_far"]["0.01"]["threshold"]

    before = _files(root)
    ready = tool(
        "score",
        "--scores",
        scores / "all.kaldi.score",
        scores / "half.txt.score",
        "--far",
        "1e-1",
        "1e-2",
        "--seed",
        "7",
    )
    assert ready.returncode == 0, ready.stderr
    evaluation = evaluate_scores([scores / "all.kaldi.score", scores / "half.txt.score"], fars=[1e-1, 1e-2], seed=7)
    assert ready.stdout == evaluation.table + "\n"
    assert _files(root) == before
    for name in ("all", "half"):
        assert evaluation.results["trials"][name]["eer"] == results["trials"][name]["eer"]

    again = tool("score", "--scores", scores / "all.kaldi.score", "--output_dir", root / "again", "--replicates", "0")
    assert again.returncode == 0, again.stderr
    assert _files(root / "again") == {"results.json", "results.txt", "det.png", "det.svg"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give either --embeddings"),
        (["a.score"], "'a.score' belongs to no option; name files with --scores"),
        (["--scores", "a.score", "--embeddings", "x.scp"], "give either --embeddings"),
        (["--scores", "a.score", "--trials", "all.kaldi"], "--trials and --mean_vec go with --embeddings"),
        (["--embeddings", "x.scp"], "--embeddings needs --trials"),
        (["--embeddings", "x.scp", "--trials", "all.kaldi"], "--output_dir"),
        (["--scores", "{root}/nothing.score"], "nothing.score does not exist"),
        (["--scores", "{root}/all.kaldi"], "all.kaldi:1: expected 'utt1 utt2 score target|nontarget'"),
        (["--scores", "{root}/one.score"], "one.score: the list has no nontarget trials"),
        (["--scores", "{root}/ok.score", "--far", "0"], "FAR must lie in"),
        (["--scores", "{root}/ok.score", "--far", "low"], "low"),
        (["--scores", "{root}/ok.score", "--p_target", "1"], "p_target"),
        (
            ["--scores", "{root}/ok.score"],
            "'speaker/': a, b, c; give the speakers with --utt2spk FILE (or --replicates 0, for no",
        ),
        (["--scores", "{root}/ok.score", "--replicates", "9"], "replicates must be 0 (no intervals) or at least 100"),
        (["--scores", "{root}/ok.score", "--utt2spk", "{root}/gone"], "gone (the speaker of each utterance) does not"),
        (["--scores", "{root}/ok.score", "--target_far", "0.1"], "give --output_dir"),
        (["--scores", "{root}/ok.score", "--target_far", "2", "--output_dir", "{root}/out"], "FAR must lie in"),
        (["--scores", "{root}/five.score"], "five.score:1: expected 'utt1 utt2 score target|nontarget'"),
        (["--scores", "{root}/label.score"], "label.score:2: expected 'utt1 utt2 score target|nontarget' as in the"),
        (["--embeddings", "{root}/zero.scp", "--trials", "{root}/zero.kaldi", "--output_dir", "{root}/out"], "norm 0"),
        (
            ["--embeddings", "{root}/odd.scp", "--trials", "{root}/zero.kaldi", "--output_dir", "{root}/out"],
            "shape (7,)",
        ),
        (["--embeddings", "{scp}", "--trials", "{root}/new.kaldi", "--output_dir", "{root}/out"], "new/utt.wav"),
        (["--embeddings", "{scp}.gone", "--trials", "{root}/all.kaldi", "--output_dir", "{root}/out"], "extract"),
        (["--embeddings", "{root}/pipe.scp", "--trials", "{root}/all.kaldi", "--output_dir", "{root}/out"], "shell"),
    ],
)
def test_misuse_is_one_sentence_and_leaves_nothing(exp: Path, tool: Tool, arguments: list[str], message: str) -> None:
    root = exp.parent
    (root / "one.score").write_text("a b 0.5 target\n")
    (root / "ok.score").write_text("a b 0.5 target\na c 0.1 nontarget\n")
    (root / "new.kaldi").write_text("new/utt.wav id0/v/0.wav target\n")
    (root / "pipe.scp").write_text(f"utt touch {root}/ran |\n")
    (root / "five.score").write_text("a b 0.5 target 1\n")
    (root / "label.score").write_text("a b 0.5 target\na c 0.5 impostor\n")
    (root / "zero.kaldi").write_text("s/a s/b target\ns/a t/c nontarget\n")
    for name, size in (("zero", 8), ("odd", 7)):
        vectors = {"s/a": np.ones(8, np.float32), "s/b": np.ones(8, np.float32), "t/c": np.zeros(size, np.float32)}
        kaldiio.save_ark(str(root / f"{name}.ark"), vectors, scp=str(root / f"{name}.scp"))
    before = _files(root)
    scp = exp / "embeddings/vox1/xvector.scp"
    done = tool("score", *(text.format(root=root, scp=scp) for text in arguments))
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert _files(root) == before


def test_repeated_trials_are_counted_and_reported(exp: Path, tool: Tool) -> None:
    trials = exp.parent / "all.kaldi"
    trials.write_text(trials.read_text() + "".join(trials.read_text().splitlines(keepends=True)[:5]))
    done = tool(
        "score",
        *("--embeddings", exp / "embeddings/vox1/xvector.scp", "--trials", trials, "--output_dir", exp / "scores"),
        *("--replicates", "0"),
    )
    assert done.returncode == 0, done.stderr
    assert "5 of 501 trials repeat an earlier one; each is counted" in done.stderr


def test_a_list_without_labels_is_scored_and_nothing_else(exp: Path, tool: Tool) -> None:
    root, scores = exp.parent, exp / "scores"
    labelled = [line.split() for line in (root / "all.kaldi").read_text().splitlines()]
    (root / "blind.txt").write_text("".join(f"{a} {b}\n" for a, b, _ in labelled))
    options = ("--embeddings", exp / "embeddings/vox1/xvector.scp", "--mean_vec", root / "mean_vec.npy")
    done = tool("score", *options, "--trials", root / "blind.txt", "--output_dir", scores)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"scores, without error rates, as the list has no labels: {scores / 'blind.txt.score'}\n"
    assert _files(scores) == {"blind.txt.score"}
    assert tool("score", *options, "--trials", root / "all.kaldi", "--output_dir", scores).returncode == 0
    expected = [line.split()[:3] for line in (scores / "all.kaldi.score").read_text().splitlines()]
    assert [line.split() for line in (scores / "blind.txt.score").read_text().splitlines()] == expected
    mixed = tool("score", *options, "--trials", root / "all.kaldi", root / "blind.txt", "--output_dir", scores)
    assert mixed.returncode == 1
    assert f"some lists have no labels: {root / 'blind.txt'}; give them in a call of their own" in mixed.stderr
