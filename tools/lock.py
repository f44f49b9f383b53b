"""Write requirements.lock: the versions of requirements.txt and of all that they need, as they are installed here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from _cli import ROOT, Parser, run
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from wespeaker.errors import InputError
from wespeaker.files import write_lines

HEAD = (
    "# The versions that the project was tested with: of requirements.txt and of all that they need, on Linux. Made by",
    "#   bash tools/dev.sh lock",
    "# after the tests passed; `pip install -r requirements.lock` gives them again.",
)


def read_requirements(path: Path) -> list[Requirement]:
    """Return the requirements of a file of pip, without its comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [Requirement(line) for line in lines if line]


def installed_versions(requirements: Iterable[Requirement]) -> dict[str, str]:
    """Return the versions, by name, of packages and of all that they need here.

    Raises:
        InputError: one is not installed, or not in a version that is asked for.

    """
    versions: dict[str, str] = {}
    seen: set[str] = set()
    todo = list(requirements)
    while todo:
        requirement = todo.pop()
        if str(requirement) in seen:
            continue
        seen.add(str(requirement))
        name = canonicalize_name(requirement.name)
        try:
            found = distribution(name)
        except PackageNotFoundError:
            raise InputError(f"{requirement} is not installed here; pip install -r requirements.txt first") from None
        versions[name] = Version(found.version).public
        if not requirement.specifier.contains(versions[name], prereleases=True):
            raise InputError(
                f"{name} {versions[name]} is installed here, which is not {requirement}; install that first"
            )
        for needed in map(Requirement, found.requires or ()):
            environments = [{"extra": extra} for extra in ("", *requirement.extras)]
            if needed.marker is None or any(map(needed.marker.evaluate, environments)):
                needed.marker = None
                todo.append(needed)
    return dict(sorted(versions.items()))


def main() -> None:
    """Write the file and say how many packages it has."""
    Parser(__doc__).parse_args()
    versions = installed_versions(read_requirements(ROOT / "requirements.txt"))
    write_lines(ROOT / "requirements.lock", [*HEAD, *(f"{name}=={version}" for name, version in versions.items())])
    print(f"requirements.lock: {len(versions)} packages")


if __name__ == "__main__":
    run(main)
