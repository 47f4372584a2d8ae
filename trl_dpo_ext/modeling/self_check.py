"""Whether a model gives the same log-probs in shared or packed rows as in plain ones, found out by trying.

A model with recurrent or convolution layers, or with biases by column, gives wrong log-probs in such rows without any
error: what it computes for one response leaks into the next. No list of architectures can be complete, so one small
group runs through both paths before training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .layout import Group, gather_token_logps, padded_layout, shared_layout
from .masks import UnsupportedAttentionError, model_inputs

_PROMPT_TOKENS, _RESPONSE_TOKENS = 16, 8
_FLOAT32, _LOWER_PRECISION = 1e-3, 0.1


@dataclass(frozen=True)
class RowCheck:
    """Outcome of `check_rows`.

    Attributes:
        error: largest difference of a token's log-prob between the plain rows and the shared or packed ones, nats.
        leak: the same difference when the rows are run without any separation, nats: how large an error would be.
        tolerance: the error that is allowed, nats.
        failure: why the model can't take such rows, or None where it can.
    """

    error: float
    leak: float
    tolerance: float
    failure: str | None

    @property
    def ok(self) -> bool:
        """Whether the model can be trained on such rows."""
        return self.failure is None


@torch.no_grad()
def check_rows(
    model: nn.Module, config: PreTrainedConfig, group: Group, *, share: bool = True, full_precision: bool = True
) -> RowCheck:
    """Run one small group through plain rows and through shared (or only packed) ones, and compare.

    What counts is the error next to the leak of the same rows without separation: the ratio depends neither on the
    model's size nor on how well it is trained. In float32 it is about 1e-6; in bfloat16, or with a quantized base,
    rounding alone makes it 0.005 to 0.03 (SmolLM2-135M), so 0.1 is allowed there, and 0.001 in float32.

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
    # A second group behind the first, with another prompt length, shows what leaks from group to group.
    groups = [Group(prompt, responses), Group(prompt[-(len(prompt) // 2 + 1) :], responses[::-1])]
    plain = padded_layout(groups, width=2)
    shared = shared_layout(groups, width=2, max_tokens=10**9, share=share)
    leaking = shared | {name: torch.ones_like(shared[name]) for name in ("segment_ids", "prefix_ids")}
    leaking["position_ids"] = torch.arange(shared["position_ids"].shape[1]).unsqueeze(0)

    weights = [p for p in model.parameters() if p.numel()]
    exact = full_precision and all(p.dtype == torch.float32 for p in weights)
    exact = exact and torch.get_float32_matmul_precision() == "highest"
    dtype = next((p.dtype for p in weights if p.is_floating_point()), torch.float32)
    shape = (2, 2, max(map(len, responses)))

    def logps(batch: Mapping[str, Tensor]) -> Tensor:
        batch = {name: values.to(weights[0].device) for name, values in batch.items()}
        inputs = model_inputs(config, batch, dtype)
        outputs: Any = model(**inputs, use_cache=False, fused_lm_head=True)
        return gather_token_logps(outputs.log_probs, batch["index"].to(outputs.log_probs.device), shape)

    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.autocast(weights[0].device.type, enabled=False):
            expected = logps(plain)
            try:
                error = float((logps(shared) - expected).abs().max())
                leak = float((logps(leaking) - expected).abs().max())
            except UnsupportedAttentionError as failure:
                return RowCheck(float("inf"), float("inf"), 0.0, str(failure))
            except Exception as failure:  # models fail in their own ways when they see a mask they don't expect
                return RowCheck(float("inf"), float("inf"), 0.0, f"The model fails on it: {failure}")
    finally:
        for module, mode in modes.items():
            module.training = mode
    # The second term is float32 rounding, which alone is left where attention hardly matters.
    tolerance = max((_FLOAT32 if exact else _LOWER_PRECISION) * leak, 1e-6 * (1 + float(expected.abs().max())))
    failure_text = None
    if not error <= tolerance:  # also catches NaN
        failure_text = (
            f"A token's log-prob differs by {error:.2g} nats from the plain path (allowed: {tolerance:.2g}): the model "
            "has layers that don't follow the attention mask (recurrent, convolution, or biases by column)."
        )
    return RowCheck(error, leak, tolerance, failure_text)
