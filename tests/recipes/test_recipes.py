"""Every recipe: its header, the strict parser, and two steps of a tiny model on a file of its dataset's own schema."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from trl.scripts import sft

from tests.helpers import ROOT, load_script, ranked_rows, save_tiny_model
from trl_dpo_ext.data import list_converters
from trl_dpo_ext.run import train_recipe

OTHERS = ("accelerate", "controlled_sentiment")  # the latter has tests of its own
RECIPES = sorted(path for path in (ROOT / "recipes").glob("*/*.yaml") if path.parent.name not in OTHERS)
OURS = [path for path in RECIPES if "trl.scripts.sft" not in path.read_text()]
FILES = ROOT / "tests" / "data" / "converters"
# Which file has the rows of a dataset that needs no converter; the others are named after their converter.
PLAIN = {"trl-lib/tldr-preference": "tldr_preference", "outputs/gpt2-large-imdb-data": "imdb_rankings"}


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def settings_of(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A block of 64 weights must fit a row, for 4 bit."""
    return save_tiny_model(tmp_path_factory.mktemp("model"), hidden_size=64, intermediate_size=128)


def test_all_are_here():
    assert {path.parent.name for path in RECIPES} == {
        "quickstart",
        "gpt2-large-imdb",
        "gpt-j-6b-tldr",
        "pythia-2.8b-hh",
        *(f"{model}{data}" for model in ("llama-3.1-8b", "qwen3-8b") for data in ("", "-nectar", "-ultrafeedback")),
    }


@pytest.mark.parametrize("path", RECIPES, ids=name_of)
def test_the_header_launches_this_recipe(path):
    header = path.read_text().partition("\n\n")[0]
    assert all(line.startswith("#") for line in header.splitlines())
    launch = re.search(
        r"accelerate launch --config_file (\S+) (?:recipes/train\.py|-m trl\.scripts\.sft) \\\n#\s+--config (\S+)\n",
        header,
    )
    assert launch, "no launch line of the one form"
    assert (ROOT / launch[1]).is_file()
    assert ROOT / launch[2] == path
    for part in ("# Needs:", "# Expect:"):
        assert part in header
    for name in re.findall(r"\b(\w+\.yaml)\b", header):
        assert (path.parent / name).exists() or (ROOT / "recipes" / "accelerate" / name).exists(), name


def test_what_a_stage_starts_from_is_what_another_leaves():
    left = {settings_of(path)["output_dir"] for path in RECIPES}
    assert len(left) == len(RECIPES), "two recipes write to one folder"
    for path in RECIPES:
        left |= {
            target
            for source, target in re.findall(r"merge (outputs/\S+) (outputs/\S+)", path.read_text())
            if source in left
        }
    left.add(str(build_data().DEFAULT_OUTPUT))
    for path in RECIPES:
        for key in ("model_name_or_path", "dataset_name"):
            if (given := settings_of(path)[key]).startswith("outputs/"):
                assert given in left, f"{name_of(path)}: {key}={given} comes from nowhere"


@pytest.mark.parametrize("path", [path for path in OURS if settings_of(path).get("load_in_4bit")], ids=name_of)
def test_qlora_recipes_save_memory_in_every_way(path):
    given = settings_of(path)
    expected = {
        "bnb_4bit_quant_type": "nf4",
        "use_bnb_nested_quant": True,
        "dtype": "bfloat16",
        "bf16": True,
        "optim": "paged_adamw_8bit",
        "use_peft": True,
        "lora_target_modules": "all-linear",
        "gradient_checkpointing": True,
        "prefix_sharing": "auto",
        "packing": True,
    }
    if given["loss_type"] not in ("simpo", "sft"):
        expected["precompute_ref_log_probs"] = True
    assert {key: given.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("folder", "beta"), [("gpt-j-6b-tldr", 0.5), ("pythia-2.8b-hh", 0.1), ("gpt2-large-imdb", 0.1)]
)
def test_the_papers_settings(folder, beta):
    """arXiv 2305.18290, appendix B; max_grad_norm and max_length are those of the authors' repository."""
    given = settings_of(ROOT / "recipes" / folder / "dpo.yaml")
    expected = {
        "loss_type": "dpo",
        "beta": beta,
        "optim": "rmsprop",
        "learning_rate": 1e-6,
        "warmup_steps": 150,
        "max_grad_norm": 10.0,
    }
    assert {key: given[key] for key in expected} == expected
    processes = 1 if folder == "gpt2-large-imdb" else 4
    pairs = 6 if folder == "gpt2-large-imdb" else 1
    batch = given["per_device_train_batch_size"] * given["gradient_accumulation_steps"] * processes * pairs
    assert 64 <= batch < 64 + pairs


