"""`trl-dpo-ext losses`: the table, its filters, one loss, an unknown loss."""

import pytest

from trl_dpo_ext import get_loss, list_losses
from trl_dpo_ext.cli import main


def run(capsys, *arguments: str) -> str:
    assert main(arguments) == 0
    return capsys.readouterr().out


def names_in(table: str) -> list[str]:
    rows = table.partition("\n\n")[0].splitlines()[1:]
    return [row.split()[0] for row in rows if not row.startswith(" ")]


def test_the_table_has_each_loss_and_its_facts(capsys):
    out = run(capsys, "losses")
    header, *_ = out.splitlines()
    assert header.split() == ["name", "aliases", "K", "reference", "length-normalised", "reads", "paper", "summary"]
    assert names_in(out) == [spec.name for spec in list_losses()]
    line = next(line for line in out.splitlines() if line.startswith("pro "))
    assert line.split()[:6] == ["pro", "list", "no", "yes", "scores", "2306.17492"]
    assert "Preference Ranking Optimization" in line
    line = next(line for line in out.splitlines() if line.startswith("dpo "))
    assert line.split()[:5] == ["dpo", "sigmoid", "pairs", "yes", "no"]
    assert f"{len(list_losses())} losses." in out


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--reference-free"], lambda s: s.reference_free),
        (["--with-reference"], lambda s: not s.reference_free),
        (["--listwise"], lambda s: s.listwise),
        (["--pairwise"], lambda s: not s.listwise),
        (["--length-normalized"], lambda s: s.length_normalized),
        (["--reads", "scores"], lambda s: "scores" in s.needs),
        (["--reads", "ties"], lambda s: "ties" in s.needs),
        (["--reads", "batch"], lambda s: s.couples_batch or s.statistic),
        (
            ["--listwise", "--reference-free", "--reads", "scores"],
            lambda s: s.listwise and s.reference_free and "scores" in s.needs,
        ),
        (["--reads", "token_logps"], lambda s: "token_logps" in s.needs),
    ],
)
def test_filters(capsys, options, wanted):
    expected = [spec.name for spec in list_losses() if wanted(spec)]
    assert names_in(run(capsys, "losses", *options)) == expected


def test_one_loss(capsys):
    out = run(capsys, "losses", "exo_pair")
    spec = get_loss("exo_pair")
    assert out.startswith(f"exo_pair\n{spec.summary}\n")
    for section in ("Equation", "Returns", "Reference", "Departures", "Relations"):
        assert f"\n{section}\n{spec.sections[section]}\n" in out
    assert "label_smoothing  float  0.001    > 0, < 0.5  probability that the smoothed label" in out
    assert "\nRequirements\nPairs; any K, through `pairing`.\nA reference model, or its cached log-probs.\n" in out
    assert "TRL's `label_smoothing` sets `label_smoothing`." in out
    assert out.rstrip().endswith(spec.origin)


def test_one_loss_by_its_alias_and_without_hyperparameters(capsys):
    assert run(capsys, "losses", "s_dpo").startswith("softmax_dpo (also s_dpo)\n")
    assert "\nHyperparameters\nNone.\n" in run(capsys, "losses", "mppo")


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("odpo", "The data's scores."),
        ("dpo_rk", "Tied responses form pairs too."),
        ("aot", "Couples the prompts of an optimizer step"),
        ("bco", "A mean over training, which the trainer keeps"),
        ("beta_dpo", "A moving average (momentum 0.9), which the trainer keeps"),
        ("dpo", "Works with any `f_divergence_type`."),
        ("simpo", "No reference model."),
        ("pro", "A ranking of two or more responses."),
        ("plackett_luce", "top_k  int or null  null     >= 1    use only"),
    ],
)
def test_requirements(capsys, name, sentence):
    assert sentence in run(capsys, "losses", name)


def test_an_unknown_loss_is_one_line_with_suggestions(capsys):
    assert main(["losses", "simp"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "error: Unknown loss 'simp'. Did you mean 'simpo' or 'simper' or 'cpo_simpo'? `trl-dpo-ext losses` lists all.\n"
    )


def test_write_docs_asks_for_a_checkout(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["losses", "--write-docs"]) == 2
    assert capsys.readouterr().err == "There is no docs/losses.md here. Run this in the root of a checkout.\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "losses.md").write_text("old")
    (tmp_path / "docs" / "choosing_a_loss.md").write_text("<!-- other losses:begin --><!-- other losses:end -->")
    (tmp_path / "README.md").write_text("<!-- losses:begin --><!-- losses:end -->")
    assert run(capsys, "losses", "--write-docs") == "Updated: docs/losses.md, README.md, docs/choosing_a_loss.md.\n"
    assert run(capsys, "losses", "--write-docs") == "Everything is up to date.\n"
