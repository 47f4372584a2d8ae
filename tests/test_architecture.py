"""Who may import whom, as the design says; read from the source, imports inside functions included."""

import ast
import importlib.metadata
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.helpers import ROOT

PACKAGE = ROOT / "trl_dpo_ext"

# Part of the package -> the other parts it may import. Parts that aren't named here (parsing, cli, ...) may import any.
INTERNAL = {
    "registry": set(),
    "types": set(),
    "losses": {"registry", "types"},
    "modeling": {"registry", "types"},
    "data": {"registry", "types", "modeling"},
    "evaluation": {"registry", "types", "record", "modeling"},
    "reference": {"registry", "types", "modeling", "data", "record"},
    "record": set(),
    "hub": {"registry", "types", "record", "modeling", "reference"},
    "trainer": {"registry", "types", "record", "losses", "modeling", "data", "reference", "hub"},
}
# Part -> what it may import from outside, beside the standard library. The others are free.
EXTERNAL = {
    "registry": set(),
    "types": {"torch"},
    "losses": {"torch", "annotated_types"},
}


def part_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path):
    """Yield (line, absolute dotted name) of each import; `from x import y` gives x.y."""
    package = ["trl_dpo_ext", *path.relative_to(PACKAGE).parent.parts]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_design(path):
    part = part_of(path)
    for line, name in imports(path):
        where = f"{path.relative_to(ROOT)}:{line} imports {name}"
        top, *rest = name.split(".")
        if top == "trl_dpo_ext":
            other = rest[0] if rest else ""
            assert other == part or part not in INTERNAL or other in INTERNAL[part], where
        elif top not in sys.stdlib_module_names:
            assert part not in EXTERNAL or top in EXTERNAL[part], where
        if top == "trl" and len(rest) > 1:  # trl.x.y: below the names that TRL exports
            assert path == PACKAGE / "trainer" / "_trl.py", f"{where}; only trainer/_trl.py touches TRL's insides"


def test_the_reader_sees_each_kind_of_import(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_architecture.PACKAGE", tmp_path)
    (tmp_path / "data").mkdir()
    source = tmp_path / "data" / "x.py"
    source.write_text(
        "import trl.trainer.utils\nfrom ..types import A\nfrom .format import B\ndef f():\n    from trl import C\n"
    )
    assert list(imports(source)) == [
        (1, "trl.trainer.utils"),
        (2, "trl_dpo_ext.types.A"),
        (3, "trl_dpo_ext.data.format.B"),
        (5, "trl.C"),
    ]


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DISTRIBUTIONS = importlib.metadata.packages_distributions()  # import name -> the packages that bring it


def declared(requirements):
    return {canonicalize_name(Requirement(text).name) for text in requirements}


NEEDED = declared(PROJECT["dependencies"])
EXTRAS = set().union(*(declared(texts) for name, texts in PROJECT["optional-dependencies"].items() if name != "test"))


def undeclared(path):
    """Yield (line, name) of imports that an installation without extras, or one with them, could lack."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    late = {line for node in functions for line in range(node.lineno, node.end_lineno + 1)}
    for line, name in imports(path):
        top = name.partition(".")[0]
        packages = {canonicalize_name(package) for package in DISTRIBUTIONS.get(top, [top])}
        allowed = NEEDED | EXTRAS if line in late else NEEDED
        if top not in {"trl_dpo_ext", *sys.stdlib_module_names} and not packages & allowed:
            yield line, name


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_what_is_imported_is_declared(path):
    for line, name in undeclared(path):
        pytest.fail(
            f"{path.relative_to(ROOT)}:{line} imports {name}; name its package among the dependencies in "
            "pyproject.toml, or in an extra, and then import it inside the function that uses it"
        )


def test_what_is_not_declared_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_architecture.PACKAGE", tmp_path)
    source = tmp_path / "x.py"
    source.write_text(
        "import yaml, os, jinja2\nfrom . import types\nimport matplotlib.figure\n"
        "def f():\n    from openai import OpenAI\n    import pytest\n"
    )
    assert list(undeclared(source)) == [(1, "jinja2"), (3, "matplotlib.figure"), (6, "pytest")]
