"""Say whether this Python environment satisfies a requirements file: exit code 0 if so, 1 and the reasons if not.

With a second argument, `required` or `optional`, print these of the file's requirements instead, one a line. What is
optional may be missing: where pydensecrf2 cannot be compiled, PyTorch computes dense CRF.

Looks at installed packages only, one level deep: what a listed package needs itself is checked too. A torchvision
beside a torch that it was not built for can pass that and still fail to load, so it is imported as well.
"""

import importlib
import sys
from importlib import metadata
from pathlib import Path

try:
    from packaging.requirements import Requirement
except ImportError:
    from pip._vendor.packaging.requirements import Requirement

OPTIONAL = {"pydensecrf2"}


def read_requirements(path: Path) -> list[Requirement]:
    """The requirements of a file and of the files that it includes with `-r`."""
    found: list[Requirement] = []
    for raw in path.read_text().splitlines():
        line = raw.split("#")[0].strip()
        if line.startswith("-r "):
            found += read_requirements(path.parent / line.removeprefix("-r ").strip())
        elif line:
            found.append(Requirement(line))
    return found


def problem_of(requirement: Requirement) -> str | None:
    """Why the installed packages don't satisfy `requirement`; None if they do, or if it does not apply here."""
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    try:
        installed = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement} is missing"
    if not requirement.specifier.contains(installed, prereleases=True):
        return f"{requirement} is needed, {installed} is installed"
    return None


def problems(path: Path) -> list[str]:
    """All that is missing or does not fit together, of what is required."""
    requirements = [requirement for requirement in read_requirements(path) if requirement.name not in OPTIONAL]
    found = [problem for requirement in requirements if (problem := problem_of(requirement))]
    if found:
        return found
    for requirement in requirements:
        if requirement.marker is None or requirement.marker.evaluate():
            for text in metadata.requires(requirement.name) or []:
                if problem := problem_of(Requirement(text)):
                    found.append(f"{requirement.name}: {problem}")
    if not found and any(requirement.name == "torchvision" for requirement in requirements):
        try:
            importlib.import_module("torchvision")
        except (ImportError, RuntimeError) as error:
            found.append(f"torchvision does not fit this torch: {error}")
    return found


def main() -> int:
    """Check the file that the command line names, or print a part of it."""
    path, *part = sys.argv[1:]
    if part:
        chosen = [r for r in read_requirements(Path(path)) if (r.name in OPTIONAL) == (part == ["optional"])]
        print(*chosen, sep="\n")
        return 0
    found = problems(Path(path))
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
