"""`trl-dpo-ext converters`: the list, one converter, a name that doesn't exist."""

from __future__ import annotations

from trl_dpo_ext.cli import main
from trl_dpo_ext.data import get_converter, list_converters


def test_the_list_names_each_with_its_line_and_place(capsys):
    assert main(["converters"]) == 0
    out = capsys.readouterr().out
    for converter in list_converters():
        assert converter.name in out
        assert converter.summary.split()[0] in out
        assert f"data/converters/{converter.name}.py:" in out
    assert f"{len(list_converters())} converters." in out


def test_one_converter(capsys):
    assert main(["converters", "nectar"]) == 0
    out = capsys.readouterr().out
    for part in ("berkeley-nest/Nectar", "prompt, answers", "dataset_converter: nectar", "converters/nectar.py:"):
        assert part in out
    assert "Written for: `prompt`, a transcript" in out
    assert get_converter("nectar").summary in out


def test_an_unknown_name(capsys):
    assert main(["converters", "nektar"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Unknown converter 'nektar'. Did you mean 'nectar'?" in err
    assert "`trl-dpo-ext converters` lists all" in err
