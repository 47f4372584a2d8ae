"""docs/choosing_a_loss.md names only losses that exist, and gives a source for each recommendation."""

import re
from pathlib import Path

import torch

from trl_dpo_ext import PreferencePairs, get_loss
from trl_dpo_ext.losses.loss_docs import built_in, split_block

# Without the generated block on the losses that the page doesn't recommend yet.
PAGE = "".join(
    split_block((Path(__file__).parents[1] / "docs" / "choosing_a_loss.md").read_text(encoding="utf-8"), "other losses")
)
ROWS = [
    line for line in PAGE.splitlines() if line.startswith("| ") and " --- " not in line and "| source |" not in line
]
OTHER_WORDS = {
    "beta",
    "top_k",
    "humanline",
    "sync_ref_model",
    "ld_alpha",
    "pairing",
    "all",
    "best_vs_worst",
    "logps",
    "f_divergence_type",
    "label_smoothing",
    "loss_type",
}


def recommended(row: str) -> list[str]:
    return re.findall(r"`(\w+)`", row.split(" | ")[1])


def test_it_recommends_only_losses_that_exist():
    named = {get_loss(name).name for row in ROWS for name in recommended(row) if name not in OTHER_WORDS}
    assert named <= {spec.name for spec in built_in()}
    assert len(named) > 40


def test_every_recommendation_has_a_source():
    for row in ROWS:
        source = row.split(" | ")[2]
        assert "by construction" in source or re.search(r"\(https://arxiv.org/abs/\d{4}\.\d{5}\)", source), row


def test_the_source_is_the_loss_s_own_paper():
    for row in ROWS:
        papers = set(re.findall(r"abs/(\d{4}\.\d{5})", row))
        for name in recommended(row):
            if name not in OTHER_WORDS and "the same" not in row:
                paper = get_loss(name).paper
                assert paper in papers or not paper.replace(".", "").isdigit() or "by construction" in row, (name, row)


def test_link_texts_are_the_ids_linked_to():
    links = re.findall(r"\[(\d{4}\.\d{5})\]\(https://arxiv.org/abs/(\d{4}\.\d{5})\)", PAGE)
    assert len(links) > 30
    assert all(text == target for text, target in links)


def test_the_defaults_it_quotes():
    assert get_loss("simpo").hyperparameters["beta"].default == 2
    assert get_loss("cal_dpo").hyperparameters["beta"].default == 0.002
    assert get_loss("plackett_luce").hyperparameters["top_k"].default is None
    assert "clipped" in get_loss("minor_dpo").metrics(PreferencePairs(*[torch.zeros(1)] * 6), beta=0.1)
