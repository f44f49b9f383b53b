"""The command of the README at its full size: minutes."""

import json

import pytest
from conftest import run_command


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["qmargin", "arcface", "cosface"])
def test_the_mini_corpus_is_learned(loss, tmp_path):
    done = run_command(
        "bash", "run.sh", "--config", f"conf/mini_{loss}.yaml", "--corpora", tmp_path / "corpora",
        "--data", tmp_path / "data", "--exp_dir", tmp_path / "exp", timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "exp" / "scores" / "results.json").read_text())["trials"]
    assert 0 < results["vox1_O_cleaned"]["eer"] <= 0.05
