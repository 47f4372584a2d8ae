"""The input of a loss: pairs of responses, or whole rankings.

Shapes are checked here, when the tensors enter, so that losses can rely on them. Log-probs are in nats, summed over the
completion's tokens. Log-ratios are policy minus reference.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

Pairing = Literal["all", "best_vs_rest", "adjacent", "best_vs_worst"]
PAIRINGS: tuple[str, ...] = get_args(Pairing)
PROMPT_FIELDS = (
    "reference_scores",
    "reference_scores_mask",
    "prompt_weights",
    "mismatched_logps",
    "ref_mismatched_logps",
)
"""Fields of `RankedResponses` about the prompt, not about each of its responses."""


class MissingReferenceError(RuntimeError):
    """A loss read reference log-probs that don't exist: it is declared reference-free, or none were computed."""


class MissingInputError(RuntimeError):
    """A loss read an input (scores, running mean, ...) that it didn't declare or that was not provided."""


def _require(value: Tensor | None, what: str) -> Tensor:
    if value is None:
        raise MissingInputError(f"This loss reads {what}, but got none. Declare the need in register_loss.")
    return value


def _log_ratios(logps: Tensor, ref_logps: Tensor | None) -> Tensor:
    if ref_logps is None:
        raise MissingReferenceError(
            "This loss reads log-ratios, but there are no reference log-probs. A loss registered with "
            "reference_free=True can only read the policy's log-probs."
        )
    return logps - ref_logps


def _mean_logps(logps: Tensor, lengths: Tensor) -> Tensor:
    return logps / lengths.clamp(min=1)


def _check_shapes(obj: object, shape: torch.Size, extra_dim: tuple[str, ...], scalar: tuple[str, ...]) -> None:
    for field in fields(obj):  # type: ignore[arg-type]
        value = getattr(obj, field.name)
        if value is None or field.name in scalar:
            continue
        got = value.shape[:-1] if field.name in extra_dim else value.shape
        if got != shape:
            expected = f"{tuple(shape)}" + (" + [tokens]" if field.name in extra_dim else "")
            raise ValueError(f"{type(obj).__name__}.{field.name} has shape {tuple(value.shape)}, expected {expected}.")


@dataclass(frozen=True)
class PreferencePairs:
    """N pairs of a better (chosen) and a worse (rejected) response. All tensors are [N] unless stated otherwise.

    Attributes:
        chosen_logps, rejected_logps: log pi(y|x), summed over completion tokens, nats.
        ref_chosen_logps, ref_rejected_logps: the same under the reference, or None.
        chosen_lengths, rejected_lengths: completion tokens, int64.
        chosen_scores, rejected_scores: the data's own scores, or None.
        ties: bool, True where the two responses are equally good; None if ties were not asked for.
        prompts: int64, the row of `RankedResponses` that each pair came from, or None.
        chosen_weights, rejected_weights: on-policy weight of each response (WPO), or None.
        chosen_token_logps, ... : [N, T] per-token log-probs, 0 past the response's length, or None.
        batch_mean, running_mean: scalars, or None; the mean over this batch, and the moving average over training, of
            the statistic that the loss declares.
    """

    chosen_logps: Tensor
    rejected_logps: Tensor
    ref_chosen_logps: Tensor | None
    ref_rejected_logps: Tensor | None
    chosen_lengths: Tensor
    rejected_lengths: Tensor
    chosen_scores: Tensor | None = None
    rejected_scores: Tensor | None = None
    ties: Tensor | None = None
    prompts: Tensor | None = None
    chosen_weights: Tensor | None = None
    rejected_weights: Tensor | None = None
    chosen_token_logps: Tensor | None = None
    rejected_token_logps: Tensor | None = None
    ref_chosen_token_logps: Tensor | None = None
    ref_rejected_token_logps: Tensor | None = None
    batch_mean: Tensor | None = None
    running_mean: Tensor | None = None

    def __post_init__(self) -> None:
        if self.chosen_logps.dim() != 1:
            raise ValueError(f"PreferencePairs.chosen_logps has shape {tuple(self.chosen_logps.shape)}, expected [N].")
        token_fields = tuple(f.name for f in fields(self) if f.name.endswith("_token_logps"))
        _check_shapes(self, self.chosen_logps.shape, token_fields, ("batch_mean", "running_mean"))

    def __len__(self) -> int:
        return self.chosen_logps.shape[0]

    def replace(self, **changes: Any) -> PreferencePairs:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def required(self, field: str) -> Tensor:
        """Return an optional input by field name. Raises `MissingInputError` if it is missing."""
        return _require(getattr(self, field), field)

    @property
    def chosen_log_ratios(self) -> Tensor:
        """[N] log pi(y_w|x) - log pi_ref(y_w|x). Raises `MissingReferenceError` without a reference."""
        return _log_ratios(self.chosen_logps, self.ref_chosen_logps)

    @property
    def rejected_log_ratios(self) -> Tensor:
        """[N] log pi(y_l|x) - log pi_ref(y_l|x). Raises `MissingReferenceError` without a reference."""
        return _log_ratios(self.rejected_logps, self.ref_rejected_logps)

    @property
    def margins(self) -> Tensor:
        """[N] chosen minus rejected log-ratio. Raises `MissingReferenceError` without a reference."""
        return self.chosen_log_ratios - self.rejected_log_ratios

    @property
    def chosen_mean_logps(self) -> Tensor:
        """[N] mean log-prob per token of the chosen response, nats; 0 for an empty one."""
        return _mean_logps(self.chosen_logps, self.chosen_lengths)

    @property
    def rejected_mean_logps(self) -> Tensor:
        """[N] mean log-prob per token of the rejected response, nats; 0 for an empty one."""
        return _mean_logps(self.rejected_logps, self.rejected_lengths)

    @property
    def score_margins(self) -> Tensor:
        """[N] chosen minus rejected score of the data. Raises `MissingInputError` without scores."""
        return _require(self.chosen_scores, "scores") - _require(self.rejected_scores, "scores")


