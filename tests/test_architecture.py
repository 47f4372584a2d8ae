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

# Part of the package -> the other parts it may import. Parts that are missing here (parsing, testing, cli): any.
INTERNAL = {
    "_compat": set(),
    "registry": set(),
    "types": set(),
    "losses": {"registry", "types"},
    "modeling": {"_compat", "registry", "types", "record"},
    "data": {"_compat", "registry", "types", "record", "modeling"},
    "evaluation": {"_compat", "registry", "types", "record", "strict_yaml", "modeling", "data"},
    "reference": {"_compat", "registry", "types", "modeling", "data", "record"},
    "strict_yaml": set(),
    "secret_scan": set(),
    "setting_ranges": set(),
    "record": {"secret_scan"},
    "hub": {"_compat", "registry", "types", "record", "strict_yaml", "secret_scan", "modeling", "data", "reference"},
    "training": {
        *("_compat", "registry", "types", "record", "setting_ranges", "losses", "modeling", "data", "reference", "hub"),
    },
    # The rooms above them all: the run of a recipe imports everything but the command line.
    "memory": {
        "_compat",
        "parsing",
        "registry",
        "types",
        "record",
        "losses",
        "modeling",
        "data",
        "reference",
        "hub",
        "training",
    },
    "run": {
        *("_compat", "registry", "types", "record", "parsing", "strict_yaml", "secret_scan", "losses", "modeling"),
        *("data", "reference", "hub", "training", "memory", "evaluation", "renamed_settings"),
    },
    "arena": {
        *("parsing", "registry", "types", "record", "losses", "modeling", "data", "reference", "training"),
        *("evaluation", "run"),
    },
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


def file_of(name):
    """Return the file that an absolute dotted name of the package is in, or None."""
    parts = name.split(".")[1:]
    while True:
        for path in (PACKAGE.joinpath(*parts).with_suffix(".py"), PACKAGE.joinpath(*parts, "__init__.py")):
            if path.is_file():
                return path
        if not parts:
            return None
        parts.pop()


def circles(graph):
    """Return the groups of files (sorted lists) that import each other in a circle, however long it is."""
    reached = {}
    for start in graph:
        seen, todo = set(), list(graph[start])
        while todo:
            if (file := todo.pop()) not in seen:
                seen.add(file)
                todo += graph[file]
        reached[start] = seen
    return sorted({tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]})


def test_no_files_import_each_other_in_a_circle():
    graph = {path: {file_of(name) for _, name in imports(path) if name.startswith("trl_dpo_ext")} for path in FILES}
    graph = {path: {other for other in others if other and other != path} for path, others in graph.items()}
    found = [[str(path.relative_to(PACKAGE)) for path in circle] for circle in circles(graph)]
    assert not found, "files that import each other: " + "; ".join(" <-> ".join(circle) for circle in found)


def test_circles_of_any_length_are_found():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}, "e": {"f"}, "f": {"e"}, "g": set()}
    assert circles(graph) == [("a", "b", "c"), ("e", "f")]


# Libraries whose modules below the names that they export count as private: where a documented name lives only deeper,
# it is listed.
LIBRARIES = ("trl", "transformers", "peft", "accelerate", "torch", "bitsandbytes")
DOCUMENTED = (
    "accelerate.utils",
    "bitsandbytes.functional",
    "bitsandbytes.nn",
    "torch.nn",
    "torch.utils",
    "torch.autograd",
    "torch.distributed",
    "transformers.trainer_utils",
    "transformers.integrations",
    "transformers.utils",
)


def own_private_names():
    """Return the names with a leading underscore that the package itself defines, outside `_compat`."""
    found = set()
    for path in FILES:
        if part_of(path) == "_compat":
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return found


def is_self(node):
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def private_uses(path, own):
    """Yield (line, text) of each use of a name that another library doesn't document."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            if node.attr not in own:
                yield node.lineno, f".{node.attr}"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("getattr", "hasattr", "setattr"):
            name = getattr(node.args[1], "value", "")
            if isinstance(name, str) and name.startswith("_") and not name.startswith("__") and name not in own:
                yield node.lineno, repr(name)
        elif isinstance(node, ast.ClassDef):
            bases = [base.id for base in node.bases if isinstance(base, ast.Name)]
            if any(base.endswith("Trainer") and not base.startswith("Preference") for base in bases):
                for inner in node.body:
                    name = getattr(inner, "name", "")
                    if name.startswith("_") and not name.startswith("__") and overrides(name):
                        yield inner.lineno, f"override of {name}"
    for line, name in imports(path):
        top, *rest = name.split(".")
        if top in LIBRARIES and (len(rest) > 1 or any(part.startswith("_") for part in rest)):
            module = name.rpartition(".")[0]
            private = any(part.startswith("_") for part in name.split("."))
            if private or not any(module == known or module.startswith(f"{known}.") for known in DOCUMENTED):
                yield line, f"import of {name}"


def overrides(name):
    import trl

    return hasattr(trl.DPOTrainer, name)


OWN = own_private_names()


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_private_names_of_other_libraries_are_used_in_compat_only(path):
    if part_of(path) == "_compat":
        return
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for line, what in private_uses(path, OWN)]
    assert not found, "undocumented names of another library; give them a name in trl_dpo_ext/_compat: " + "; ".join(
        found
    )


def test_each_kind_of_private_use_is_seen(tmp_path, monkeypatch):
    monkeypatch.setattr("tests.test_architecture.PACKAGE", tmp_path)
    source = tmp_path / "x.py"
    source.write_text(
        "from transformers.quantizers.base import X\n"
        "from torch._inductor import config\nfrom accelerate.utils import a\n"
        "model.config._attn_implementation\ngetattr(model, '_hook')\nself._mine\nx.__dict__\n"
        "class Mine(DPOTrainer):\n    def _save(self): ...\n    def _mine(self): ...\n"
    )
    assert sorted(private_uses(source, {"_mine"})) == [
        (1, "import of transformers.quantizers.base.X"),
        (2, "import of torch._inductor.config"),
        (4, "._attn_implementation"),
        (5, "'_hook'"),
        (9, "override of _save"),
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
        "import yaml, os, sympy\nfrom . import types\nimport matplotlib.figure\n"
        "def f():\n    from openai import OpenAI\n    import pytest\n"
    )
    assert list(undeclared(source)) == [(1, "sympy"), (3, "matplotlib.figure"), (6, "pytest")]
