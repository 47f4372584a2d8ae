"""Which engine a checkpoint was written with, and which others can read it."""

from __future__ import annotations

from typing import Any

from accelerate import DistributedType
from pydantic import ConfigDict

from ...record import Record

# One process and DDP write the same files: every process holds all weights and the whole optimizer.
_WHOLE = ("one process", "DDP")


class Engine(Record):
    """The engine of a run.

    Attributes:
        name: "one process", "DDP", "FSDP1", "FSDP2", "DeepSpeed ZeRO-2", ...; "tensor parallel" may follow.
        processes: number of processes.
        optimizer: the class of the optimizer, with its module; None if it isn't known.
        state_dict: how FSDP writes weights and optimizer, None for the others.
    """

    model_config = ConfigDict(extra="forbid")

    name: str
    processes: int
    optimizer: str | None = None
    state_dict: str | None = None

    @property
    def writes_alone(self) -> bool:
        """Whether each process writes its files of a checkpoint without waiting for the others."""
        return self.name in _WHOLE

    def __str__(self) -> str:
        form = f", {self.state_dict}" if self.state_dict else ""
        optimizer = f", optimizer {self.optimizer}" if self.optimizer else ""
        several = f"{self.processes} processes" if self.processes > 1 else "1 process"
        return f"{self.name} ({'' if self.name == 'one process' else several}{form}{optimizer})".replace(
            "(, ", "("
        ).replace(" ()", "")


def engine_of(accelerator: Any, optimizer: str | None) -> Engine:
    """Return the engine of this run.

    Args:
        accelerator: of the run.
        optimizer: see `optimizer_name`.
    """
    kind, form = accelerator.distributed_type, None
    if kind == DistributedType.DEEPSPEED:
        name = f"DeepSpeed ZeRO-{accelerator.state.deepspeed_plugin.zero_stage}"
    elif kind == DistributedType.FSDP:
        plugin = accelerator.state.fsdp_plugin
        name = f"FSDP{plugin.fsdp_version}"
        form = str(getattr(plugin.state_dict_type, "name", plugin.state_dict_type))
    else:
        name = "one process" if accelerator.num_processes == 1 else "DDP"
    parallel = getattr(accelerator, "parallelism_config", None)
    if parallel is not None and getattr(parallel, "tp_enabled", False):
        name += " with tensor parallelism"
    return Engine(name=name, processes=accelerator.num_processes, optimizer=optimizer, state_dict=form)


def optimizer_name(optimizer: Any) -> str | None:
    """Return the class of an optimizer as module.Class, without the wrappers of accelerate; None for None."""
    while type(optimizer).__module__.startswith("accelerate.") and hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    return None if optimizer is None else f"{type(optimizer).__module__}.{type(optimizer).__qualname__}"


def why_unreadable(saved: Engine, now: Engine) -> str | None:
    """Return a clause that says why a run can't go on from a checkpoint, or None if it can.

    Args:
        saved: the engine that wrote the checkpoint.
        now: the engine of the run.
    """
    whole = saved.name in _WHOLE and now.name in _WHOLE
    if not whole and saved.name != now.name:
        return "they write weights and optimizer into different files"
    if saved.state_dict != now.state_dict:
        return "they write weights and optimizer in different forms (fsdp_config: state_dict_type)"
    if saved.name.startswith("DeepSpeed") and saved.processes != now.processes:
        return "DeepSpeed cuts the optimizer into one part per process, and can't cut it anew"
    if None not in (saved.optimizer, now.optimizer) and saved.optimizer != now.optimizer:
        return "an optimizer can't read another one's state"
    return None
