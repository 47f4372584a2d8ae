"""Check by experiment that a model gives the same log-probs in shared or packed rows as in plain rows.

Models with recurrent or convolution layers, or with column-based attention biases, give wrong log-probs in such rows
without raising an error: one response leaks into the next. No list of such architectures can be complete. So before
training, one small group runs through both layouts.
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
# Allowed error and crosstalk, as fractions of the leak.
_FLOAT32, _LOWER_PRECISION = (1e-3, 1e-3), (0.3, 0.05)


@dataclass(frozen=True)
class RowCheck:
    """Result of `check_rows`. All differences are absolute differences of token log-probs, in nats.

    Attributes:
        error: mean difference between plain rows and shared or packed rows.
        crosstalk: largest change in one response when every token that it must not attend to changes.
        leak: mean difference from plain rows without any separation in the row: the size of a complete failure.
        allowed: limits of `error` and of `crosstalk`.
        failure: why the model can't use such rows; None if it can.
    """

    error: float
    crosstalk: float
    leak: float
    allowed: tuple[float, float]
    failure: str | None

    @property
    def ok(self) -> bool:
        """Whether the model can train on such rows."""
        return self.failure is None


@torch.no_grad()
def check_rows(
    model: nn.Module, config: PreTrainedConfig, group: PromptGroup, *, share: bool = True, full_precision: bool = True
) -> RowCheck:
    """Run one small group through plain rows and through shared (or only packed) rows, and compare.

    Error and crosstalk are measured relative to the leak of the same rows without separation, so that the limits hold
    for models of any size and at any stage of training. In float32 the error is about 1e-6 of the leak; 0.001 is
    allowed. In bfloat16, on a GPU (TF32), or with a quantized base, rounding alone gives 0.01 to 0.03 (SmolLM2-135M;
    0.17 if rounding changes the choice of experts); 0.3 is allowed. A leak below that limit still shows as crosstalk,
    which rounding hardly affects because the shapes are the same: exactly 0 in all these cases, 0.02 with experts;
    0.05 is allowed.

    Args:
        model: a model with the fused head. If it is wrapped (DDP, FSDP), every process must call this. It runs in
            evaluation mode without autocast and gradients, and its mode is restored.
        config: the model's config.
        group: any group of the data; only its first tokens are used.
        share: False checks packed rows without shared prompts.
        full_precision: False if the wrapped model lowers the precision itself, as FSDP and accelerate's mixed precision
            do. Weights in a lower precision are detected.
    """
    prompt = group.prompt_ids[-_PROMPT_TOKENS:]
    responses = [ids[:_RESPONSE_TOKENS] for ids in (group.completion_ids * 2)[:2]]
    # The second group reveals leaks between groups, most clearly with a one-token prompt.
    groups = [PromptGroup(prompt, responses), PromptGroup(prompt[-1:], responses[::-1])]
    plain = padded_layout(groups, width=2)
    shared = shared_layout(groups, width=2, max_tokens=10**9, share=share)
    unseparated = shared | {name: torch.ones_like(shared[name]) for name in ("segment_ids", "prefix_ids")}
    unseparated["position_ids"] = torch.arange(shared["position_ids"].shape[1]).unsqueeze(0)
    last = shared["segment_ids"] == shared["segment_ids"][0, -1]  # its prefix is empty, so it attends to itself only
    changed = shared | {"input_ids": shared["input_ids"].where(last, shared["input_ids"][0, -1])}

    # Under ZeRO-3, weights are empty between forwards but keep their device and dtype.
    weights = list(model.parameters())
    device = weights[0].device
    # On a GPU, float32 products may use TF32, which torch reports in several ways.
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
        except Exception as failure:  # models raise all kinds of errors for an unexpected mask
            return refused(f"The model fails on such rows: {_first_line(failure)}")

    tokens = int((plain["index"] >= 0).sum())
    error = float((got - expected).abs().sum()) / tokens
    crosstalk = float((beside_others - got)[1, 1].abs().max())
    leak = float((mixed - expected).abs().sum()) / tokens
    # If attention hardly matters, the leak is small too and only float32 rounding remains.
    rounding = 1e-6 * (1 + float(expected.abs().max()))
    of_error, of_crosstalk = (max(part * leak, rounding) for part in (_FLOAT32 if exact else _LOWER_PRECISION))
    failure_text = None
    if not (error <= of_error and crosstalk <= of_crosstalk):  # also where one is NaN
        failure_text = (
            f"Log-probs differ from those of plain rows by {error:.2g} nats per token (allowed: {of_error:.2g}), and "
            f"change by up to {crosstalk:.2g} nats with the text of other responses (allowed: {of_crosstalk:.2g}). "
            "Some layers don't follow the attention mask (recurrent, convolution, or column-based biases)."
        )
    return RowCheck(error, crosstalk, leak, (of_error, of_crosstalk), failure_text)


def _first_line(error: Exception) -> str:
    # torch.compile errors are pages long.
    line = next(iter(str(error).splitlines()), "")[:200]
    return f"{type(error).__name__}: {line}"
