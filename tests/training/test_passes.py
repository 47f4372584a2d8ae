"""The first pass and the passes of `responses_per_pass`, in whole runs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests import helpers
from tests.training import steps, support
from trl_dpo_ext.training import ConfigError, TrainingError
from trl_dpo_ext.types import RankedResponses

MIX = {"loss_type": ["plackett_luce", "beta_dpo"], "loss_weights": [1.0, 0.5]}
RUNS: dict[str, dict[str, Any]] = {
    "full": {**support.LAYOUTS["shared_packed"], "gradient_accumulation_steps": 2, **MIX},
    "lora, checkpointing, stored reference": {
        "peft_config": support.lora(),
        "gradient_checkpointing": True,
        "precompute_ref_log_probs": True,
        **MIX,
    },
    "moving reference": {"sync_ref_model": True, "ref_model_sync_steps": 1, "loss_type": "dpo", "pairing": "adjacent"},
    "reference_free": {**support.LAYOUTS["packed"], "loss_type": "reference_free_plackett_luce"},
}


def run(model: str, folder: Any, **settings: Any) -> support.Run:
    """Train on groups of 2 to 5 responses and evaluate; the evaluation is the last log."""
    data, evaluation = helpers.ranked_dataset(12, ties=True), helpers.ranked_dataset(5, seed=1)
    trainer = support.trainer(
        model, folder, data, eval_dataset=evaluation, max_steps=2, optim="sgd", warmup_steps=0, **settings
    )
    result = support.train(trainer)
    result.logs.append(trainer.evaluate())
    for log in result.logs:
        log.pop("num_tokens", None)  # prompts count once in each pass
        log.pop("eval_num_tokens", None)
    return result


@pytest.mark.parametrize("name", RUNS)
def test_a_run_in_passes_is_the_run_at_once(name, tiny_model_dir, tmp_path):
    at_once = run(tiny_model_dir, tmp_path / "at_once", **RUNS[name])
    passes = run(tiny_model_dir, tmp_path / "passes", responses_per_pass=2, **RUNS[name])
    assert [log.keys() for log in passes.logs] == [log.keys() for log in at_once.logs]
    support.assert_same_run(passes, at_once)


def test_64_responses_eight_at_a_time(tiny_model_dir, tmp_path):
    data = helpers.ranked_dataset(1, responses=(64, 64), scores=True)
    settings = {"loss_type": ["lipo_lambda", "sft"], "max_steps": 1, "optim": "sgd", **support.LAYOUTS["shared"]}
    made = [support.trainer(tiny_model_dir, tmp_path, data, responses_per_pass=size, **settings) for size in (None, 8)]
    at_once, passes = (support.train(trainer) for trainer in made)
    (batch,) = [support.batch(made[1])]
    assert len(batch["passes"]) == 8
    for log in at_once.logs + passes.logs:
        log.pop("num_tokens")
    support.assert_same_run(passes, at_once)


@pytest.mark.parametrize("size", [0, -1])
def test_a_pass_needs_a_response(size, tmp_path):
    with pytest.raises(ConfigError, match=f"responses_per_pass={size} is out of range"):
        support.config(tmp_path, responses_per_pass=size)


@pytest.mark.parametrize(
    ("case", "settings", "forwards"),
    [
        ("dpo", {"micro_batch": 4}, (2, 2)),  # (of the policy, of the reference)
        ("aot", {"micro_batch": 4}, (4, 2)),
        ("aot", {"micro_batch": 8}, (1, 1)),
        ("sft", {"micro_batch": 4}, (4, 0)),
        ("dpo", {"micro_batch": 8, "responses_per_pass": 3}, (4, 2)),
        ("dpo", {"micro_batch": 8, "responses_per_pass": 6}, (1, 1)),  # one of the six is of another prompt
    ],
)
def test_only_what_needs_a_first_pass_runs_one(case, settings, forwards, tiny_model_dir, tmp_path, no_head_check):
    trainer = steps.trainer(tiny_model_dir, tmp_path)
    trainer.model.config.use_cache = False
    counts = [0, 0]
    for number, model in enumerate((trainer.model, trainer.ref_model)):

        def count(*args: Any, number: int = number) -> None:
            counts[number] += 1

        model.register_forward_pre_hook(count)
    steps.run(trainer, case, **settings)
    assert tuple(counts) == forwards


def test_dropout_drops_the_same_in_both_passes(tmp_path):
    model = helpers.save_tiny_model(tmp_path / "model", attention_dropout=0.3)
    trainer = steps.trainer(model, tmp_path, disable_dropout=False)
    torch.manual_seed(3)
    step = steps.run(trainer, "aot", 4)

    # The same step in one graph: both micro-batches are kept until the loss is computed.
    torch.manual_seed(3)
    trainer.model.zero_grad()
    objective, parts = steps.objective("aot"), []
    for rows in (slice(0, 4), slice(4, 8)):
        batch = support.batch(trainer, rows)
        outputs, reference = trainer._run_pass(trainer.model, batch)
        parts.append((outputs.logps.sum(dim=2), reference.sum(dim=2), batch))
    width = max(logps.shape[1] for logps, _, _ in parts)

    def cat(values: list[torch.Tensor]) -> torch.Tensor:
        return torch.cat([torch.nn.functional.pad(value, (0, width - value.shape[1])) for value in values])

    whole = RankedResponses(
        logps=cat([logps for logps, _, _ in parts]),
        ref_logps=cat([reference for _, reference, _ in parts]),
        **{name: cat([batch[name] for _, _, batch in parts]) for name in ("lengths", "ranks", "mask")},
    )
    per_prompt, _ = objective(whole, training=False)
    per_prompt.mean().backward()
    expected = {name: p.grad for name, p in trainer.model.named_parameters()}
    support.assert_same_tensors(step.gradients, expected)

    trainer.model.eval()
    undropped = trainer._run_pass(trainer.model, support.batch(trainer, 4))[0].logps.sum(dim=2)
    assert support.distance(undropped, parts[0][0]) > 1e-3  # so there was dropout


def test_a_broken_row_is_named_where_its_nan_reaches_all_others(tiny_model_dir, tmp_path):
    rows = helpers.ranked_rows(8)
    rows[6]["prompt"] = f"{helpers.START} {rows[6]['prompt']}"
    trainer = support.trainer(
        tiny_model_dir,
        tmp_path,
        helpers.Dataset.from_list(rows),
        loss_type="beta_dpo",
        gradient_accumulation_steps=4,
        peft_config=support.lora(),
    )
    token = trainer.processing_class.convert_tokens_to_ids(helpers.START)
    with torch.no_grad():
        trainer.model.get_input_embeddings().weight[token] = math.nan
    with pytest.raises(TrainingError, match=r"Step 1: the loss is NaN or infinite\. .*: 6\. ") as stopped:
        trainer.train()
    assert stopped.value.rows == [6]
