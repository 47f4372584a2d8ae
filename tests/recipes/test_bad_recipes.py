"""What is wrong with a recipe, its data or its folders is reported in a sentence, and nothing is written.

One table: what is made wrong, and what the message must name. (Rows and columns: tests/training/test_bad_input.py.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import Trainer

from tests.helpers import pair_rows, ranked_rows
from trl_dpo_ext.run import USER_ERRORS, missing_packages, parse_recipe, train_recipe
from trl_dpo_ext.run.metric_names import evaluation_metrics

GOOD = json.dumps(ranked_rows(1)[0])


class Place:
    """A folder with a good recipe, dataset and model, of which a case breaks one thing."""

    def __init__(self, folder: Path, model: str) -> None:
        self.folder = folder
        self.model = folder / "model"
        shutil.copytree(model, self.model)
        self.data = folder / "data"
        self.data.mkdir()
        self.write("data/train.jsonl", "\n".join(map(json.dumps, ranked_rows(6))))
        self.write("data/test.jsonl", "\n".join(map(json.dumps, ranked_rows(2, seed=1))))
        self.out = folder / "out"
        self.text: str | bytes | None = None
        self.arguments = ["--config", "recipe.yaml"]
        self.settings: dict[str, Any] = {
            "model_name_or_path": str(self.model),
            "dataset_name": str(self.data),
            "output_dir": str(self.out),
            "loss_type": "plackett_luce",
            "use_peft": True,
            "lora_target_modules": "all-linear",
            "max_steps": 1,
            "per_device_train_batch_size": 2,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "bf16": False,
            "disable_tqdm": True,
        }

    def write(self, name: str, content: str | bytes) -> None:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())

    def finish(self) -> None:
        self.write("recipe.yaml", yaml.safe_dump(self.settings) if self.text is None else self.text)


Case = tuple[Callable[[Place], Any], list[str]]


def setting(**changes: Any) -> Callable[[Place], Any]:
    return lambda place: place.settings.update(changes)


def text(content: str | bytes) -> Callable[[Place], Any]:
    return lambda place: setattr(place, "text", content)


def arguments(*given: str) -> Callable[[Place], Any]:
    return lambda place: setattr(place, "arguments", list(given))


def file(name: str, content: str | bytes, **changes: Any) -> Callable[[Place], Any]:
    def make(place: Place) -> None:
        place.write(name, content)
        place.settings.update({k: str(place.folder / v) if k == "dataset_name" else v for k, v in changes.items()})

    return make


def remove(name: str) -> Callable[[Place], Any]:
    return lambda place: (place.folder / name).unlink()


def rows(*changes: dict[str, Any]) -> Callable[[Place], Any]:
    """A good row first, then one with changes; None removes a column."""
    lines = [ranked_rows(1)[0]]
    for number, change in enumerate(changes):
        row = {**ranked_rows(2, seed=number + 1)[1], **change}
        lines.append({name: value for name, value in row.items() if value is not None})
    return file("data/train.jsonl", "\n".join(map(json.dumps, lines)))


def cut_weights(place: Place) -> None:
    path = place.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def config_json(**changes: Any) -> Callable[[Place], Any]:
    def make(place: Place) -> None:
        path = place.model / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return make


def no_chat_template(place: Place) -> None:
    (place.model / "chat_template.jinja").unlink(missing_ok=True)
    path = place.model / "tokenizer_config.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "chat_template"}))
    for name in ("train", "test"):
        rows = [json.dumps(row) for row in ranked_rows(3, conversational=True)]
        place.write(f"data/{name}.jsonl", "\n".join(rows))


def output_is_a_file(place: Place) -> None:
    place.write("out", "something of the user's")


def finished(place: Place) -> None:
    place.out.mkdir()
    place.write("out/result.json", "{}")


def no_data_files(place: Place) -> None:
    for path in place.data.iterdir():
        path.unlink()


CASES: dict[str, Case] = {
    # the YAML file
    "an empty file": (text(""), ["recipe.yaml", "mapping"]),
    "a list": (text("- loss_type: dpo\n"), ["recipe.yaml", "mapping"]),
    "not YAML": (text("loss_type: [dpo\nbeta: 1\n"), ["recipe.yaml", "line"]),
    "a tab": (text("loss_type:\n\t- dpo\n"), ["recipe.yaml", "line 2"]),
    "binary": (text(b"\xff\xfe\x00\x01"), ["recipe.yaml", "UTF-8"]),
    "no such file": (arguments("--config", "nowhere.yaml"), ["'nowhere.yaml'", "does not exist"]),
    "a folder as file": (arguments("--config", "."), ["'.'"]),
    "an unknown key": (setting(learning_rat=1e-5), ["'learning_rat'", "'learning_rate'"]),
    "an unknown option": (
        arguments("--config", "recipe.yaml", "--learning_rat", "1"),
        ["--learning_rat", "'learning_rate'"],
    ),
    "a number that is none": (setting(learning_rate="fast"), ["learning_rate", "'fast'", "float"]),
    "half a step": (setting(max_steps=1.5), ["max_steps", "1.5", "int"]),
    "a boolean that is none": (setting(use_peft="perhaps"), ["use_peft", "'perhaps'", "true or false"]),
    # the training settings
    "an unknown loss": (setting(loss_type="dpoo"), ["'dpoo'", "'dpo'"]),
    "no loss": (setting(loss_type=[]), ["loss_type"]),
    "a negative beta": (setting(beta=-0.1), ["beta=-0.1", "> 0"]),
    "an infinite beta": (setting(beta=float("inf")), ["beta=inf"]),
    "a beta that is no number": (setting(beta=float("nan")), ["beta=nan"]),
    "a beta for a loss without one": (setting(loss_type="sft", beta=0.2), ["beta=0.2", "sft"]),
    "weights that don't match": (setting(loss_weights=[1.0, 2.0]), ["loss_weights"]),
    "a weight that is no number": (setting(loss_weights=[float("nan")]), ["loss_weights", "nan"]),
    "an unknown hyperparameter": (setting(loss_kwargs={"plackett_luce": {"k": 1}}), ["'k'", "top_k"]),
    "hyperparameters of another loss": (setting(loss_kwargs={"simpo": {"beta": 1}}), ["'simpo'"]),
    "hyperparameters as a list": (setting(loss_kwargs={"plackett_luce": [1]}), ["loss_kwargs", "[1]"]),
    "an unknown pairing": (setting(pairing="best"), ["'best'", "best_vs_rest"]),
    "an unknown divergence": (setting(f_divergence_type="kl"), ["'kl'", "reverse_kl"]),
    "a divergence that doesn't fit": (
        setting(loss_type="sppo_hard", f_divergence_type="js_divergence"),
        ["sppo_hard", "reverse_kl"],
    ),
    "an ld_alpha of 2": (setting(ld_alpha=2.0), ["ld_alpha=2.0", "<= 1"]),
    "a max_length of 1": (setting(max_length=1), ["max_length=1"]),
    "a batch of 0": (setting(per_device_train_batch_size=0), ["per_device_train_batch_size", "0"]),
    "a negative batch": (setting(per_device_train_batch_size=-2), ["per_device_train_batch_size", "-2"]),
    "no accumulation step": (setting(gradient_accumulation_steps=0), ["gradient_accumulation_steps", "0"]),
    "a negative learning rate": (setting(learning_rate=-1e-5), ["learning_rate", "-1e-05"]),
    "a learning rate that is no number": (setting(learning_rate=float("nan")), ["learning_rate", "nan"]),
    "no epoch": (setting(max_steps=-1, num_train_epochs=0.0), ["num_train_epochs", "0"]),
    "an unknown optimizer": (setting(optim="adam_w"), ["optim", "'adam_w'", "adamw_torch"]),
    "an unknown scheduler": (setting(lr_scheduler_type="cosin"), ["lr_scheduler_type", "'cosin'", "'cosine'"]),
    "an unknown dtype": (setting(dtype="fp32"), ["dtype", "'fp32'", "float32"]),
    "4 and 8 bit": (setting(load_in_4bit=True, load_in_8bit=True), ["8 bit and 4 bit"]),
    "evaluation without a test split": (
        lambda place: (remove("data/test.jsonl")(place), place.settings.update(eval_strategy="steps")),
        ["eval_strategy", "'test'", "train"],
    ),
    "an unknown reward": (setting(reward="vadr"), ["'vadr'", "'vader'"]),
    "a reward module that isn't there": (setting(reward="nowhere.rewards:length"), ["nowhere"]),
    "a module that isn't there": (setting(import_module=["no_such_module"]), ["'no_such_module'", "PYTHONPATH"]),
    "one prompt to evaluate": (setting(reward="vader", eval_prompts=1), ["eval_prompts", "1"]),
    "an unknown key and others": (
        setting(torch_dtype="bfloat16", evaluation_strategy="no", rpo_alpha=1.0, learning_rat=1e-5, max_steps="few"),
        [
            "5 mistakes in recipe.yaml",
            "Unknown key 'torch_dtype'. It is called dtype here.",
            "It is called eval_strategy here.",
            "Use loss_type: [dpo, sft] with loss_weights: [1.0, ALPHA].",
            "Did you mean 'learning_rate'",
            "max_steps: 'few'",
        ],
    ),
    # settings that would do nothing, or fail late
    "no training": (setting(do_train=False), ["do_train: false", "trl-dpo-ext eval"]),
    "evaluation without a strategy": (setting(do_eval=True), ["do_eval", "eval_strategy: steps"]),
    "evaluation at the start only": (setting(eval_on_start=True), ["eval_on_start", "eval_strategy: steps"]),
    "the best model of no evaluation": (setting(load_best_model_at_end=True), ["load_best_model_at_end"]),
    "a metric of no evaluation": (setting(metric_for_best_model="loss"), ["metric_for_best_model", "eval_strategy"]),
    "prediction": (setting(do_predict=True), ["do_predict", "trl-dpo-ext eval sample"]),
    "label smoothing of another task": (setting(label_smoothing_factor=0.1), ["label_smoothing_factor=0.1"]),
    "rows grouped by length": (setting(train_sampling_strategy="group_by_length"), ["'group_by_length'", "packing"]),
    "rows grouped by length, as it was called": (setting(group_by_length=True), ["'group_by_length'", "packing"]),
    "no step between checkpoints": (setting(save_strategy="steps", save_steps=0), ["save_steps=0", "'no'"]),
    "no step": (setting(max_steps=0), ["max_steps=0", "num_train_epochs"]),
    "a stream without an end": (setting(dataset_streaming=True, max_steps=-1), ["dataset_streaming", "max_steps"]),
    "a batch larger than the dataset": (
        setting(dataloader_drop_last=True, per_device_train_batch_size=7),
        ["dataloader_drop_last", "6 rows", "a batch has 7"],
    ),
    "a batch larger than what is left of the dataset": (
        lambda place: (
            rows({"prompt": ""}, {"ranks": [0]})(place),
            place.settings.update(dataloader_drop_last=True, invalid_rows="drop"),
        ),
        ["dataloader_drop_last", "1 rows", "a batch has 2"],
    ),
    "a metric misspelt": (
        setting(eval_strategy="steps", save_strategy="best", metric_for_best_model="eval_rewards/acuracies"),
        ["'eval_rewards/acuracies'", "Did you mean 'rewards/accuracies'"],
    ),
    "a metric of another loss": (
        setting(eval_strategy="steps", save_strategy="best", metric_for_best_model="minor_dpo/clipped"),
        ["'minor_dpo/clipped'", "rewards/accuracies"],
    ),
    "an unknown tracker": (setting(report_to="wandbb"), ["report_to='wandbb'", "'wandb'"]),
    "a tracker that isn't installed": (setting(report_to=["wandb"]), ["report_to='wandb'", "pip install wandb"]),
    "Liger, not installed": (setting(use_liger_kernel=True), ["use_liger_kernel", "pip install liger-kernel"]),
    "FlashAttention, not installed": (
        setting(attn_implementation="flash_attention_2"),
        ["'flash_attention_2'", "flash_attn or kernels", "sdpa"],
    ),
    "FlashAttention, not installed, in model_init_kwargs": (
        setting(model_init_kwargs={"attn_implementation": "flash_attention_3"}),
        ["'flash_attention_3'", "flash_attn_interface or kernels"],
    ),
    "an unknown attention": (setting(attn_implementation="sdpaa"), ["'sdpaa'", "'sdpa'"]),
    "an optimizer that isn't installed": (setting(optim="galore_adamw"), ["'galore_adamw'", "galore_torch"]),
    "DeepSpeed, not installed": (setting(deepspeed="ds.json"), ["deepspeed", "pip install deepspeed"]),
    "FSDP with one process": (setting(fsdp="full_shard"), ["fsdp", "accelerate launch"]),
    "the dtype by its old name": (setting(model_init_kwargs={"torch_dtype": "float32"}), ["torch_dtype", "dtype"]),
    "a typo in how the model is loaded": (
        setting(model_init_kwargs={"attn_implementaton": "eager"}),
        ["'attn_implementaton'", "'attn_implementation'"],
    ),
    "an adapter of rank 0": (setting(lora_r=0), ["lora_r=0", ">= 1"]),
    "a dropout of 2": (setting(lora_dropout=2.0), ["lora_dropout=2.0", "< 1"]),
    "fewer than no workers": (setting(dataloader_num_workers=-1), ["dataloader_num_workers=-1"]),
    "three at once": (
        setting(do_predict=True, max_steps=0, use_liger_kernel=True),
        ["3 mistakes in the recipe", "do_predict", "max_steps=0", "use_liger_kernel"],
    ),
    # the output folder
    "a file where the output goes": (output_is_a_file, ["out", "is a file"]),
    "a finished run": (finished, ["holds a finished run", "overwrite_output_dir"]),
    # the model
    "no model": (lambda place: place.settings.pop("model_name_or_path"), ["model_name_or_path"]),
    "a folder that isn't there": (setting(model_name_or_path="./nowhere"), ["'./nowhere'", "does not exist"]),
    "no config": (remove("model/config.json"), ["config.json"]),
    "a config that is no JSON": (file("model/config.json", "{"), ["config.json"]),
    "a model of no known type": (config_json(model_type="lama"), ["config.json", "'lama'", "'llama'"]),
    "an encoder-decoder model": (
        config_json(model_type="t5", is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"]),
        ["encoder-decoder", "T5ForConditionalGeneration"],
    ),
    "a reward model": (
        config_json(architectures=["LlamaForSequenceClassification"]),
        ["LlamaForSequenceClassification", "no language-model head"],
    ),
    "no weights": (remove("model/model.safetensors"), ["model.safetensors"]),
    "weights cut short": (cut_weights, ["model.safetensors"]),
    "no tokenizer": (remove("model/tokenizer.json"), ["tokenizer"]),
    "messages without a chat template": (no_chat_template, ["chat template"]),
    # the dataset
    "no dataset": (lambda place: place.settings.pop("dataset_name"), ["dataset_name"]),
    "a dataset that isn't there": (setting(dataset_name="./nowhere"), ["'./nowhere'"]),
    "a split that isn't there": (setting(dataset_train_split="trian"), ["'trian'", "'train'"]),
    "a folder without data": (no_data_files, ["data"]),
    "a file of another kind": (file("rows.xml", "<row/>", dataset_name="rows.xml"), ["rows.xml", ".jsonl"]),
    "no checkpoint to resume": (setting(resume_from_checkpoint="nowhere/checkpoint-3"), ["nowhere/checkpoint-3"]),
    "an adapter that matches nothing": (setting(lora_target_modules=["query"]), ["query"]),
    "an empty file of rows": (file("rows.jsonl", "", dataset_name="rows.jsonl"), ["rows.jsonl"]),
    "JSON cut short": (file("rows.jsonl", f"{GOOD}\n{GOOD[:40]}", dataset_name="rows.jsonl"), ["rows.jsonl"]),
    "no UTF-8": (
        file("rows.jsonl", GOOD.encode() + b'\xff"}', dataset_name="rows.jsonl"),
        ["rows.jsonl"],
    ),
    "a parquet file that is none": (file("rows.parquet", "PAR1", dataset_name="rows.parquet"), ["rows.parquet"]),
    "a CSV file without rows": (file("rows.csv", "prompt,chosen\n", dataset_name="rows.csv"), ["rows"]),
    "columns of another task": (
        file("rows.csv", "text,label\ngood,1\n", dataset_name="rows.csv"),
        ["text, label", "prompt"],
    ),
    "a column misspelt": (
        file("rows.jsonl", json.dumps(pair_rows(1)[0]).replace("chosen", "choosen"), dataset_name="rows.jsonl"),
        ["'choosen'", "missing: chosen"],
    ),
    "one response": (rows({"completions": ["a"], "ranks": [0]}), ["row 1", "found 1", "2 or more"]),
    "ranks and responses that don't match": (rows({"ranks": [0]}), ["row 1", "'ranks'"]),
    "a rank that is text": (rows({"ranks": ["a", "b", "c"]}), ["row 1", "'ranks'", "'a'"]),
    "all tied": (rows({"completions": ["a", "b"], "ranks": [1, 1]}), ["row 1", "equally good"]),
    "no prompt": (rows({"prompt": ""}), ["row 1", "'prompt'"]),
    "a prompt that is missing": (rows({"prompt": None}), ["row 1", "'prompt'"]),
    "the same response twice": (rows({"completions": ["a", "a"], "ranks": [0, 1]}), ["row 1", "the same", "'a'"]),
    "two bad rows": (rows({"prompt": ""}, {"ranks": [0]}), ["row 1", "row 2", "2 of 3"]),
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_it_is_said_in_a_sentence(case, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trl_dpo_ext.run.missing_packages.installed", lambda module: False)
    if "DeepSpeed" in case and find_spec("deepspeed"):
        pytest.skip("it is installed")
    monkeypatch.setattr(Trainer, "train", lambda *args, **kwargs: pytest.fail("training began"))
    place = Place(tmp_path, tiny_model_dir)
    change, said = CASES[case]
    change(place)
    place.finish()
    before = snapshot(tmp_path)
    with pytest.raises(USER_ERRORS) as caught:
        train_recipe(place.arguments)
    message = str(caught.value)
    assert all(part in message for part in said), message
    assert snapshot(tmp_path) == before


def good(place: Place, **changes: Any) -> list[str]:
    place.settings.update(changes)
    place.finish()
    return place.arguments


@pytest.mark.parametrize(
    "changes",
    [
        {"do_train": True, "do_eval": True, "eval_strategy": "epoch"},
        {"do_eval": False, "do_predict": False, "label_smoothing_factor": 0.0},
        {"report_to": "all", "attn_implementation": "eager"},
        {"attn_implementation": "kernels-community/flash-attn"},
        {"report_to": ["tensorboard"], "attn_implementation": "flash_attention_2", "use_liger_kernel": True},
        {"dataset_streaming": True},
        {"model_init_kwargs": {"rope_scaling": None, "dtype": "float32"}},
        {"train_sampling_strategy": "sequential", "dataloader_drop_last": True},
    ],
    ids=str,
)
def test_settings_that_work_pass(changes, tiny_model_dir, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("trl_dpo_ext.run.missing_packages.installed", lambda module: True)
    monkeypatch.setitem(missing_packages.INTEGRATION_TO_CALLBACK, "tensorboard", lambda: None)  # as if installed
    recipe = parse_recipe(good(Place(tmp_path, tiny_model_dir), **changes))
    assert recipe.settings.items() >= {k: v for k, v in changes.items() if k == "attn_implementation"}.items()


def test_lora_settings_without_an_adapter_are_warned_of(tiny_model_dir, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    parse_recipe(good(Place(tmp_path, tiny_model_dir), use_peft=False, lora_r=8))
    assert "All weights are trained: lora_r, lora_target_modules has no effect" in caplog.text


@pytest.mark.parametrize("loss", ["plackett_luce", "simpo", "sft", "minor_dpo", "beta_dpo"])
def test_metrics_are_known_before_a_run_has_them(loss, tiny_model_dir, tmp_path, monkeypatch):
    """Each metric that an evaluation logs is one that `metric_for_best_model` may name, and hardly any other."""
    monkeypatch.chdir(tmp_path)
    logged: set[str] = set()
    monkeypatch.setattr(
        Trainer, "log", lambda self, logs, *a, **k: logged.update(k for k in logs if k.startswith("eval_"))
    )
    arguments = good(Place(tmp_path, tiny_model_dir), loss_type=loss, eval_strategy="steps", eval_steps=1)
    train_recipe(arguments)
    known = evaluation_metrics(parse_recipe([*arguments, "--overwrite_output_dir", "true"]).config)
    assert {f"eval_{name}" for name in known} - {"eval_aux_loss", "eval_num_tokens"} == logged - {"eval_num_tokens"}
