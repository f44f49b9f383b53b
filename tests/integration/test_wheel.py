"""The package as pip makes and installs it: what is in it, and that it works outside of the project's folder."""

import shutil
import sys
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path
from zipfile import ZipFile

import pytest
from conftest import ROOT, run_command
from packaging.requirements import Requirement

import wespeaker

PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-cache-dir")
BUILD_SDIST = "from setuptools import build_meta; import sys; print(build_meta.build_sdist(sys.argv[1]))"
MADE_HERE = {"exp", "data", "corpora", "build"}  # by run.sh, and by a build


def _not_source(folder: str, names: list[str]) -> set[str]:
    left_out = {name for name in names if name.startswith(".") or name == "__pycache__" or name.endswith(".egg-info")}
    return left_out | (MADE_HERE if Path(folder) == ROOT else set())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, from a source distribution of a copy of the project: a build leaves folders where it is done."""
    folder = tmp_path_factory.mktemp("build")
    shutil.copytree(ROOT, folder / "project", ignore=_not_source)
    done = run_command(sys.executable, "-c", BUILD_SDIST, folder, cwd=folder / "project")
    assert done.returncode == 0, done.stderr
    sdist = folder / done.stdout.splitlines()[-1]
    assert sdist.name == f"wespeaker_q-{wespeaker.__version__}.tar.gz"
    shutil.rmtree(folder / "project")
    done = run_command(
        *PIP, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "-w", folder, sdist, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of packages with the wheel installed."""
    folder = tmp_path_factory.mktemp("site")
    done = run_command(*PIP, "install", "--no-deps", "--no-index", "--target", folder, wheel)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def _metadata(wheel: Path, name: str) -> str:
    with ZipFile(wheel) as archive:
        return archive.read(f"wespeaker_q-{wespeaker.__version__}.dist-info/{name}").decode()


def test_it_holds_the_whole_package_and_nothing_else(wheel: Path) -> None:
    with ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = (path for path in (ROOT / "wespeaker").rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    assert names == {path.relative_to(ROOT).as_posix() for path in package}
    assert "wespeaker/py.typed" in names


def test_its_metadata_name_version_requirements_and_command(wheel: Path) -> None:
    metadata: Message = HeaderParser().parsestr(_metadata(wheel, "METADATA"))
    assert (metadata["Name"], metadata["Version"]) == ("wespeaker-q", wespeaker.__version__)
    assert metadata["Requires-Python"] == ">=3.10"
    requirements = [Requirement(text) for text in metadata.get_all("Requires-Dist", [])]

    def of_extra(extra: str) -> set[str]:
        return {
            each.name for each in requirements if each.marker is not None and each.marker.evaluate({"extra": extra})
        }

    always = {each.name for each in requirements if each.marker is None}
    assert {"torch", "numpy", "pydantic"} <= always
    assert "matplotlib" not in always
    extras = {name: of_extra(name) for name in metadata.get_all("Provides-Extra", [])}
    everything = extras.pop("all")
    assert extras == {
        "export": {"onnx", "onnxscript", "onnxruntime", "safetensors"},
        "plot": {"matplotlib"},
        "track": {"tensorboard"},
    }
    assert everything == set().union(*extras.values())
    assert _metadata(wheel, "entry_points.txt") == "[console_scripts]\nwespeaker-q = wespeaker.cli:main\n"


def test_the_installed_package_is_light_and_its_version_is_that_of_its_metadata(site: Path, tmp_path: Path) -> None:
    code = (
        "import sys, wespeaker; from importlib.metadata import version; "
        "print(wespeaker.__file__, wespeaker.__version__, version('wespeaker-q'), {'torch', 'numpy'} & {*sys.modules})"
    )
    done = run_command(sys.executable, "-c", code, cwd=tmp_path, PYTHONPATH=str(site))
    version = wespeaker.__version__
    assert done.stdout == f"{site / 'wespeaker' / '__init__.py'} {version} {version} set()\n", done.stderr


@pytest.mark.parametrize("command", [("bin/wespeaker-q",), ("-m", "wespeaker")], ids=" ".join)
def test_the_installed_command_says_what_it_does(site: Path, tmp_path: Path, command: tuple[str, ...]) -> None:
    first = [site / command[0]] if len(command) == 1 else [sys.executable, *command]
    done = run_command(*first, "--help", cwd=tmp_path, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")
    for name in ("compare", "enroll", "verify", "identify"):
        assert name in done.stdout
