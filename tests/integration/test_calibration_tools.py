"""tools/score_norm.py and tools/calibrate.py as a user runs them; what they compute is tested in unit tests."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import kaldiio
import numpy as np
import pytest

from wespeaker.data.trials import Trials, write_scores
from wespeaker.eval.scoring import cosine_scores

Tool = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def exp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder after stage 5: 12 training and 6 test speakers of 2 sessions x 2 utterances."""
    root, rng = tmp_path_factory.mktemp("exp"), np.random.default_rng(0)
    for name, num in (("vox2_dev", 12), ("vox1", 6)):
        utts = [f"{name}{i // 4:02d}/v{i // 2 % 2}/{i % 2}.wav" for i in range(4 * num)]
        vectors = np.repeat(rng.standard_normal((num, 8)), 4, axis=0) + 0.7 * rng.standard_normal((4 * num, 8)) + 1
        (root / name).mkdir()
        pairs = dict(zip(utts, vectors.astype(np.float32), strict=True))
        kaldiio.save_ark(str(root / name / "xvector.ark"), pairs, scp=str(root / name / "xvector.scp"))
        (root / name / "utt2spk").write_text("".join(f"{utt} {utt.split('/')[0]}\n" for utt in utts))
        (root / name / "utt2dur").write_text("".join(f"{utt} {rng.uniform(2, 9):.3f}\n" for utt in utts))
    enroll, test = (side.astype(np.int32) for side in np.triu_indices(len(utts), k=1))
    trials = Trials(utts, enroll, test, enroll // 4 == test // 4)
    write_scores(root / "scores" / "all.kaldi.score", trials, cosine_scores(trials, utts, vectors))
    return root


def _files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def _cohort(exp: Path) -> list[object]:
    return ["--cohort", exp / "vox2_dev/xvector.scp", "--cohort_utt2spk", exp / "vox2_dev/utt2spk", "--top_n", 6]


def _score_norm(exp: Path) -> list[object]:
    return [
        *("--scores", exp / "scores/all.kaldi.score", "--embeddings", exp / "vox1/xvector.scp"),
        *_cohort(exp),
        *(
            "--output_dir",
            exp / "scores",
            "--far",
            "1e-1",
            "--note",
            "made up",
            "--replicates",
            100,
            "--target_far",
            "0.05",
        ),
    ]


def _calibrate(exp: Path) -> list[object]:
    return [
        *("--scores", exp / "scores/vox2_dev_asnorm6_all.kaldi.score", "--utt2dur", exp / "vox1/utt2dur"),
        *("--output_dir", exp / "scores", "--far", "1e-1", "--replicates", 0),
    ]


def test_from_cosines_to_log_likelihood_ratios(exp: Path, tool: Tool) -> None:
    done = tool("score_norm", *_score_norm(exp))
    assert done.returncode == 0, done.stderr
    results = exp / "scores" / "vox2_dev_asnorm6_results.json"
    assert done.stdout.startswith("made up\n\ntrial list ")
    assert f"results:    {results}\n" in done.stdout
    assert json.loads(results.read_text())["score"] == "vox2_dev_asnorm6"
    assert list(json.loads(results.read_text())["trials"]) == ["all"]

    done = tool("calibrate", *_calibrate(exp), "--data_dir", exp / "vox2_dev", *_cohort(exp))
    assert done.returncode == 0, done.stderr
    assert "actDCF" in done.stdout
    cali = {f"cali_vox2_dev_asnorm6_{name}" for name in ("all.kaldi.score", "effect.json")}
    for prefix in ("vox2_dev_asnorm6_", "cali_vox2_dev_asnorm6_"):
        cali |= {prefix + name for name in ("det.png", "det.svg", "results.json", "results.txt")}
    cali.add("vox2_dev_asnorm6_threshold.json")
    cali |= {f"calibration/{name}" for name in ("vox2_dev_asnorm6.json", "vox2_cali.kaldi")}
    cali |= {"calibration/vox2_dev_asnorm6_vox2_cali.kaldi.score", "vox2_dev_asnorm6_all.kaldi.score"}
    assert _files(exp / "scores") == cali | {"all.kaldi.score"}

    model = exp / "scores" / "calibration" / "vox2_dev_asnorm6.json"
    again = tool("calibrate", *_calibrate(exp), "--model", model, "--output_dir", exp / "again")
    assert again.returncode == 0, again.stderr
    name = "cali_vox2_dev_asnorm6_all.kaldi.score"
    assert (exp / "again" / name).read_bytes() == (exp / "scores" / name).read_bytes()


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("score_norm", ["--top_n", "13"], "the cohort has 12 speakers, which is fewer than top_n = 13"),
        (
            "score_norm",
            ["--scores", "no.score"],
            "no.score does not exist; stage 1 makes the trial lists",
        ),
        ("score_norm", ["--method", "znorm"], "invalid choice: 'znorm'"),
        ("calibrate", [], "give either --data_dir, a set to train a calibration on, or --model, a ready one"),
        ("calibrate", ["--data_dir", "."], "give --cohort and --cohort_utt2spk"),
        ("calibrate", ["--model", "no.json"], "no.json does not exist"),
        ("calibrate", ["--model", "no.json", "--data_dir", "."], "give either --data_dir"),
    ],
)
def test_misuse_is_one_sentence_and_leaves_nothing(
    exp: Path, tool: Tool, name: str, arguments: list[str], message: str
) -> None:
    before = _files(exp)
    done = tool(name, *(_score_norm(exp) if name == "score_norm" else _calibrate(exp)), *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert _files(exp) == before
