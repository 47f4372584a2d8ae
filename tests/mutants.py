"""Mutants for `tests/mutation.py`: a file's source with one small change, made by cosmic-ray's operators."""

from __future__ import annotations

import ast
import copy
import difflib
import hashlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ARITHMETIC = ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow")
BITS = ("RShift", "LShift", "BitOr", "BitAnd", "BitXor")


@dataclass(frozen=True, eq=False)
class Mutant:
    """One change of one file. The key is a hash of the changed code without comments and layout."""

    key: str
    path: str
    line: int
    operator: str
    source: str
    diff: list[str]


def code(tree: ast.Module) -> str:
    """Return the code as text without annotations, except `Annotated` ones, whose bounds are read."""
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            hint = getattr(node, field, None)
            if hint is not None and "'Annotated'" not in ast.dump(hint):
                setattr(node, field, ast.Constant(None))
    return ast.dump(tree)


def binary_operators(tree: ast.Module) -> list[str]:
    return sorted(type(node.op).__name__ for node in ast.walk(tree) if isinstance(node, ast.BinOp))


def mutate(lines: list[str], node: Any, operator: Any, index: int) -> str:
    """Return the source with one node changed. Cosmic-ray's own function parses the file each time."""
    parent, node.parent = node.parent, None
    changed = copy.deepcopy(node)
    node.parent = changed.parent = parent
    changed = operator.mutate(changed, index)
    (top, left), (bottom, right) = node.start_pos, node.end_pos
    text = changed.get_code(include_prefix=False) if changed else ""
    return "".join([*lines[: top - 1], lines[top - 1][:left], text, lines[bottom - 1][right:], *lines[bottom:]])


def mutants_of(root: Path, name: str, left_out: Counter[str]) -> Iterator[Mutant]:
    """Yield the mutants of a file. Those that every test or no test would notice are only counted."""
    # Imported here because pytest collects doctests from this file, and the tests don't need cosmic-ray.
    from cosmic_ray.ast import ast_nodes, get_ast
    from cosmic_ray.plugins import get_operator, operator_names

    source = (root / name).read_text()
    nodes, lines = list(ast_nodes(get_ast(source))), [*source.splitlines(keepends=True), ""]
    operators, original = binary_operators(ast.parse(source)), code(ast.parse(source))
    for name_of_operator in operator_names():
        if get_operator(name_of_operator).arguments():  # replaces variables, which must be named, by random numbers
            continue
        operator = get_operator(name_of_operator)()
        _, old, new, *_ = (*name_of_operator.split("_"), "", "")
        for node, index in [(n, i) for n in nodes for i, _ in enumerate(operator.mutation_positions(n))]:
            if old in ARITHMETIC and new in BITS:
                left_out["arithmetic replaced by a bit operator, which no float has"] += 1
                continue
            mutated = mutate(lines, node, operator, index)
            try:
                tree = ast.parse(mutated)
            except SyntaxError:
                left_out["not Python"] += 1
                continue
            if old and "Binary" in name_of_operator and binary_operators(tree) == operators:
                left_out["no operator, but the star of a signature or call"] += 1
            elif (changed := code(tree)) == original:
                left_out["an annotation that nothing reads"] += 1
            else:
                diff = list(difflib.unified_diff(source.splitlines(), mutated.splitlines(), n=0, lineterm=""))[3:]
                key = hashlib.sha256(f"{name}\n{changed}".encode()).hexdigest()[:16]
                yield Mutant(key, name, node.start_pos[0], name_of_operator.removeprefix("core/"), mutated, diff)
