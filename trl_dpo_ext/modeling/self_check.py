"""Whether a model gives the same log-probs in shared or packed rows as in plain ones, found out by trying.

A model with recurrent or convolution layers, or with biases by column, gives wrong log-probs in such rows without any
error: what it computes for one response leaks into the next. No list of architectures can be complete, so one small
group runs through both paths before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .forward import evaluation_mode, token_logps
from .layout import PromptGroup, padded_layout, shared_layout
from .masks import UnsupportedAttentionError

_PROMPT_TOKENS, _RESPONSE_TOKENS = 16, 8
# Allowed error and crosstalk, as parts of the leak.
_FLOAT32, _LOWER_PRECISION = (1e-3, 1e-3), (0.3, 0.05)


@dataclass(frozen=True)
class RowCheck:
    """Outcome of `check_rows`; all differences are of a token's log-prob, in nats.

    Attributes:
        error: mean difference between the plain rows and the shared or packed ones.
        crosstalk: largest change in one response when all tokens that it must not see are changed.
        leak: mean difference to the plain rows when these rows are run without any separation: how large errors can be.
        allowed: of `error`, and of `crosstalk`.
        failure: why the model can't take such rows, or None where it can.
    """

    error: float
    crosstalk: float
    leak: float
    allowed: tuple[float, float]
    failure: str | None

    @property
    def ok(self) -> bool:
        """Whether the model can be trained on such rows."""
        return self.failure is None


@torch.no_grad()
def check_rows(
    model: nn.Module, config: PreTrainedConfig, group: PromptGroup, *, share: bool = True, full_precision: bool = True
) -> RowCheck:
    """Run one small group through plain rows and through shared (or only packed) ones, and compare.

    Differences count in relation to the leak of the same rows without separation, which makes the answer independent
    of the model's size and training. In float32 the error is a millionth of it, and 0.001 is allowed. In bfloat16, on
    a GPU (TF32) or with a quantized base, rounding alone makes it 0.01 to 0.03 (SmolLM2-135M; 0.17 where experts are
    chosen by it), so 0.3 is allowed. A leak could hide below that, but it shows in the crosstalk, which rounding
    hardly touches, since the shapes are the same: exactly 0 in all these, 0.02 with experts, and 0.05 is allowed.

    Args:
        model: with the fused head; may be wrapped (DDP, FSDP: then every process must call this). It runs in
            evaluation mode, without autocast and gradients, and comes back as it was.
        config: the model's config.
        group: any group of the data; its first tokens are used.
        share: False checks rows that are only packed.
        full_precision: False where the wrapped model itself lowers the precision, as FSDP and accelerate's mixed
            precision do. Weights that aren't float32 are noticed.
    """
    prompt = group.prompt_ids[-_PROMPT_TOKENS:]
    responses = [ids[:_RESPONSE_TOKENS] for ids in (group.completion_ids * 2)[:2]]
    # A second group behind the first shows what leaks from group to group, most clearly with a prompt of one token.
    groups = [PromptGroup(prompt, responses), PromptGroup(prompt[-1:], responses[::-1])]
    plain = padded_layout(groups, width=2)
    shared = shared_layout(groups, width=2, max_tokens=10**9, share=share)
    unseparated = shared | {name: torch.ones_like(shared[name]) for name in ("segment_ids", "prefix_ids")}
    unseparated["position_ids"] = torch.arange(shared["position_ids"].shape[1]).unsqueeze(0)
    last = shared["segment_ids"] == shared["segment_ids"][0, -1]  # its prefix is empty: it sees nothing else
    changed = shared | {"input_ids": shared["input_ids"].where(last, shared["input_ids"][0, -1])}

    # ZeRO-3's weights are empty between forwards, but they know their device and dtype.
    weights = list(model.parameters())
    device = weights[0].device
    # On a GPU, float32 products may run in TF32, which torch reports in several ways.
    exact = full_precision and device.type == "cpu" and all(p.dtype == torch.float32 for p in weights)
    lengths = torch.tensor([[len(ids) for ids in one.completion_ids] for one in groups])

    def logps(batch: Mapping[str, Tensor]) -> Tensor:
        batch = {name: values.to(device) for name, values in batch.items()}
        return token_logps(model, config, {**batch, "lengths": lengths})

    def refused(failure: str) -> RowCheck:
        return RowCheck(float("inf"), float("inf"), float("inf"), (0.0, 0.0), failure)

    with evaluation_mode(model), torch.autocast(device.type, enabled=False):
        expected = logps(plain)
        try:
            got = logps(shared)
            beside_others = logps(changed)
            mixed = logps(unseparated)
        except UnsupportedAttentionError as failure:
            return refused(str(failure))
        except Exception as failure:  # models fail in their own ways when they see a mask they don't expect
            return refused(f"The model fails on such rows: {_first_line(failure)}")

    tokens = int((plain["index"] >= 0).sum())
    error = float((got - expected).abs().sum()) / tokens
    crosstalk = float((beside_others - got)[1, 1].abs().max())
    leak = float((mixed - expected).abs().sum()) / tokens
    # Float32 rounding is all that is left where attention hardly matters.
    rounding = 1e-6 * (1 + float(expected.abs().max()))
    of_error, of_crosstalk = (max(part * leak, rounding) for part in (_FLOAT32 if exact else _LOWER_PRECISION))
    failure_text = None
    if not (error <= of_error and crosstalk <= of_crosstalk):  # also where one is NaN
        failure_text = (
            f"Log-probs differ from the plain path by {error:.2g} nats a token (allowed: {of_error:.2g}), and by up to "
            f"{crosstalk:.2g} with what other responses say (allowed: {of_crosstalk:.2g}): the model has layers that "
            "don't follow the attention mask (recurrent, convolution, or biases by column)."
        )
    return RowCheck(error, crosstalk, leak, (of_error, of_crosstalk), failure_text)


def _first_line(error: Exception) -> str:
    # torch.compile's errors are pages long.
    line = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {line}"
