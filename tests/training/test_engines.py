"""Which engine reads whose checkpoints."""

import pytest

from trl_dpo_ext.training.safety.engines import Engine, why_unreadable

ADAMW = "torch.optim.adamw.AdamW"


def engine(name: str, processes: int = 2, optimizer: str | None = ADAMW) -> Engine:
    form = "SHARDED_STATE_DICT" if name.startswith("FSDP") else None
    return Engine(name=name, processes=processes, optimizer=optimizer, state_dict=form)


@pytest.mark.parametrize(
    ("saved", "now"),
    [
        (engine("one process", 1), engine("DDP", 4)),
        (engine("DDP", 4), engine("one process", 1)),
        (engine("FSDP2", 2), engine("FSDP2", 4)),
        (engine("DeepSpeed ZeRO-2", 2), engine("DeepSpeed ZeRO-2", 2)),
        (engine("DDP", optimizer=ADAMW), engine("DDP", optimizer=None)),
    ],
)
def test_read(saved, now):
    assert why_unreadable(saved, now) is None


@pytest.mark.parametrize(
    ("saved", "now", "reason"),
    [
        (engine("one process", 1), engine("FSDP2"), "different files"),
        (engine("one process", 1), engine("DeepSpeed ZeRO-3"), "different files"),
        (engine("DeepSpeed ZeRO-2"), engine("one process", 1), "different files"),
        (engine("DeepSpeed ZeRO-2"), engine("DeepSpeed ZeRO-3"), "different files"),
        (engine("FSDP2"), engine("DDP"), "different files"),
        (engine("FSDP1"), engine("FSDP2"), "different files"),
        (engine("DeepSpeed ZeRO-2", 2), engine("DeepSpeed ZeRO-2", 4), "cuts the optimizer"),
        (engine("DDP"), engine("DDP", optimizer="torch.optim.sgd.SGD"), "another one's state"),
        (
            engine("FSDP2"),
            Engine(name="FSDP2", processes=2, state_dict="FULL_STATE_DICT"),
            "state_dict_type",
        ),
    ],
)
def test_not_read(saved, now, reason):
    assert reason in str(why_unreadable(saved, now))


def test_names():
    assert str(engine("one process", 1, None)) == "one process"
    assert str(engine("one process", 1)) == f"one process (optimizer {ADAMW})"
    assert str(engine("FSDP2", 2)) == f"FSDP2 (2 processes, SHARDED_STATE_DICT, optimizer {ADAMW})"
