"""The card: made from a run's files alone, with valid metadata; and the example in docs/."""

import json

import pytest
from huggingface_hub import HfApi, ModelCard

from tests.hub import support
from tests.hub.make_example import CARD, example_card
from trl_dpo_ext.cli import main
from trl_dpo_ext.hub import RunError, make_card, read_run, write_card
from trl_dpo_ext.losses import get_loss

BASE = "HuggingFaceTB/SmolLM2-135M-Instruct"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, tiny_model_dir):
    folder = support.save_adapter(tmp_path_factory.mktemp("pristine"), tiny_model_dir)
    support.add_record(folder)
    return folder


@pytest.fixture
def run(pristine, tmp_path):
    return support.copy(pristine, tmp_path / "run")


def test_the_example_is_the_card_of_the_quickstart_run():
    # When the card's code has changed: python -m tests.hub.make_example
    card = example_card()
    assert CARD.read_text() == card
    for part in (
        get_loss("plackett_luce").sections["Equation"],
        "- `beta`: 0.1",
        "https://arxiv.org/abs/2305.18290",
        "Fingerprint of its weights",
        "accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/train.py",
        "| mean reward |",
        "AutoPeftModelForCausalLM.from_pretrained",
        "vllm serve",
    ):
        assert part in card, part


def test_its_metadata_is_what_the_hub_reads(hub, run):
    text = make_card(run, base_model=BASE, repo="me/mine")
    HfApi()._validate_yaml(text)  # by the stand-in's rules
    data = ModelCard(text).data
    assert data.base_model == BASE
    assert data.library_name == "peft"
    assert {"trl", "peft", "trl-dpo-ext", "plackett_luce"} <= set(data.tags)
    values = {result.metric_type: result.metric_value for result in data.eval_results}
    assert values == {"reward": 0.25, "reward_before": 0.25, "kl": 3.5}
    # A path on this machine is no base model to the Hub; the card of the local folder names none.
    local = make_card(run)
    assert ModelCard(local).data.base_model is None
    HfApi()._validate_yaml(local)
    with pytest.raises(ValueError, match="is not valid"):
        HfApi()._validate_yaml(text.replace(f"base_model: {BASE}", "base_model: /tmp/model"))


def test_facts_of_the_run(run):
    card = make_card(run)
    for fact in ("| peak memory | 1.5 process GiB |", "| rows | 12 training |", "| time | 1 min 1 s |"):
        assert fact in card
    assert "| linter | duplicate-row in train: 2 |" in card


def test_the_win_rate_stands_there_where_it_was_recorded(run):
    assert "win rate" not in make_card(run)
    result = json.loads((run / "result.json").read_text())
    rate = {"mean": 0.75, "low": 0.5, "high": 0.9, "level": 0.95}
    result["evaluation"]["win_rate"] = {"rate": rate, "wins": 3, "losses": 1, "ties": 0, "no_verdict": 0}
    (run / "result.json").write_text(json.dumps(result))
    (line,) = (line for line in make_card(run).splitlines() if "win rate" in line)
    assert line.endswith("| | 0.750 [0.500, 0.900] | |")


def test_text_of_samples_can_not_break_the_table(run):
    result = json.loads((run / "result.json").read_text())
    result["evaluation"]["after"]["samples"][0]["completion"] = "a | b\n\n# <b>no heading</b>"
    (run / "result.json").write_text(json.dumps(result))
    (line,) = (line for line in make_card(run).splitlines() if "no heading" in line)
    assert line.startswith("| the film | ")
    assert r"a \| b # \<b\>no heading\</b\> (+0.500) |" in line


def test_a_quantized_base_is_loaded_as_in_training(run):
    card = make_card(run, base_model=BASE)
    assert "BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type='nf4')" in card
    assert "--quantization bitsandbytes" in card
    assert "it is another model" in card
    result = json.loads((run / "result.json").read_text())
    result["base"]["quantization"] = None
    (run / "result.json").write_text(json.dumps(result))
    card = make_card(run, base_model=BASE)
    assert "BitsAndBytesConfig" not in card
    assert "bitsandbytes" not in card


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"use_dora": True}, "DoRA"), ({"modules_to_save": ["lm_head"]}, "modules_to_save"), ({"bias": "all"}, "biases")],
)
def test_what_vllm_does_not_take_is_to_be_merged_first(run, change, reason):
    support.edit_json(run / "adapter_config.json", **change)
    card = make_card(run, base_model=BASE)
    assert "vllm serve" not in card
    assert reason in card


def test_a_folder_without_a_record_still_gets_a_card(run):
    for name in ("result.json", "recipe.yaml", "reference.json", "curves.png"):
        (run / name).unlink()
    assert "Not recorded." in make_card(run, base_model=BASE)


def test_a_merged_model(run):
    (run / "adapter_config.json").rename(run / "config.json")
    difference = {"positions": 9, "kl_mean": 2e-6, "kl_max": 3e-5, "logit_difference_max": 0.01, "same_top1": 1.0}
    merge = {
        "into": "original",
        "base_model": BASE,
        "quantization": support.NF4,
        "prompts": 2,
        "difference": difference,
    }
    (run / "merge.json").write_text(json.dumps(merge))
    card = make_card(run)
    assert "KL 2.00e-06 nats" in card
    assert "this is not the model that was trained" in card
    assert ModelCard(card).data.library_name == "transformers"


def test_it_can_be_written_again(run, capsys):
    write_card(run, base_model=BASE)
    first = (run / "README.md").read_text()
    (run / "README.md").unlink()
    assert main(["card", str(run), "--base-model", BASE]) == 0
    assert (run / "README.md").read_text() == first
    support.edit_json(run / "result.json", format=99)
    with pytest.raises(RunError, match="format 99"):
        make_card(run)
    assert main(["card", str(run)]) == 2
    assert "pip install -U trl-dpo-ext" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("path", "text", "expected"),
    [
        (
            "/models/smol",
            "launch --model_name_or_path /models/smol --seed 0",
            f"launch --model_name_or_path {BASE} --seed 0",
        ),
        ("/models/smol", "/models/smol", BASE),
        ("/models/smol", "the base model '/models/smol' with", f"the base model '{BASE}' with"),
        ("/models/smol", "/models/smol-out and /models/smol/x", "/models/smol-out and /models/smol/x"),
        ("model", "the base model 'model' with", f"the base model '{BASE}' with"),
        ("model", "model", BASE),
    ],
)
def test_local_paths_of_the_base_become_its_name(run, path, text, expected):
    support.edit_json(run / "adapter_config.json", base_model_name_or_path=path)
    support.edit_json(run / "result.json", launch=text, other=[{"deep": text}])
    seen = read_run(run).on(BASE, "abc")
    assert seen.result["launch"] == expected
    assert seen.result["other"] == [{"deep": expected}]
    assert (seen.adapter["base_model_name_or_path"], seen.adapter["revision"]) == (BASE, "abc")
    assert seen.recipe["model_name_or_path"] == seen.result["recipe"]["model_name_or_path"] == BASE
