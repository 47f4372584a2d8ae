"""docs/losses.md and the README's table are what the registry says."""

from pathlib import Path

import pytest

from trl_dpo_ext import get_loss
from trl_dpo_ext.losses.loss_docs import (
    README_BEGIN,
    README_END,
    built_in,
    markdown_page,
    markdown_row,
    readme_table,
    update_readme,
    write_docs,
)

ROOT = Path(__file__).parents[2]
REMEDY = "Out of date with the registry. In the checkout's root, run: trl-dpo-ext losses --write-docs"


def test_the_page_is_in_step():
    assert (ROOT / "docs" / "losses.md").read_text(encoding="utf-8") == markdown_page(built_in()), REMEDY


def test_the_readme_is_in_step():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    if README_BEGIN not in text:
        pytest.skip("the README has no markers yet")
    assert text == update_readme(text, built_in()), REMEDY


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
    assert "**Departures.** The paper doesn't speak of length." in section
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


def test_update_readme_replaces_only_what_is_between_the_markers():
    text = f"before\n{README_BEGIN}\nold\n{README_END}\nafter\n"
    new = update_readme(text, built_in())
    assert new.startswith(f"before\n{README_BEGIN}\n\n| Reads |")
    assert new.endswith(f"|\n\n{README_END}\nafter\n")
    assert "old" not in new
    assert update_readme(new, built_in()) == new


@pytest.mark.parametrize(
    "text",
    ["", README_BEGIN, README_END, f"{README_END}{README_BEGIN}", f"{README_BEGIN}{README_BEGIN}{README_END}",
     f"{README_BEGIN}{README_END}{README_END}"],
)  # fmt: skip
def test_update_readme_refuses_broken_markers(text):
    with pytest.raises(
        ValueError, match=r"README\.md must hold <!-- losses:begin --> and, after it, <!-- losses:end -->"
    ):
        update_readme(text, built_in())


@pytest.mark.parametrize("markers", [False, True])
def test_write_docs(tmp_path, markers):
    (tmp_path / "docs").mkdir()
    text = f"# A\n{README_BEGIN}{README_END}\n" if markers else "# A\n"
    (tmp_path / "README.md").write_text(text)
    write_docs(tmp_path)
    assert (tmp_path / "docs" / "losses.md").read_text() == markdown_page(built_in())
    assert (tmp_path / "README.md").read_text() == (update_readme(text, built_in()) if markers else text)
