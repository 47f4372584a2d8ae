"""A recipe that came with a model or a run never runs code by itself; your own does."""

from pathlib import Path

import pytest

from trl_dpo_ext.parsing import ParseError
from trl_dpo_ext.run import parse_recipe
from trl_dpo_ext.run.recipe_memory import read_memory_setup
from trl_dpo_ext.strict_yaml import dump_yaml

BESIDE = ["adapter_config.json", "config.json", "result.json", "reference.json", "merge.json"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder whose module leaves a mark when it is imported; the current folder, and thus importable."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_module.py").write_text("open('ran', 'w').close()\ndef reward(p, c): return [0.0] * len(c)\n")
    yield tmp_path
    import sys

    sys.modules.pop("evil_module", None)


def recipe(folder, **settings):
    given = {"model_name_or_path": "nowhere/m", "dataset_name": "nowhere/d", "output_dir": "out", "bf16": False}
    (folder / "recipe.yaml").write_text(dump_yaml({**given, "use_cpu": True, "report_to": "none", **settings}))
    return ["--config", str(folder / "recipe.yaml")]


@pytest.mark.parametrize("beside", BESIDE)
def test_a_pulled_recipe_imports_nothing(beside, folder):
    (folder / beside).write_text("{}")
    given = recipe(folder, import_module=["evil_module"])
    with pytest.raises(ParseError, match="If you trust it, give --import_module on the command line") as caught:
        parse_recipe(given)
    assert beside in str(caught.value)
    with pytest.raises(ParseError, match="import_module"):
        read_memory_setup(given[1])
    assert not (folder / "ran").exists()


@pytest.mark.parametrize(
    "setting",
    [
        {"reward": "evil_module:reward"},
        {"trust_remote_code": True},
        {"model_init_kwargs": {"trust_remote_code": True}},
        {"env": {"LD_PRELOAD": "x.so"}},
    ],
    ids=lambda setting: next(iter(setting)),
)
def test_nor_does_anything_else_that_runs_code(setting, folder):
    (folder / "result.json").write_text("{}")
    with pytest.raises(ParseError, match=next(iter(setting))):
        parse_recipe(recipe(folder, **setting))
    assert not (folder / "ran").exists()


def test_a_link_into_a_snapshot_is_pulled_too(folder):
    blobs, snapshot, own = folder / "blobs", folder / "snapshot", folder / "own"
    for place in (blobs, snapshot, own):
        place.mkdir()
    recipe(blobs, import_module=["evil_module"])
    (snapshot / "adapter_config.json").write_text("{}")
    (snapshot / "recipe.yaml").symlink_to(blobs / "recipe.yaml")
    (own / "linked").symlink_to(snapshot)
    for path in (snapshot / "recipe.yaml", own / "linked" / "recipe.yaml"):
        with pytest.raises(ParseError, match="import_module"):
            parse_recipe(["--config", str(path)])
    assert not (folder / "ran").exists()


def test_what_the_command_line_asks_for_runs(folder):
    (folder / "result.json").write_text("{}")
    parse_recipe([*recipe(folder, import_module=["evil_module"]), "--import_module", "evil_module"])
    assert (folder / "ran").exists()


def test_your_own_recipe_runs_what_it_names(folder):
    parse_recipe(recipe(folder, import_module=["evil_module"], env={"TRL_DPO_EXT_TEST": "1"}))
    assert (folder / "ran").exists()


def test_a_pulled_recipe_without_code_is_a_recipe(folder):
    (folder / "result.json").write_text("{}")
    assert parse_recipe(recipe(folder, reward="endpoint:judge")).arguments.reward == "endpoint:judge"
    assert not Path("ran").exists()
