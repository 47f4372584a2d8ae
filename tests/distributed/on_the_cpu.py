"""Lets FSDP2 and DeepSpeed run on processes of the CPU over gloo.

accelerate turns processes of the CPU into plain DDP, whatever the launch says, because FSDP and DeepSpeed are meant for
accelerators. Their own code runs on the CPU as well; only the choice of the backend stands in the way.
"""

from __future__ import annotations

import os
from importlib import import_module

from accelerate import DeepSpeedPlugin
from accelerate.state import DistributedType, PartialState


def prepare() -> None:
    """Change this process, before anything makes accelerate's state. Not for the process of the tests themselves."""
    os.environ["ACCELERATE_USE_CPU"] = "false"
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    PartialState._prepare_backend = _gloo
    if os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
        # The only kernel that DeepSpeed would compile here: shared memory between the processes of one machine. The
        # name `deepspeed.comm.torch` is torch itself.
        import_module("deepspeed.comm.torch").build_shm_op = lambda: None
        DeepSpeedPlugin.__post_init__ = _nothing_stays_whole


def _gloo(self: PartialState, *args: object, **kwargs: object) -> tuple[str, DistributedType]:
    return "gloo", DistributedType.MULTI_GPU


_plugin = DeepSpeedPlugin.__post_init__


def _nothing_stays_whole(self: DeepSpeedPlugin) -> None:
    """ZeRO-3 keeps small weights whole, and those of a tiny model all are small."""
    _plugin(self)
    if self.zero_stage == 3:
        self.deepspeed_config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