@pytest.mark.slow
@pytest.mark.parametrize("path", [path for path in OURS if path.parent.name != "quickstart"], ids=name_of)
def test_two_steps(path, model, tmp_path, monkeypatch):
    """As the recipe says, but a tiny model, few rows, `use_cpu`, plain AdamW for the paged one, which needs CUDA."""
    given = settings_of(path)
    rows = FILES / f"{given.get('dataset_converter') or PLAIN[given['dataset_name']]}.jsonl"
    if given.get("dataset_converter") == "hh_rlhf_text":
        rows = FILES / "hh_rlhf.jsonl"
    for split in ("train", given.get("dataset_test_split", "test")):
        (tmp_path / f"{split}.jsonl").write_bytes(rows.read_bytes())
    monkeypatch.setattr("trl_dpo_ext.run.run_outputs.plot_curves", lambda *args, **kwargs: None)  # half a second each
    changes = {
        "model_name_or_path": model,
        "dataset_name": tmp_path,
        "output_dir": tmp_path / "out",
        "use_cpu": True,
        "max_steps": 2,
        "logging_steps": 1,
        "save_steps": 2,
        "warmup_steps": 0,
        "disable_tqdm": True,
    }
    if given["optim"] == "paged_adamw_8bit":
        changes["optim"] = "adamw_torch"
    if given.get("precompute_ref_log_probs"):
        changes["ref_cache_dir"] = tmp_path / "cache"
    if "reward" in given:
        changes |= {"reward": "vader", "eval_prompts": 2, "eval_max_new_tokens": 2}
    train_recipe(
        ["--config", str(path), *(part for key, value in changes.items() for part in (f"--{key}", str(value)))]
    )
    log = json.loads((tmp_path / "out" / "result.json").read_text())["metrics"]
    assert log["grad_norm"] > 0
    assert (tmp_path / "out" / ("adapter_model.safetensors" if given.get("use_peft") else "model.safetensors")).exists()


def build_data() -> Any:
    return load_script("recipes/gpt2-large-imdb/build_data.py")


def test_controlled_sentiment_from_reviews_to_rankings(model, tmp_path):
    """sft.yaml with TRL's script, then build_data.py with the model it left."""
    for split in ("train", "test"):
        rows = [{"text": row["prompt"] + row["completions"][0], "label": 1} for row in ranked_rows(8)]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    changes = {
        "model_name_or_path": model,
        "dataset_name": str(tmp_path),
        "output_dir": str(tmp_path / "sft"),
        "max_steps": 2,
        "gradient_accumulation_steps": 1,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    options = [part for key, value in changes.items() for part in (f"--{key}", str(value))]
    sft.main(
        *sft.make_parser().parse_args_and_config(
            ["--config", str(ROOT / "recipes" / "gpt2-large-imdb" / "sft.yaml"), *options]
        )
    )
    output = tmp_path / "data"
    build_data().main(
        f"--model {tmp_path / 'sft'} --reviews {tmp_path} --reward vader --output {output} --train 3 --test 2".split()
    )
    written = [json.loads(line) for line in (output / "train.jsonl").read_text().splitlines()]
    assert len(written) == 3
    assert written[0].keys() == json.loads((FILES / "imdb_rankings.jsonl").read_text().splitlines()[0]).keys()
    assert {len(row["completions"]) for row in written} == {len(row["scores"]) for row in written} == {4}
    assert len((output / "test.jsonl").read_text().splitlines()) == 2


def test_the_index_says_what_the_recipes_say():
    index = (ROOT / "recipes" / "README.md").read_text()
    rows = dict(re.findall(r"^\| \[[^]]+\]\(([^)]+\.yaml)\) (\|.*)$", index, re.MULTILINE))
    assert set(rows) == {f"{path.parent.name}/{path.name}" for path in RECIPES}
    for name, row in rows.items():
        text = (ROOT / "recipes" / name).read_text()
        given = yaml.safe_load(text)
        hardware = re.search(r"recipes/accelerate/(\w+)\.yaml", text)[1]
        data, converter, _, loss, weights, *_, last = [cell.strip().strip("`") for cell in row.strip("|").split("|")]
        assert last == hardware, name
        assert loss == given.get("loss_type", "TRL's SFT"), name
        assert converter == given.get("dataset_converter", ""), name
        assert data == given["dataset_name"] or given["dataset_name"].startswith(("recipes/", "outputs/")), name
        assert weights == ("QLoRA" if "load_in_4bit" in given else "LoRA" if "use_peft" in given else "full"), name


def test_the_index_lists_every_converter():
    index = (ROOT / "recipes" / "README.md").read_text()
    for converter in list_converters():
        assert f"| `{converter.name}` | {converter.dataset} |" in index