@dataclass(frozen=True)
class RankedResponses:
    """B prompts with up to K responses each. All tensors are [B, K] unless stated otherwise.

    Attributes:
        logps: log pi(y|x), summed over completion tokens, nats.
        ref_logps: the same under the reference, or None.
        lengths: completion tokens, int64.
        ranks: int64, 0 = best; equal numbers are a tie.
        mask: bool, False = no such response (ragged K); the other tensors' entries there have no influence.
        scores: the data's own scores, or None.
        labels: int8, +1 desirable, -1 undesirable, 0 unknown, or None.
        reference_scores, reference_scores_mask: [B, M] scores of samples of the reference for each prompt, and which of
            them exist (bool, ragged M), or None.
        prompt_weights: [B] weight of each row in the data, or None.
        mismatched_logps, ref_mismatched_logps: [B] log-prob of a completion of another prompt after this one, summed
            over its tokens, nats, without gradient; or None.
        weights: on-policy weight of each response (WPO), or None.
        token_logps, ref_token_logps: [B, K, T] per-token log-probs, 0 past the response's length, or None.
        batch_mean, running_mean: scalars, see `PreferencePairs`.
    """

    logps: Tensor
    ref_logps: Tensor | None
    lengths: Tensor
    ranks: Tensor
    mask: Tensor
    scores: Tensor | None = None
    labels: Tensor | None = None
    reference_scores: Tensor | None = None
    reference_scores_mask: Tensor | None = None
    prompt_weights: Tensor | None = None
    mismatched_logps: Tensor | None = None
    ref_mismatched_logps: Tensor | None = None
    weights: Tensor | None = None
    token_logps: Tensor | None = None
    ref_token_logps: Tensor | None = None
    batch_mean: Tensor | None = None
    running_mean: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logps.dim() != 2:
            raise ValueError(f"RankedResponses.logps has shape {tuple(self.logps.shape)}, expected [B, K].")
        others = ("batch_mean", "running_mean", *PROMPT_FIELDS)
        _check_shapes(self, self.logps.shape, ("token_logps", "ref_token_logps"), others)
        for name in PROMPT_FIELDS:
            value = getattr(self, name)
            if value is not None and len(value) != len(self.logps):
                raise ValueError(
                    f"RankedResponses.{name} has shape {tuple(value.shape)}, expected {len(self.logps)} rows."
                )
        if self.mask.dtype != torch.bool:
            raise ValueError(f"RankedResponses.mask has dtype {self.mask.dtype}, expected torch.bool.")

    def __len__(self) -> int:
        return self.logps.shape[0]

    def replace(self, **changes: Any) -> RankedResponses:
        """Return a copy with some fields changed."""
        return replace(self, **changes)

    def required(self, field: str) -> Tensor:
        """Return an optional input by field name. Raises `MissingInputError` if it is missing."""
        return _require(getattr(self, field), field)

    @property
    def log_ratios(self) -> Tensor:
        """[B, K] log pi(y|x) - log pi_ref(y|x). Raises `MissingReferenceError` without a reference."""
        return _log_ratios(self.logps, self.ref_logps)

    @property
    def mean_logps(self) -> Tensor:
        """[B, K] mean log-prob per token, nats; 0 for an empty response."""
        return _mean_logps(self.logps, self.lengths)

    @property
    def mismatched_log_ratios(self) -> Tensor:
        """[B] log-ratio of the mismatched completions. Raises `MissingInputError` without them."""
        return _log_ratios(_require(self.mismatched_logps, "mismatched"), self.ref_mismatched_logps)

    def required_labels(self) -> Tensor:
        """[B, K] int8, +1 desirable, -1 undesirable, 0 unknown or no response. Raises `MissingInputError` without."""
        return _require(self.labels, "labels")

    def required_scores(self) -> Tensor:
        """[B, K] the data's scores. Raises `MissingInputError` without scores."""
        return _require(self.scores, "scores")

    def pairs(self, pairing: str = "all", ties: bool = False) -> PreferencePairs:
        """Return the pairs that a pairing selects (see `pair_indices`). `prompts` holds the row of each."""
        prompt, better, worse = pair_indices(self.ranks, self.mask, pairing, ties)

        def pick(values: Tensor | None, column: Tensor) -> Tensor | None:
            return None if values is None else values[prompt, column]

        return PreferencePairs(
            chosen_logps=self.logps[prompt, better],
            rejected_logps=self.logps[prompt, worse],
            ref_chosen_logps=pick(self.ref_logps, better),
            ref_rejected_logps=pick(self.ref_logps, worse),
            chosen_lengths=self.lengths[prompt, better],
            rejected_lengths=self.lengths[prompt, worse],
            chosen_scores=pick(self.scores, better),
            rejected_scores=pick(self.scores, worse),
            ties=self.ranks[prompt, better] == self.ranks[prompt, worse] if ties else None,
            prompts=prompt,
            chosen_weights=pick(self.weights, better),
            rejected_weights=pick(self.weights, worse),
            chosen_token_logps=pick(self.token_logps, better),
            rejected_token_logps=pick(self.token_logps, worse),
            ref_chosen_token_logps=pick(self.ref_token_logps, better),
            ref_rejected_token_logps=pick(self.ref_token_logps, worse),
            batch_mean=self.batch_mean,
            running_mean=self.running_mean,
        )


