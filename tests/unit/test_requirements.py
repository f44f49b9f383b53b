"""The lists of requirements against each other, and requirements.lock against what the locked packages ask for."""

import re
import sys
from importlib.metadata import PackageNotFoundError, version
from itertools import chain

import pytest
from conftest import PROJECT, ROOT
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

sys.path.insert(0, str(ROOT / "tools"))  # its scripts import each other

from lock import HEAD, installed_versions, read_requirements

from wespeaker.errors import InputError

EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = read_requirements(ROOT / "requirements.txt")
LINES = (ROOT / "requirements.lock").read_text().splitlines()
LOCKED = dict(line.split("==") for line in LINES if not line.startswith("#"))


def test_the_recipe_needs_the_library_and_its_plots():
    assert {*PROJECT["dependencies"], *EXTRAS["plot"]} == set(map(str, REQUIREMENTS))


def test_all_are_all_extras():
    assert sorted(EXTRAS["all"]) == sorted(chain.from_iterable(EXTRAS[name] for name in EXTRAS.keys() - {"all"}))


def test_the_tests_have_every_extra():
    of_tests = {str(requirement) for requirement in read_requirements(ROOT / "tests" / "requirements.txt")}
    assert set(EXTRAS["all"]) <= of_tests | set(map(str, REQUIREMENTS))


def test_the_lock_is_versions_only_and_says_how_it_is_made():
    assert tuple(LINES[: len(HEAD)]) == HEAD
    for line in LINES[len(HEAD) :]:
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line), line
    assert list(LOCKED) == sorted(LOCKED)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=str)
def test_every_requirement_has_a_lower_bound_that_the_lock_keeps(requirement):
    assert [bound.operator for bound in requirement.specifier] == [">="]
    assert requirement.specifier.contains(LOCKED[canonicalize_name(requirement.name)])


def test_the_lock_holds_all_that_its_packages_need():
    """Where this environment is the locked one, as it was when the lock was made."""
    for name, locked in LOCKED.items():
        try:
            installed = version(name)
        except PackageNotFoundError:
            installed = "no version"
        if installed.partition("+")[0] != locked:
            pytest.skip(f"{name} {locked} is locked and {installed} installed")
    assert installed_versions(REQUIREMENTS) == LOCKED


@pytest.mark.parametrize(("text", "match"), [("no-such-package", "not installed"), ("numpy>=99", "numpy>=99; install")])
def test_what_is_not_installed_cannot_be_locked(text, match):
    with pytest.raises(InputError, match=match):
        installed_versions([Requirement(text)])
