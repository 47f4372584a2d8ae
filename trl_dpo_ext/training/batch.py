"""Build the losses' input (`RankedResponses`) from a batch, and reduce their output to the loss of a step."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..modeling.forward import Outputs
from ..modeling.passes import passes_of
from ..types import RankedResponses


def ranked_responses(
    policy: Outputs,
    ref_token_logps: Tensor | None,
    batch: Mapping[str, Tensor],
    *,
    needs: Collection[str],
    use_weighting: bool = False,
) -> RankedResponses:
    """Sum token log-probs per response, and add what the batch says of the responses.

    Args:
        policy: the policy's outputs for the batch.
        ref_token_logps: [B, K, T] float32, the reference's log-probs, nats; None without a reference.
        batch: the collator's output: `lengths`, `ranks`, `mask`, and where the data have them `scores`,
            `response_labels`, `reference_scores`, `prompt_weights`, `mismatched`.
        needs: the needs of the losses; "token_logps" keeps the token log-probs.
        use_weighting: compute WPO's weights (arXiv 2406.11827, Eq. 2).
    """
    token_logps = policy.logps
    weights = None
    if use_weighting:
        with torch.no_grad():
            aligned = token_logps - policy.by_response("log_sum_sq_probs")
            weights = torch.exp(aligned.sum(dim=2) / batch["lengths"].clamp(min=1))
    keep_tokens = "token_logps" in needs
    logps = token_logps.sum(dim=2)
    ref_logps = None if ref_token_logps is None else ref_token_logps.sum(dim=2)
    mismatched = batch.get("mismatched")
    return RankedResponses(
        logps=logps,
        ref_logps=ref_logps,
        lengths=batch["lengths"] * batch["mask"],
        ranks=batch["ranks"],
        mask=batch["mask"],
        scores=batch.get("scores"),
        labels=batch.get("response_labels"),
        reference_scores=batch.get("reference_scores"),
        reference_scores_mask=batch.get("reference_scores_mask"),
        prompt_weights=batch.get("prompt_weights"),
        mismatched_logps=_of_the_mismatched(logps.detach(), mismatched),
        ref_mismatched_logps=_of_the_mismatched(ref_logps, mismatched),
        weights=weights,
        token_logps=token_logps if keep_tokens else None,
        ref_token_logps=ref_token_logps if keep_tokens else None,
    )


def _of_the_mismatched(logps: Tensor | None, mismatched: Tensor | None) -> Tensor | None:
    """Return [B] the log-prob of each prompt's mismatched completion."""
    if logps is None or mismatched is None:
        return None
    return logps.masked_fill(~mismatched, 0).sum(dim=1)


def step_loss(per_prompt: Tensor, prompts: Tensor | None, parts: int) -> Tensor:
    """Reduce a micro-batch so that all prompts of an optimizer step get the same weight.

    transformers divides the loss by the number of micro-batches, and DDP by the number of processes. With plain means,
    a smaller last micro-batch would get too much weight.

    Args:
        per_prompt: [B] float32.
        prompts: number of prompts in the optimizer step, over all micro-batches and processes. None outside training;
            the result is then the plain mean.
        parts: number of micro-batches in the step, times processes.
    """
    return per_prompt.mean() if prompts is None else per_prompt.sum() * parts / prompts


def token_count(batch: Mapping[str, Any]) -> Tensor:
    """Return the number of tokens in a batch, without padding and repeated prompt tokens."""
    counts = [one["attention_mask" if "attention_mask" in one else "token_mask"].sum() for one in passes_of(batch)]
    return torch.stack(counts).sum()
