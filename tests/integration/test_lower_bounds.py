"""The lower bounds of the package and of its extras, installed as they stand: unit tests and a step of training."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import PROJECT, run_command

# Those that need neither the oracles of tests/requirements.txt nor minutes.
TESTS = (
    *(
        f"tests/unit/data/test_{name}.py"
        for name in ("audio", "riff", "tar", "shards", "manifest", "trials", "augment")
    ),
    *(f"tests/unit/data/test_{name}.py" for name in ("utterances", "pack")),
    *(f"tests/unit/eval/test_{name}.py" for name in ("det", "extraction", "calibrated_scores")),
    *(f"tests/unit/test_{name}.py" for name in ("config", "documents", "figures", "files", "speaker_net")),
    *("tests/unit/models/test_resnet.py", "tests/unit/train/test_checkpoint.py", "tests/unit/report/test_events.py"),
    "tests/integration/test_every_config_trains.py::test_a_step_of_the_network_as_it_is_configured[mini_qmargin]",
)
PYTEST = ("pytest==8.0", "hypothesis==6.100")


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 13), reason="numpy 1.26, a lower bound, has no wheel for this Python")
def test_the_lower_bounds_work(tmp_path: Path) -> None:
    """It takes 5 GB for as long as it runs, and about ten minutes."""
    bounds = (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["all"])
    lowest = [bound.replace(">=", "==") for bound in bounds]
    environment = tmp_path / "environment"
    python = environment / "bin" / "python"
    try:
        assert run_command(sys.executable, "-m", "venv", environment).returncode == 0
        # The parent's variables would lead pip, or the tests' own commands, to another environment.
        own = {"VIRTUAL_ENV": str(environment), "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
        installed = run_command(python, "-m", "pip", "install", "--no-cache-dir", *lowest, *PYTEST, timeout=3000, **own)
        if "Failed to establish a new connection" in installed.stderr:
            pytest.skip("no package index can be reached")
        assert installed.returncode == 0, installed.stderr[-2000:]
        # Old packages warn of newer Pythons and of each other: warnings are no errors here.
        options = ("-q", "-m", "not slow", "-p", "no:cacheprovider", "-o", "filterwarnings=default")
        tested = run_command(python, "-m", "pytest", *options, *TESTS, timeout=3000, **own)
        assert tested.returncode == 0, tested.stdout[-5000:]
    finally:
        shutil.rmtree(environment, ignore_errors=True)
