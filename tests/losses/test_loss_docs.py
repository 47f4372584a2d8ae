"""The generated pages and blocks are what the registry says."""

import re

import pytest

from tests.helpers import ROOT
from trl_dpo_ext import get_loss
from trl_dpo_ext.losses.loss_docs import (
    built_in,
    generated,
    markdown_page,
    markdown_row,
    readme_table,
    update_block,
    without_advice,
    write_docs,
)


@pytest.mark.parametrize("path", ["docs/losses.md", "docs/choosing_a_loss.md", "README.md"])
def test_generated_text_is_up_to_date(path):
    message = f"{path} is out of date. In the checkout's root, run: trl-dpo-ext losses --write-docs"
    assert (ROOT / path).read_text(encoding="utf-8") == generated(ROOT)[ROOT / path], message


def test_every_loss_has_a_row_and_a_section():
    page = markdown_page(built_in())
    for spec in built_in():
        assert page.count(f"\n| [`{spec.name}`](#{spec.name}) |") == 1
        assert page.count(f"\n## {spec.name}\n") == 1


def test_a_section_has_everything():
    page = markdown_page([get_loss("pro"), get_loss("ipo"), get_loss("mppo")])
    section = page.partition("## ipo\n")[2].partition("## mppo")[0]
    spec = get_loss("ipo")
    assert spec.sections["Equation"] in section
    assert "| `tau` | float | 0.1 | > 0 | strength of the regularisation; the target margin is 1 / (2 tau)" in section
    assert "- TRL's `beta` sets `tau`.\n" in section
    assert "- `sppo_hard` minus its constant" in section
    assert "**Departures.** The paper doesn't mention length." in section
    assert "Defined in `trl_dpo_ext/losses/families/non_logistic.py`." in section
    assert "| Hyperparameter |" not in page.partition("## mppo\n")[2]
    assert "| [`ipo`](#ipo) |  | pairs | yes | yes |  | [2310.12036](https://arxiv.org/abs/2310.12036) |" in page


def test_a_bar_in_a_cell_does_not_end_it():
    assert markdown_row(["|w| > 0"]) == "| \\|w\\| > 0 |"


def test_the_readme_table_has_every_loss_once():
    table = readme_table(built_in())
    assert sorted(table.split("`")[1::2]) == [spec.name for spec in built_in()]
    count = sum(spec.listwise and spec.reference_free for spec in built_in())
    assert f"| Rankings, no reference ({count}) |" in table


def test_a_loss_that_the_page_does_not_name_is_listed():
    specs = [get_loss("dpo"), get_loss("simpo")]
    text = without_advice("Start with `dpo`.", specs)
    assert text.splitlines()[-1].startswith("| [`simpo`](losses.md#simpo) | SimPO: ")
    assert "`dpo`" not in text
    assert without_advice("`dpo`, `simpo`", specs) == ""


BEGIN, END = "<!-- losses:begin -->", "<!-- losses:end -->"


def test_update_block_replaces_only_what_is_between_the_markers():
    text = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    assert update_block(text, "losses", "new") == f"before\n{BEGIN}\n\nnew\n\n{END}\nafter\n"
    assert update_block(text, "losses", "") == f"before\n{BEGIN}\n{END}\nafter\n"
    new = update_block(text, "losses", readme_table(built_in()))
    assert update_block(new, "losses", readme_table(built_in())) == new


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_update_block_refuses_broken_markers(text):
    with pytest.raises(ValueError, match="The text must hold <!-- losses:begin --> and, after it, <!-- losses:end -->"):
        update_block(text, "losses", "new")


def test_write_docs_says_what_changed(tmp_path):
    (tmp_path / "docs").mkdir()
    pages = [tmp_path / "docs" / "losses.md", tmp_path / "README.md", tmp_path / "docs" / "choosing_a_loss.md"]
    pages[1].write_text(f"# A\n{BEGIN}{END}\n")
    pages[2].write_text("`dpo`\n<!-- other losses:begin --><!-- other losses:end -->\n")
    assert write_docs(tmp_path) == pages
    assert pages[0].read_text() == markdown_page(built_in())
    assert pages[1].read_text() == update_block(f"# A\n{BEGIN}{END}\n", "losses", readme_table(built_in()))
    assert pages[2].read_text().count("| [`") == len(built_in()) - 1
    assert write_docs(tmp_path) == []


def test_the_readme_counts_the_losses():
    (count,) = re.findall(r"a registry of (\d+) losses", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert int(count) == len(built_in())
