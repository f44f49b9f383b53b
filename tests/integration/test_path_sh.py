"""path.sh in a copy with a stand-in for the environment's Python that notes what pip was asked."""

import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import ROOT, run_command

STAND_IN = """#!/usr/bin/env bash
if [ "$1 $2" = "-m pip" ]; then echo "$*" >> "{folder}/pip.log"; echo "pip says: {says}"; exit {code}; fi
exec "{python}" "$@"
"""


@pytest.fixture
def source(tmp_path):
    """Source path.sh in a copy; the environment is there, its pip is not."""
    for name in ("path.sh", "requirements.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def go(code=0, says="done", **env):
        python.write_text(STAND_IN.format(folder=tmp_path, python=sys.executable, code=code, says=says))
        python.chmod(0o755)
        script = f'set -euo pipefail; . "{tmp_path}/path.sh"; echo "python is $(command -v python)"'
        return run_command(
            "bash",
            "-c",
            script,
            cwd=tmp_path,
            **{"VIRTUAL_ENV": "", "CONDA_PREFIX": "", "WESPEAKER_REQUIREMENTS": "", **env},
        )

    return go


def test_requirements_are_installed_once_and_again_when_they_change(source, tmp_path):
    first = source()
    assert first.returncode == 0, first.stderr
    assert "installing" in first.stdout
    assert "installed in" in first.stdout
    assert f"python is {tmp_path}/.venv/bin/python" in first.stdout
    again = source()
    assert "installing" not in again.stdout
    (tmp_path / "requirements.txt").write_text("numpy\n")
    assert "installing" in source().stdout
    assert len((tmp_path / "pip.log").read_text().splitlines()) == 2


def test_nodes_that_start_at_once_install_one_after_the_other(source, tmp_path):
    with ThreadPoolExecutor() as pool:
        nodes = [pool.submit(source) for _ in range(3)]
    assert [node.result().returncode for node in nodes] == [0, 0, 0]
    assert len((tmp_path / "pip.log").read_text().splitlines()) == 1


def test_a_failed_install_says_why_and_is_tried_again(source):
    failed = source(code=1, says="no such package")
    assert failed.returncode == 1
    assert "pip says: no such package" in failed.stderr
    assert "path.sh: error: pip could not install" in failed.stderr
    assert "run the same command again" in failed.stderr
    assert "installing" in source().stdout


def test_an_active_environment_with_the_requirements_is_used(source, tmp_path):
    done = source(VIRTUAL_ENV=sys.prefix)
    assert f"using the active environment {sys.prefix}" in done.stdout
    assert not (tmp_path / "pip.log").exists()


def test_an_active_environment_without_them_is_named_and_left_alone(source, tmp_path):
    (tmp_path / "requirements.txt").write_text("numpy\ntorch>=99\nno-such-package\n")
    done = source(VIRTUAL_ENV=sys.prefix)
    assert f"{sys.prefix} lacks torch>=99, no-such-package; using .venv instead" in done.stdout
    assert f"python is {tmp_path}/.venv/bin/python" in done.stdout
