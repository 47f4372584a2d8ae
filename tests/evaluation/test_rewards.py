import sys
import textwrap
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_python
from trl_dpo_ext.evaluation import (
    RewardError,
    apply_reward,
    get_reward,
    list_judges,
    list_rewards,
    register_judge,
    register_reward,
    reward_forms,
)
from trl_dpo_ext.evaluation.judging import builtin
from trl_dpo_ext.registry import NameCollisionError, RegistryError


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


def test_help_texts_name_what_is_registered():
    """A new reward is one file: no help text lists the names by hand."""
    assert reward_forms().startswith("vader, a classifier")
    code = """
        from trl_dpo_ext.evaluation import register_judge, register_reward
        register_reward("brevity")(lambda prompts, completions: [0.0])
        register_judge("coin")(lambda prompts, firsts, seconds: [0.5])
        from trl_dpo_ext.cli import main
        main(["eval", "win-rate", "--help"])
    """
    shown = " ".join(run_python("-c", textwrap.dedent(code)).split())
    assert "coin, brevity, vader, a classifier" in shown


def test_listing_rewards_loads_no_torch():
    code = "import sys; from trl_dpo_ext.evaluation import reward_forms; reward_forms(); print('torch' in sys.modules)"
    assert run_python("-c", code).strip() == "False"


def test_every_file_of_the_built_in_folder_registers_something():
    files = {path.stem for path in Path(builtin.__file__).parent.glob("[!_]*.py")}
    assert {Path(spec.origin.rpartition(":")[0]).stem for spec in [*list_rewards(), *list_judges()]} == files


PLUGIN = """
    from trl_dpo_ext.evaluation import register_judge, register_reward

    @register_reward("brevity", aliases=["short"])
    def brevity(prompts, completions):
        "Minus the number of characters."
        return [-len(completion) for completion in completions]

    @register_judge("first_wins")
    def first_wins(prompts, firsts, seconds):
        return [1] * len(firsts)

    @register_reward("picky", requires=("a_module_nobody_has", "picky-package"))
    def picky(prompts, completions):
        return [0.0] * len(completions)
"""


@pytest.fixture
def plugin(tmp_path):
    """Run code where another distribution announces rewards and judges; return what it prints."""
    (tmp_path / "other_rewards.py").write_text(textwrap.dedent(PLUGIN))
    info = tmp_path / "other_rewards-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other-rewards\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text(
        "[trl_dpo_ext.rewards]\nbrevity = other_rewards\npicky = other_rewards\nbroken = nowhere\n"
        "[trl_dpo_ext.judges]\nfirst_wins = other_rewards\n"
    )
    environment = {"PYTHONPATH": f"{ROOT}:{tmp_path}"}
    return lambda code: run_python("-c", textwrap.dedent(code), env=environment).strip()


def test_rewards_and_judges_of_another_distribution(plugin):
    code = """
        import sys, warnings
        from trl_dpo_ext.evaluation import RewardError, get_judge, get_reward, list_judges, list_rewards, reward_forms
        assert reward_forms().startswith("brevity, broken, picky, vader, "), reward_forms()
        get_reward("vader")
        assert "other_rewards" not in sys.modules, "another name loads nothing"
        assert get_reward("brevity")(["p"], ["abc"]) == [-3]
        assert get_reward("short") is get_reward("brevity")
        assert get_judge("brevity")(["p"], ["a"], ["ab"]) == [1.0]
        assert get_judge("first_wins")(["p"], ["a"], ["ab"]) == [1]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = {spec.name: spec for spec in [*list_rewards(), *list_judges()]}
        assert "'broken' is announced by 'nowhere'" in str(caught[0].message)
        assert found["brevity"].summary == "Minus the number of characters."
        assert found["brevity"].origin.endswith("other_rewards.py:4"), found["brevity"].origin
        for name, message in (
            ("picky", "The reward 'picky' needs a_module_nobody_has: pip install 'picky-package'."),
            ("broken", "The reward 'broken' is announced by 'nowhere' of other-rewards 1.2, which can't be loaded"),
            ("brevty", "Unknown reward 'brevty'. Did you mean 'brevity' or 'broken'?"),
        ):
            try:
                get_reward(name)
            except RewardError as error:
                assert str(error).startswith(message), error
            else:
                raise AssertionError(name)
        try:
            get_judge("first_win")
        except RewardError as error:
            assert "Judges: first_wins. Did you mean 'first_wins'?" in str(error), error
            print("done")
    """
    assert plugin(code) == "done"


def test_a_name_means_one_thing():
    with pytest.raises(NameCollisionError, match="The reward name 'vader' is taken"):
        register_reward("vader")(lambda prompts, completions: [])
    with pytest.raises(RegistryError, match=r"The judge name 'vader' .* is already the name of a reward"):
        register_judge("vader")(lambda prompts, firsts, seconds: [])
    assert [spec.name for spec in list_judges()] == []
