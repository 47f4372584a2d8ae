import sys

import pytest

from trl_dpo_ext.evaluation import RewardError, apply_reward, get_reward


def test_vader_scores_the_whole_text():
    # The sentences and scores in the documentation of vaderSentiment, cut in two.
    prompts = ["VADER is smart,", "VADER is VERY SMART,", "A really bad,", "At least it isn't a"]
    completions = [" handsome, and funny.", " handsome, and FUNNY!!!", " horrible book.", " horrible book."]
    assert get_reward("vader")(prompts, completions) == [0.8316, 0.9342, -0.8211, 0.431]


def test_vader_without_its_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "vaderSentiment", None)
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(RewardError, match=r"pip install 'trl-dpo-ext\[demo\]'"):
        get_reward("vader")


@pytest.fixture
def my_rewards(tmp_path, monkeypatch):
    (tmp_path / "my_rewards.py").write_text(
        "LENGTH = 3\ndef length(prompts, completions):\n    return [len(c) for c in completions]\n"
    )
    (tmp_path / "broken_rewards.py").write_text("import a_module_nobody_wrote\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("my_rewards")
def test_dotted_path():
    assert apply_reward(get_reward("my_rewards:length"), ["a", "b"], [" c", " de"]) == [2.0, 3.0]


@pytest.mark.usefixtures("my_rewards")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vadre", "'vadre'. Did you mean 'vader'"),
        ("my_rewards:lenght", "doesn't exist. Did you mean 'length'"),
        ("my_rewards:LENGTH", "'LENGTH' .* is not a function"),
        ("no_such_module:f", "can't import 'no_such_module'"),
        ("broken_rewards:f", "a_module_nobody_wrote"),
        (":f", "can't import ''"),
        ("nowhere/to/be/found", "'nowhere/to/be/found' can't be loaded"),
    ],
)
def test_unusable_names(name, message):
    with pytest.raises(RewardError, match=message):
        get_reward(name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "1 values for 2 completions"),
        ([1.0, float("nan")], r"completion 1 is nan.*' d'"),
        ([float("inf"), 1.0], "completion 0 is inf"),
    ],
)
def test_rewards_are_checked(values, message):
    with pytest.raises(RewardError, match=message):
        apply_reward(lambda prompts, completions: values, ["a", "b"], [" c", " d"])
