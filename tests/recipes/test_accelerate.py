"""The accelerate configs as accelerate's launcher reads them: what its processes receive.

tests/test_package.py checks that each file loads and names hardware only.
"""

from __future__ import annotations

import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType

from tests.helpers import ROOT, free_port

FOLDER = ROOT / "recipes" / "accelerate"


def launched(name: str, *options: str):
    """Return the launcher's arguments and the environment of its processes."""
    port = ("--main_process_port", str(free_port()))
    arguments = launch_command_parser().parse_args(
        ["--config_file", str(FOLDER / f"{name}.yaml"), *port, *options, "recipes/train.py"]
    )
    arguments, defaults, _ = _validate_launch_command(arguments)
    if arguments.use_deepspeed:
        arguments.deepspeed_fields_from_accelerate_config = ",".join(defaults.deepspeed_config)  # as the launcher does
        return arguments, prepare_deepspeed_cmd_env(arguments)[1]
    return arguments, prepare_multi_gpu_env(arguments)


def test_all_are_here():
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {
        *("cpu", "cpu_2", "single_gpu", "ddp", "two_nodes"),
        *("fsdp2", "fsdp2_qlora", "zero2", "zero3"),
    }


@pytest.mark.parametrize(
    ("name", "processes"),
    [(name, 2) for name in ("cpu_2", "ddp", "fsdp2", "fsdp2_qlora", "zero2", "zero3")] + [("two_nodes", 4)],
)
def test_processes(name, processes):
    arguments, environment = launched(name)
    assert arguments.num_processes == processes
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"  # the recipe's bf16 decides
    if name != "two_nodes":
        assert launched(name, "--num_processes", "4")[0].num_processes == 4


@pytest.mark.parametrize("name", ["fsdp2", "fsdp2_qlora"])
def test_fsdp(name, monkeypatch):
    _, environment = launched(name)
    assert environment["ACCELERATE_USE_FSDP"] == "true"
    for key, value in environment.items():
        if key.startswith("FSDP_"):
            monkeypatch.setenv(key, value)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    assert not isinstance(plugin.cpu_offload, CPUOffloadPolicy)
    # Accelerate can't broadcast 4-bit weights, so each process loads them.
    assert plugin.cpu_ram_efficient_loading is (name == "fsdp2")


@pytest.mark.parametrize("stage", [2, 3])
def test_deepspeed(stage):
    arguments, environment = launched(f"zero{stage}")
    assert environment["ACCELERATE_USE_DEEPSPEED"] == "true"
    assert environment["ACCELERATE_DEEPSPEED_ZERO_STAGE"] == str(stage)
    assert environment["ACCELERATE_DEEPSPEED_OFFLOAD_PARAM_DEVICE"] == "none"
    for key in ("ACCELERATE_DEEPSPEED_ZERO3_INIT", "ACCELERATE_DEEPSPEED_ZERO3_SAVE_16BIT_MODEL"):
        assert environment.get(key, "false").lower() == str(stage == 3).lower()
    # Trainer fills in the recipe's value.
    assert environment.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto") == "auto"
    assert arguments.gradient_clipping is None


def test_two_nodes_share_an_address():
    arguments, _ = launched("two_nodes", "--main_process_ip", "127.0.0.1", "--machine_rank", "1")
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "2", 1)
    assert arguments.rdzv_backend == "static"
    assert arguments.rdzv_endpoint.startswith("127.0.0.1:")
