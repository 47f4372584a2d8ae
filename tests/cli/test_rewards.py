"""`trl-dpo-ext rewards`: the list, one entry, a mistake."""

from trl_dpo_ext.cli import main
from trl_dpo_ext.evaluation import list_rewards
from trl_dpo_ext.evaluation.judging.registration import JUDGES, register_judge


def test_the_list_has_each_reward_where_it_is_defined_and_the_other_forms(capsys):
    assert main(["rewards"]) == 0
    lines = capsys.readouterr().out.splitlines()
    (vader,) = [line for line in lines if line.startswith("vader ")]
    assert "VADER's compound sentiment score" in vader
    assert "builtin/vader.py:" in vader
    assert any("package.module:function, or endpoint:MODEL" in line for line in lines)


def test_one_reward(capsys):
    assert main(["rewards", "vader"]) == 0
    out = capsys.readouterr().out
    (spec,) = [spec for spec in list_rewards() if spec.name == "vader"]
    assert out.startswith("vader, a reward\nVADER's compound")
    assert "Hutto & Gilbert" in out
    assert "pip install 'trl-dpo-ext[demo]'" in out
    assert out.rstrip().endswith(spec.origin)


def test_judges_are_listed_too(capsys, monkeypatch):
    monkeypatch.setattr(JUDGES, "_entries", {})
    monkeypatch.setattr(JUDGES, "_aliases", {})

    @register_judge("coin", aliases=["flip"])
    def coin(prompts, firsts, seconds):
        """Says tie."""

    assert main(["rewards"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("coin ")]
    assert line.split()[1:3] == ["flip", "judge"]
    assert main(["rewards", "flip"]) == 0
    assert capsys.readouterr().out.startswith("coin (also flip), a judge\nSays tie.\n")


def test_a_mistake_is_a_sentence(capsys):
    assert main(["rewards", "vadr"]) == 2
    assert "Unknown reward or judge 'vadr'. Did you mean 'vader'?" in capsys.readouterr().err
