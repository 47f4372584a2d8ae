"""Every `trl-dpo-ext` command in README, docs and recipes parses, and the messages that the docs name exist."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from trl import ModelConfig

from tests.helpers import ROOT
from trl_dpo_ext.cli import make_parser
from trl_dpo_ext.run import RecipeArguments
from trl_dpo_ext.run.recipe_files import find_recipe
from trl_dpo_ext.training import PreferenceConfig

PAGES = [ROOT / "README.md", ROOT / "recipes" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
RECIPE_KEYS = {f.name for kind in (RecipeArguments, PreferenceConfig, ModelConfig) for f in fields(kind)}
# A word in capitals stands for a value of the reader's.
NUMBERS = {"GB": "24", "K": "2", "N": "2", "TOKENS": "64"}


def commands(path: Path) -> list[str]:
    """The commands of a page: in blocks, and in code spans that name at least one argument."""
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    lines = re.findall(r"^ *(?:\$ )?(trl-dpo-ext .*)$", text, flags=re.MULTILINE)
    spans = re.findall(r"`(trl-dpo-ext [a-z-]+ [^`\n]+)`", text)
    return [line.partition("  #")[0].partition(" # ")[0].strip() for line in [*lines, *spans]]


ALL = [pytest.param(line, id=f"{path.name}: {line}") for path in PAGES for line in dict.fromkeys(commands(path))]


def test_there_are_commands():
    assert len(ALL) > 35


@pytest.mark.parametrize("command", ALL)
def test_a_documented_command_parses(command, monkeypatch):
    def error(self, message):
        raise AssertionError(f"{command}: {message}")

    monkeypatch.setattr(argparse.ArgumentParser, "error", error)
    words = [NUMBERS.get(word, word) for word in shlex.split(command)[1:] if word not in ("...", "[NAME]")]
    arguments, rest = make_parser().parse_known_args(words)
    options = [word.lstrip("-").partition("=")[0] for word in rest if word.startswith("--")]
    assert not rest or getattr(arguments, "takes_options", False), f"{command}: {rest} are unknown"
    assert set(options) <= RECIPE_KEYS, f"{command}: {sorted(set(options) - RECIPE_KEYS)} are no keys of a recipe"
    config = getattr(arguments, "config", None)
    if (
        words[0] == "train"
        and isinstance(config, str)
        and "<" not in config
        and "/" in config
        and not (ROOT / config).exists()
    ):
        find_recipe(config)


def literals() -> list[str]:
    """All texts in the package's source, f-strings with their values as "{}"."""
    found = []
    for path in (ROOT / "trl_dpo_ext").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "{}" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_the_messages_of_the_troubleshooting_page_exist():
    page = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|", page.partition("## Messages")[2], flags=re.MULTILINE)
    assert len(rows) >= 8
    texts = literals()
    for row in rows:
        for message in re.findall(r"`([^`]+)`", row):
            for part in message.split(" ... "):
                assert any(part in text for text in texts), f"no message of the package has {part!r}"
