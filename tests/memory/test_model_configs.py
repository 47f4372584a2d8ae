"""The configs that come with the package: published sizes, exact names only, one for every recipe."""

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from tests.helpers import ROOT
from trl_dpo_ext.memory import UnknownModelError, known_models, load_model_config, short_names
from trl_dpo_ext.memory.model_configs import CONFIGS

# From the models' cards or papers: all parameters, embeddings included.
PARAMETERS = {
    "openai-community/gpt2-large": 774_030_080,
    "EleutherAI/gpt-j-6b": 6_050_882_784,
    "EleutherAI/pythia-2.8b": 2_775_208_960,
    "EleutherAI/pythia-6.9b": 6_857_302_016,
    "meta-llama/Llama-3.1-8B": 8_030_261_248,
    "Qwen/Qwen2.5-0.5B": 494_032_768,
    "Qwen/Qwen3-8B": 8_190_735_360,
    "HuggingFaceTB/SmolLM2-135M": 134_515_008,
}


@pytest.mark.parametrize("name", [path.parent.relative_to(CONFIGS).as_posix() for path in CONFIGS.rglob("config.json")])
def test_configs_have_the_published_number_of_parameters(name):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(load_model_config(name))
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("Qwen/Qwen3-8B-Base", 36),
        ("qwen3-8b", 36),
        ("meta-llama/Llama-3.1-8B-Instruct", 32),
        ("openai-community/gpt2-large", 36),
        ("HuggingFaceTB/SmolLM2-135M-Instruct/", 30),
    ],
)
def test_other_names_of_the_same_shape(name, layers):
    assert load_model_config(name).get_text_config().num_hidden_layers == layers


def test_a_folder_comes_before_a_known_name(tiny_model_dir, tmp_path, monkeypatch):
    assert load_model_config(tiny_model_dir).hidden_size == 32
    monkeypatch.chdir(tmp_path)
    (tmp_path / "qwen3-8b").symlink_to(tiny_model_dir)
    assert load_model_config("qwen3-8b").hidden_size == 32


@pytest.mark.parametrize(
    "name", ["someone/qwen3-8b-vl-thinking", "someone/qwen3-8b", "qwen3-8b-base", "outputs/gpt-j-6b-tldr-sft_merged2"]
)
def test_a_name_that_only_looks_like_a_known_one_is_unknown(name):
    with pytest.raises(UnknownModelError, match=f"'{name}'"):
        load_model_config(name)


def test_an_unknown_name_says_what_is_known():
    with pytest.raises(UnknownModelError, match=r"'somebody/llama-3.2-8b'.*Did you mean 'llama-3.1-8b'.*--model NAME"):
        load_model_config("somebody/llama-3.2-8b")
    assert len(short_names()) == len(PARAMETERS)


RECIPES = sorted(
    path for path in (ROOT / "recipes").rglob("*.yaml") if "model_name_or_path" in yaml.safe_load(path.read_text())
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_the_model_of_every_recipe_is_known(path):
    assert yaml.safe_load(path.read_text())["model_name_or_path"] in known_models()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(ROOT / "recipes")))
def test_the_folder_of_a_first_stage_has_the_shape_of_its_model(path):
    """Follow a recipe to the one beside it that writes its model."""
    name = yaml.safe_load(path.read_text())["model_name_or_path"]
    if not name.startswith("outputs/"):
        return
    stages = [yaml.safe_load(other.read_text()) for other in path.parent.glob("*.yaml")]
    # `sft_qlora.yaml` writes an adapter to ..._qlora, which `trl-dpo-ext merge` turns into ..._merged.
    written = {stage.get("output_dir"): stage.get("model_name_or_path") for stage in stages}
    first = written.get(name) or written[name.replace("_merged", "_qlora")]
    assert known_models()[name] == known_models()[first]
