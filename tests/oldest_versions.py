"""Print a constraints file with the lowest versions that pyproject.toml allows; `make test-oldest` installs them."""

import tomllib

from packaging.requirements import Requirement

from tests.helpers import ROOT


def oldest() -> list[str]:
    """Return `name==version` of each dependency of the package and of its extras that has a lowest version."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *(text for extra in project["optional-dependencies"].values() for text in extra)]
    floors = {}
    for requirement in map(Requirement, texts):
        for bound in requirement.specifier:
            if bound.operator in (">=", "=="):
                floors[requirement.name] = f"{requirement.name}=={bound.version}"
    # Style and types are checked with the versions of constraints.txt only.
    return sorted(line for name, line in floors.items() if name not in ("ruff", "mypy"))


if __name__ == "__main__":
    print("\n".join(oldest()))
