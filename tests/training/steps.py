"""One optimizer step of every registered loss, cut in any way. Run under torchrun by `test_whole_step.py` too."""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tests.training import support
from trl_dpo_ext import list_losses
from trl_dpo_ext.losses import get_loss
from trl_dpo_ext.training.modifiers import LossModifiers
from trl_dpo_ext.training.objective import Objective, RunningMean, Term

PROMPTS = 8
RUNNING_MEAN = RunningMean(0.3, 2)

# Mixes and settings that read more than the log-probs of single losses.
MIXES: dict[str, tuple[dict[str, float], LossModifiers]] = {
    "coupled and not": ({"dpo": 0.5, "aot": 1.0, "plackett_luce": 0.3, "sft": 2.0}, LossModifiers()),
    "tokens": ({"aot_unpaired": 1.0, "dpo": 1.0}, LossModifiers(ld_alpha=0.4)),
    "clipped": ({"aot": 1.0, "plackett_luce": 1.0}, LossModifiers(humanline=(-0.1, 0.1))),
    "divergence": ({"beta_dpo": 1.0}, LossModifiers(f_divergence_type="js_divergence")),
    "weighted": ({"bco": 1.0, "hinge": 0.1}, LossModifiers(use_weighting=True)),
}
# At its own beta, the two losses that discopop mixes change places within tau / beta = half a nat, which makes the
# rounding errors of log-probs too large to compare gradients.
CHANGED = {"discopop": {"beta": 0.02}}
CASES = [spec.name for spec in list_losses()] + list(MIXES)


@dataclass
class Step:
    """What one step gives."""

    gradients: dict[str, Tensor]
    log: dict[str, float]
    running_means: list[float]


def objective(case: str) -> Objective:
    """Return a loss, or a mix, with its default hyperparameters (but see `CHANGED`)."""
    weights, modifiers = MIXES.get(case, ({case: 1.0}, LossModifiers()))
    specs = [(get_loss(name), weight) for name, weight in weights.items()]
    terms = [Term(spec, spec.check(CHANGED.get(spec.name, {})), weight) for spec, weight in specs]
    means = {term.spec.name: RunningMean(**vars(RUNNING_MEAN)) for term in terms if term.spec.statistic is not None}
    return Objective(terms, modifiers=modifiers, running_means=means)


def trainer(model: str, folder: str, **settings: Any) -> Any:
    """Return a trainer whose rows have all that a loss reads, and whose policy has moved away from its reference."""
    rows = support.complete_rows(model, folder, PROMPTS)
    made = support.trainer(model, folder, rows, loss_type="odpo", use_weighting=True, **settings)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in made.model.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=generator)
    return made


def run(trainer: Any, case: str, micro_batch: int, *, model: Any = None, responses_per_pass: int | None = None) -> Step:
    """Run the forward and backward passes of a step as `transformers.Trainer` does."""
    model = trainer.model if model is None else model
    trainer.objective = objective(case)
    trainer.use_weighting = trainer.objective.modifiers.use_weighting
    trainer.data_collator.responses_per_pass = responses_per_pass
    rank, processes = trainer.accelerator.process_index, trainer.accelerator.num_processes
    starts = range(rank * micro_batch, PROMPTS, processes * micro_batch)
    batches = [support.batch(trainer, slice(start, start + micro_batch)) for start in starts]
    model.zero_grad()
    samples, items = trainer.get_batch_samples(iter(batches), len(batches), trainer.args.device)
    trainer.current_gradient_accumulation_steps = len(samples)
    loss = torch.zeros(())
    for number, inputs in enumerate(samples):
        last = number == len(samples) - 1
        trainer.accelerator.gradient_state._set_sync_gradients(last)
        with contextlib.nullcontext() if last else trainer.accelerator.no_sync(model):
            loss += trainer.training_step(model, inputs, items)
    queued = trainer._metrics["train"]
    assert all(len(values) == 1 for values in queued.values())
    log = {name: values[0] for name, values in queued.items() if name != "num_tokens"}
    queued.clear()
    log["loss"] = trainer.accelerator.reduce(loss, reduction="mean").item()
    gradients = {name: p.grad.clone() for name, p in trainer.model.named_parameters()}
    return Step(gradients, log, [mean.value for mean in trainer.objective.running_means.values()])


def main(model: str, folder: str) -> None:
    world = int(os.environ["WORLD_SIZE"])
    # One micro-batch on each process, several, and passes, of which one process needs more than the other.
    cuts: dict[str, dict[str, dict[str, int]]] = {
        "padded": {"one micro-batch": {"micro_batch": PROMPTS // world}},
        "shared_packed": {
            "micro-batches": {"micro_batch": 1},
            "passes": {"micro_batch": 1, "responses_per_pass": 2},
        },
    }
    cases = CASES if world == 2 else [case for case in CASES if objective(case).couples_batch]
    steps: dict[tuple[str, str], Step] = {}
    for layout in cuts:
        made = trainer(model, f"{folder}/{layout}", **support.LAYOUTS[layout])
        assert made.accelerator.num_processes == world
        wrapped = made.accelerator.prepare_model(made.model)
        assert wrapped is not made.model
        for case in cases:
            for cut, options in cuts[layout].items():
                steps[case, f"{layout}, {cut}"] = run(made, case, model=wrapped, **options)
    if dist.get_rank() == 0:
        torch.save({key: vars(step) for key, step in steps.items()}, f"{folder}/steps.pt")
    with contextlib.suppress(RuntimeError):  # the other rank has already exited
        dist.barrier()
    os._exit(0)  # gloo's threads can deadlock with interpreter shutdown


if __name__ == "__main__":
    main(*sys.argv[1:])
