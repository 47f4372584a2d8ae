"""`trl-dpo-ext memory`: the report as text and JSON, what fits a card, and mistakes."""

import json
from types import SimpleNamespace

import pytest
import yaml

from tests.helpers import ROOT
from trl_dpo_ext.cli import main
from trl_dpo_ext.memory import estimate, report_on
from trl_dpo_ext.memory.largest_that_fits import Start, advise, largest
from trl_dpo_ext.memory.peak_estimate import GIB
from trl_dpo_ext.memory.recipe_setup import with_args
from trl_dpo_ext.run.recipe_memory import read_memory_setup


@pytest.fixture
def recipe(tmp_path, tiny_model_dir):
    def write(**changes):
        settings = {
            "model_name_or_path": tiny_model_dir,
            "dataset_name": "somewhere",
            "output_dir": str(tmp_path / "out"),
            "max_length": 128,
            "per_device_train_batch_size": 2,
            "gradient_checkpointing": False,
            **changes,
        }
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(settings))
        return str(path)

    return write


def report(path, card_gib):
    setup, model = read_memory_setup(path)
    return report_on(setup, recipe=path, model=model, card_gib=card_gib)


def test_parts_sum_to_the_total(recipe, capsys):
    assert main(["memory", recipe(), "--json", "--responses", "3", "--prompt", "100"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert sum(content["parts"].values()) == content["total_bytes"]
    assert content["micro_batch"] == {"prompts": 2, "responses": 3, "prompt_tokens": 100, "response_tokens": 28}
    assert content["total_bytes_with_checkpointing"] < content["total_bytes"]
    assert content["measured"] is False
    assert content["fits"] is None


def test_the_picture(recipe, capsys):
    assert main(["memory", recipe(), "--set", "per_device_train_batch_size=1"]) == 0
    out = capsys.readouterr().out
    for line in (
        "Micro-batch of 1 x (prompt 64 + 2 responses of 64 tokens)",
        "Estimated, not measured",
        "CUDA context",
    ):
        assert line in out
    assert "█" in out


@pytest.mark.slow
def test_what_fits_a_card_and_what_to_change(recipe):
    path = recipe(gradient_checkpointing=True)
    setup, _ = read_memory_setup(path)
    whole, least = estimate(setup).total, estimate(with_args(setup, per_device_train_batch_size=1)).total
    found = report(path, card_gib=(whole + least) / 2 / GIB / 0.98)
    assert not found.fits
    assert found.then_fits
    assert found.largest["per_device_train_batch_size"] == 1
    assert 128 <= found.largest["max_length"] < 256
    assert found.largest["responses"] == 2
    assert [change.settings for change in found.changes] == [
        "per_device_train_batch_size: 1, gradient_accumulation_steps: 2"
    ]
    assert found.changes[0].peak == pytest.approx(least, rel=0.01)
    assert "Changes, cheapest first" in _text(found)


def test_what_can_not_fit_is_said(recipe, monkeypatch):
    monkeypatch.setattr("trl_dpo_ext.memory.advise", lambda setup, limit, peak: ([], False))
    found = report(recipe(), card_gib=0.1)
    assert set(found.largest.values()) == {0}
    assert "Even then" in _text(found)


def test_changes_are_tried_cheapest_first_and_kept_where_they_help(recipe, monkeypatch):
    sizes = {True: 50, False: 90}
    monkeypatch.setattr(
        "trl_dpo_ext.memory.largest_that_fits.estimate",
        lambda setup: SimpleNamespace(total=sizes[setup.args.gradient_checkpointing] + (setup.peft is None) * 5),
    )
    setup, _ = read_memory_setup(recipe(optim="adamw_bnb_8bit"))
    changes, fits = advise(setup, 52)
    assert fits
    assert [change.settings for change in changes] == [
        "gradient_checkpointing: true",
        "use_peft: true, lora_target_modules: all-linear",
    ]
    assert [change.peak for change in changes] == [55, 50]
    assert advise(setup, 49)[1] is False


def _text(report):
    from rich.console import Console

    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(report)
    return console.export_text()


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"max_lenght": 5}, [], ["'max_lenght'", "'max_length'"]),
        ({"loss_type": "nothing_like_it"}, [], ["nothing_like_it"]),
        ({"load_in_4bit": True}, [], ["load_in_4bit", "use_peft"]),
        ({"load_in_8bit": True, "use_peft": True}, [], ["load_in_8bit"]),
        ({"model_name_or_path": "no/such-model"}, [], ["'no/such-model'", "gpt-j-6b"]),
        ({}, ["--prompt", "128"], ["128 tokens"]),
        ({}, ["--responses", "1"], ["K = 1"]),
        ({}, ["--set", "nonsense"], ["KEY=VALUE"]),
        ({}, ["--set", "max_lenght=5"], ["'max_lenght'", "'max_length'"]),
        ({}, ["--set", "colour=red"], ["'colour'"]),
        ({"colour": "red", "shape": "round"}, [], ["'colour'", "'shape'"]),
        ({}, ["--set", "evaluation_strategy=steps"], ["'evaluation_strategy'", "eval_strategy"]),
        ({"import_module": "no.such.module"}, [], ["import_module"]),
        ({"import_module": ["no.such.module"]}, [], ["'no.such.module'"]),
        ({}, ["--set", "max_length=long"], ["max_length", "'long'"]),
    ],
)
def test_mistakes(recipe, capsys, changes, options, said):
    assert main(["memory", recipe(**changes), *options]) == 2
    error = capsys.readouterr().err
    assert all(part in error for part in said), error


