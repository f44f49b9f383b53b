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
    for name in ("path.sh", "requirements.txt", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)

    def go(code=0, says="done", then="true", **env):
        python.write_text(STAND_IN.format(folder=tmp_path, python=sys.executable, code=code, says=says))
        python.chmod(0o755)
        script = f'set -euo pipefail; . "{tmp_path}/path.sh"; echo "python is $(command -v python)"; {then}'
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


EXTRAS = """[project.optional-dependencies]
here = ["numpy>=1", "scipy"]
gone = ["numpy", "no-such-package>=1,<3", "scipy>=99"]
"""


@pytest.fixture
def extra(source, tmp_path):
    """Ask for an extra in that environment; return what happened, and what pip was asked."""
    (tmp_path / "pyproject.toml").write_text(EXTRAS)
    source()  # installs requirements.txt
    (tmp_path / "pip.log").unlink()

    def go(name, **how):
        done = source(then=f"wespeaker_extra {name}; echo went on", **how)
        log = tmp_path / "pip.log"
        return done, log.read_text().splitlines() if log.exists() else []

    return go


def test_what_an_extra_lacks_is_installed_and_nothing_else(extra):
    done, asked = extra("gone")
    assert done.returncode == 0, done.stderr
    assert "path.sh: installing no-such-package>=1,<3, scipy>=99 (extra gone of pyproject.toml)" in done.stdout
    assert asked == ["-m pip install --quiet --disable-pip-version-check no-such-package>=1,<3 scipy>=99"]
    assert "went on" in done.stdout


def test_an_extra_that_is_there_asks_nothing_of_pip(extra):
    done, asked = extra("here")
    assert (done.returncode, asked) == (0, [])
    assert "installing" not in done.stdout


def test_an_extra_that_pip_cannot_install_ends_the_script(extra):
    done, _ = extra("gone", code=1)
    assert done.returncode == 1
    assert "path.sh: error: pip could not install the extra gone" in done.stderr
    assert "went on" not in done.stdout


def test_an_extra_that_is_not_there_is_an_error(extra):
    done, asked = extra("exprot")
    assert (done.returncode, asked) == (1, [])
    assert done.stderr == "path.sh: error: pyproject.toml has no extra [exprot]; it has here, gone\n"
