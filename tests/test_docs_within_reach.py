"""Answers to common questions are within two clicks of the first page, and each link leads to its page and heading."""

from __future__ import annotations

import re

import pytest

from tests.helpers import ROOT

DOCS = ROOT / "docs"
LINK = re.compile(r"\[[^\]]*\]\((?!\w+://)([^)#\s]*)(#[^)\s]*)?\)")


def pages_within(clicks: int) -> set[str]:
    """Return the pages of the site that so many links lead to from the first page."""
    reached = {"index.md"}
    for _ in range(clicks):
        targets = {target for page in reached for target, _ in LINK.findall((DOCS / page).read_text())}
        reached |= {target for target in targets if target.endswith(".md") and (DOCS / target).is_file()}
    return reached


# What somebody looks for -> words of its answer
ANSWERS = {
    "my GPU has 12 GB": r"12 GB",
    "my data has ties": r"`dpo_rk`|`dpo_davidson`",
    "the loss stays at 0.693": r"## .*0\.693",
    "what a run would do, without training": r"lint|memory",
    "my columns have other names": r"columns:",
    "resume after a crash": r"resume_from_checkpoint",
    "two GPUs": r"--num_processes|accelerate launch",
    "Ollama": r"GGUF|gguf",
}


@pytest.mark.parametrize("question", ANSWERS)
def test_an_answer_is_within_two_clicks(question):
    assert [page for page in pages_within(2) if re.search(ANSWERS[question], (DOCS / page).read_text())], question


def test_the_first_page_names_the_common_situations():
    first = (DOCS / "index.md").read_text()
    for words, page in (("12 GB", "memory.md"), ("ties", "choosing_a_loss.md"), ("0.693", "troubleshooting.md")):
        (row,) = [line for line in first.splitlines() if words in line and line.startswith("|")]
        assert page in row


def test_every_page_is_within_three_clicks_or_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    lost = {page.name for page in DOCS.glob("*.md")} - pages_within(3)
    assert not {page for page in lost if f": {page}" not in navigation}
