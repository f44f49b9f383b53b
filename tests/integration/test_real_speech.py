"""Real recordings in the published layouts, m4a included, through every stage."""

import json

import pytest
from conftest import ROOT, SMALL, run_command

REAL = ROOT.parent / "shared" / "realspeech"
pytestmark = pytest.mark.skipif(not REAL.is_dir(), reason="the real recordings are not beside this checkout")


def recipe(tmp_path, *options):
    done = run_command(
        "bash", "run.sh", "--corpus", "voxceleb", "--config", "conf/real_small_qmargin.yaml",
        "--voxceleb1", REAL / "voxceleb1", "--voxceleb2", REAL / "voxceleb2", "--musan", REAL / "musan",
        "--rirs", REAL / "RIRS_NOISES", "--data", tmp_path / "data", "--exp_dir", tmp_path / "exp",
        "--far", "1e-1 1e-2 1e-3", *options, timeout=3000,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "exp" / "scores" / "results.json").read_text())["trials"]
    assert (results["vox1_O_cleaned"]["num_target"], results["vox1_O_cleaned"]["num_nontarget"]) == (450, 4500)
    assert results["vox1_H_cleaned"]["num_nontarget"] == 2000
    return results


def test_every_stage_runs_on_real_speech(tmp_path):
    recipe(tmp_path, "--set", " ".join(SMALL))


@pytest.mark.slow
def test_real_speech_is_learned(tmp_path):
    """A mean log spectrum without training has an EER of 15.3 %."""
    assert recipe(tmp_path)["vox1_O_cleaned"]["eer"] <= 0.07
