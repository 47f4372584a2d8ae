"""The undocumented bitsandbytes names used here. A failure says what changed and what breaks without it."""

import inspect

import bitsandbytes as bnb
import torch

from trl_dpo_ext._compat import bitsandbytes as compat

VERSION = f"bitsandbytes {bnb.__version__}"


def test_the_state_of_an_8_bit_optimizer():
    weight = torch.nn.Parameter(torch.zeros(128, 128))
    optimizer = bnb.optim.PagedAdamW8bit([weight])
    assert list(inspect.signature(optimizer.init_state).parameters) == ["group", "p", "gindex", "pindex"], (
        f"{VERSION}: init_state takes other arguments: no memory estimate with bitsandbytes' optimizers."
    )
    compat.allocate_optimizer_state(optimizer)
    state = optimizer.state[weight]
    for name in ("state1", "state2"):
        assert state[name].dtype == torch.uint8, f"{VERSION}: {name} is no 8-bit state: the estimate would be wrong."
        assert state[name].numel() == weight.numel()