def pair_indices(
    ranks: Tensor, mask: Tensor, pairing: str = "all", ties: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the indices of the pairs that a batch of rankings gives.

    Args:
        ranks: [B, K] int64, 0 = best, equal = tie.
        mask: [B, K] bool, False = no such response.
        pairing: `all` (every better response against every worse one), `best_vs_rest`, `adjacent` (each rank against
            the next rank that occurs) or `best_vs_worst`.
        ties: whether tied responses form pairs too (each once, in column order), for losses that read ties. `all` and
            `adjacent` keep all ties, `best_vs_rest` those among the best responses, `best_vs_worst` only those of
            prompts whose responses are all tied.

    Returns:
        (prompt, better, worse), int64 [N] each, ordered by prompt, then better, then worse.

    >>> ranks, mask = torch.tensor([[1, 0, 2]]), torch.ones(1, 3, dtype=torch.bool)
    >>> [t.tolist() for t in pair_indices(ranks, mask, "adjacent")]
    [[0, 0], [0, 1], [2, 0]]
    """
    if pairing not in PAIRINGS:
        raise ValueError(f"Unknown pairing {pairing!r}; expected one of {', '.join(PAIRINGS)}.")
    far = torch.iinfo(ranks.dtype).max
    ranks_or_far = ranks.masked_fill(~mask, far)
    first, second = ranks_or_far.unsqueeze(2), ranks_or_far.unsqueeze(1)  # [B, K, 1], [B, 1, K]
    both = mask.unsqueeze(2) & mask.unsqueeze(1)
    wanted = both & (first < second)
    best = ranks_or_far == ranks_or_far.min(dim=1, keepdim=True).values
    if pairing == "best_vs_rest":
        wanted &= best.unsqueeze(2)
    elif pairing == "best_vs_worst":
        ranks_or_near = ranks.masked_fill(~mask, -1)
        wanted &= best.unsqueeze(2) & (ranks_or_near == ranks_or_near.max(dim=1, keepdim=True).values).unsqueeze(1)
    elif pairing == "adjacent":
        # The next level below each response: the smallest rank that is larger than its own.
        next_level = second.expand_as(both).masked_fill(~wanted, far).min(dim=2, keepdim=True).values
        wanted &= second == next_level
    if ties:
        tied = both & (first == second)
        if pairing in ("best_vs_rest", "best_vs_worst"):
            tied &= best.unsqueeze(2)
        if pairing == "best_vs_worst":
            tied &= ~wanted.flatten(1).any(dim=1)[:, None, None]
        wanted |= tied.triu(diagonal=1)
    prompt, better, worse = wanted.nonzero(as_tuple=True)
    return prompt, better, worse
