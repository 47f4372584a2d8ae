"""Modifiers that apply to any loss: f-divergences, LD-DPO's length weighting, humanline's clipping, WPO's weights."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..losses.kinks import clip
from ..types import PreferencePairs, RankedResponses

Data = TypeVar("Data", PreferencePairs, RankedResponses)

F_DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")


def f_divergence_rewards(log_ratios: Tensor, kind: str, alpha: float = 0.5) -> Tensor:
    """Return f'(pi / pi_ref), the implicit reward per unit of beta under an f-divergence penalty.

    Args:
        log_ratios: float, any shape; log pi - log pi_ref, nats.
        kind: one of `F_DIVERGENCES`; `reverse_kl` returns the log-ratios unchanged.
        alpha: coefficient of the alpha-divergence; 1 means `reverse_kl`.

    Returns:
        float, same shape. Additive constants are the same as in TRL; they cancel in differences.

    Reference: arXiv 2309.16240, table 1.
    """
    if kind == "forward_kl":
        return 1 - torch.exp(-log_ratios)
    if kind == "js_divergence":
        return math.log(2) + F.logsigmoid(log_ratios)
    if kind == "alpha_divergence" and abs(alpha - 1) >= 1e-6:
        # The limit keeps the exponential finite in float32, as in TRL.
        return torch.expm1(clip((alpha - 1) * log_ratios, high=80)) / (alpha - 1)
    return log_ratios


def tail_weighted_sum(token_logps: Tensor, shared: Tensor, alpha: float) -> Tensor:
    """Sum token log-probs with weight 1 up to the shared length and `alpha` beyond it (LD-DPO).

    Args:
        token_logps: [..., T] float, 0 past each response's end.
        shared: [...] int64, the length that all compared responses reach.
        alpha: weight of the tail, in [0, 1].

    Returns:
        [...] float.

    Reference: arXiv 2409.06411. As in TRL, policy and reference get the same weights.
    """
    position = torch.arange(token_logps.shape[-1], device=token_logps.device)
    return (token_logps * torch.where(position < shared.unsqueeze(-1), 1.0, alpha)).sum(dim=-1)


def _token_fields(data: Data) -> dict[str, str]:
    """From each field of summed log-probs to the field of its token log-probs; the policy's, then the reference's."""
    if isinstance(data, PreferencePairs):
        names = ("chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps")
    else:
        names = ("logps", "ref_logps")
    return {name: name.replace("logps", "token_logps") for name in names}


def _humanline(data: Data, low: float, high: float) -> Data:
    changes: dict[str, Tensor] = {}
    for summed, of_tokens in _token_fields(data).items():
        if summed.startswith("ref_"):
            continue
        reference = getattr(data, f"ref_{of_tokens}")
        clipped = reference + clip(getattr(data, of_tokens) - reference, low=low, high=high)
        changes |= {of_tokens: clipped, summed: clipped.sum(dim=-1)}
    return data.replace(**changes)


def _length_weighted(data: Data, alpha: float) -> Data:
    if isinstance(data, PreferencePairs):
        shared = torch.minimum(data.chosen_lengths, data.rejected_lengths)
    else:
        far = torch.iinfo(data.lengths.dtype).max
        shared = data.lengths.masked_fill(~data.mask, far).min(dim=1, keepdim=True).values.expand_as(data.lengths)
    token_logps = {summed: getattr(data, of_tokens) for summed, of_tokens in _token_fields(data).items()}
    return data.replace(**{k: tail_weighted_sum(v, shared, alpha) for k, v in token_logps.items() if v is not None})


def _f_divergence(data: Data, kind: str, alpha: float) -> Data:
    # Losses compute log-ratios as logps - ref_logps. Setting logps to f' and ref_logps to 0 makes that f'.
    if isinstance(data, PreferencePairs):
        return data.replace(
            chosen_logps=f_divergence_rewards(data.chosen_log_ratios, kind, alpha),
            rejected_logps=f_divergence_rewards(data.rejected_log_ratios, kind, alpha),
            ref_chosen_logps=torch.zeros_like(data.chosen_logps),
            ref_rejected_logps=torch.zeros_like(data.rejected_logps),
        )
    return data.replace(
        logps=f_divergence_rewards(data.log_ratios, kind, alpha), ref_logps=torch.zeros_like(data.logps)
    )


@dataclass(frozen=True)
class LossModifiers:
    """Settings that modify the input or the value of every loss.

    Attributes:
        f_divergence_type, f_alpha_divergence_coef: `kind` and `alpha` of `f_divergence_rewards`.
        ld_alpha: weight of the tokens beyond the shared length; None for no weighting.
        use_weighting: multiply each pair's loss by the policy's length-normalized probabilities (WPO).
        humanline: limits of each token's log-ratio, nats; None for no clipping (arXiv 2509.24207).
    """

    f_divergence_type: str = "reverse_kl"
    f_alpha_divergence_coef: float = 0.5
    ld_alpha: float | None = None
    use_weighting: bool = False
    humanline: tuple[float, float] | None = None

    @property
    def reads_tokens(self) -> bool:
        """Whether any of them needs the token log-probs."""
        return self.ld_alpha is not None or self.humanline is not None

    def length_weighted(self, data: Data) -> Data:
        """Apply `ld_alpha` to data with token log-probs."""
        return data if self.ld_alpha is None else _length_weighted(data, self.ld_alpha)

    def apply(self, data: Data) -> Data:
        """Apply `humanline`, then `ld_alpha`, then the f-divergence, to data with a reference."""
        if self.humanline is not None:
            data = _humanline(data, *self.humanline)
        data = self.length_weighted(data)
        if self.f_divergence_type == "reverse_kl":
            return data
        return _f_divergence(data, self.f_divergence_type, self.f_alpha_divergence_coef)
