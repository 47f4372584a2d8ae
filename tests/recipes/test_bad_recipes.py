"""What is wrong with a recipe, its data or its folders is reported in a sentence, and nothing is written.

One table: what is made wrong, and what the message must name. (Rows and columns: tests/training/test_bad_input.py.)
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import Trainer

from tests.helpers import pair_rows, ranked_rows
from trl_dpo_ext.run import USER_ERRORS, train_recipe

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
    "a beta for a loss without one": (setting(loss_type="sft", beta=0.1), ["beta=0.1", "sft"]),
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
    # the output folder
    "a file where the output goes": (output_is_a_file, ["out", "is a file"]),
    "a finished run": (finished, ["holds a finished run", "overwrite_output_dir"]),
    # the model
    "no model": (lambda place: place.settings.pop("model_name_or_path"), ["model_name_or_path"]),
    "a folder that isn't there": (setting(model_name_or_path="./nowhere"), ["'./nowhere'", "does not exist"]),
    "no config": (remove("model/config.json"), ["config.json"]),
    "a config that is no JSON": (file("model/config.json", "{"), ["config.json"]),
    "a model of no known type": (config_json(model_type="lama"), ["config.json", "'lama'", "'llama'"]),
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