def test_a_recipe_that_is_not_there(capsys):
    assert main(["memory", "nowhere.yaml"]) == 2
    assert "'nowhere.yaml' does not exist" in capsys.readouterr().err


@pytest.mark.slow
def test_a_real_recipe_from_its_config_alone():
    setup, _ = read_memory_setup(str(ROOT / "recipes" / "gpt-j-6b-tldr" / "dpo_qlora.yaml"))
    peak = estimate(setup)
    parts = peak.parts
    # 28 layers of 12 * 4096^2 weights in 4 bits; constants: one byte for 64 weights, and a float32 for 256 of these.
    weights = 28 * 12 * 4096**2
    assert parts["4-bit weights"] == pytest.approx(weights / 2, rel=0.001)
    assert parts["constants of the 4-bit weights"] == pytest.approx(weights / 64 * (1 + 4 / 256), rel=0.01)
    assert 5 * GIB < peak.total < 11.7 * GIB


@pytest.mark.parametrize("start", [None, 1, 2, 7, 400, 1000])
def test_the_search_finds_the_last_that_fits(start):
    sizes = (lambda n: n**2 + 3 * n, lambda n: 50 + 7 * n, lambda n: max(40 + n, 9 * n))
    for size_of in sizes:
        for limit in (3, 10, 100, 12_345, 10**9):
            known = start and Start(start, size_of(start), size_of(start) / start)
            expected = max((n for n in range(1, 1001) if size_of(n) <= limit), default=0)
            assert largest(size_of, limit, 1000, known) == expected


def test_the_search_starts_from_what_is_known():
    tried = []
    assert largest(lambda n: tried.append(n) or 50 + 10 * n, 175, 1000, Start(2, 70, 10)) == 12
    assert tried == [12]


def test_the_estimate_shows_before_the_search(recipe, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("trl_dpo_ext.memory.largest_batch", lambda *args: shown.append(capsys.readouterr().out) or 1)
    assert main(["memory", recipe(), "--gpu", "24"]) == 0
    assert "CUDA context" in shown[0]
    after = capsys.readouterr().out
    assert "On a 24 GB card" in after
    assert "CUDA context" not in after


def test_the_search_repeats_no_estimate(recipe, monkeypatch):
    """A tiny model that fits everywhere: each search goes to its largest n, and none estimates the recipe again."""
    taken = []

    def noted(setup, **options):
        taken.append((setup.shape, setup.args.gradient_checkpointing))
        return estimate(setup, **options)

    for module in ("memory", "memory.largest_that_fits"):
        monkeypatch.setattr(f"trl_dpo_ext.{module}.estimate", noted)
    setup, _ = read_memory_setup(recipe())
    found = report(recipe(), card_gib=(estimate(setup).total * 1.2) / GIB / 0.98)
    assert found.fits
    assert len(set(taken)) == len(taken)
    assert len(taken) <= 2 + 3 * 4


def test_a_recipe_of_any_device(recipe):
    setup, _ = read_memory_setup(recipe(use_cpu=True))
    assert estimate(setup).total == estimate(read_memory_setup(recipe())[0]).total
