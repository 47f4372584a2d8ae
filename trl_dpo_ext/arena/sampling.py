"""Samples of a small model, and their exact KL to the reference, token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

EOS = 0
NEW_TOKENS = 12


@dataclass(frozen=True)
class Sampled:
    """Responses to N prompts.

    Attributes:
        ids: [N, T] int64, the response's tokens; `EOS` after its end.
        lengths: [N] int64, tokens of the response, the one that ends it included.
        log_probs: [N, T, V] float32, log-probs of all tokens at each position under the sampling model.
    """

    ids: Tensor
    lengths: Tensor
    log_probs: Tensor


@torch.no_grad()
def sample_responses(model: Any, prompts: Tensor, generator: torch.Generator) -> Sampled:
    """Sample one response of at most `NEW_TOKENS` tokens to each prompt, at temperature 1.

    Args:
        model: a causal language model.
        prompts: [N, P] int64, all of the same length, so that nothing is padded.
        generator: where the random numbers come from. The same one gives two models the same numbers.
    """
    cache, ids, steps, scores = None, prompts, [], []
    for _ in range(NEW_TOKENS):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        log_probs = output.logits[:, -1].float().log_softmax(dim=-1)
        uniform = torch.rand(log_probs.shape, generator=generator).clamp(min=1e-12)
        ids = (log_probs - (-uniform.log()).log()).argmax(dim=-1, keepdim=True)  # Gumbel-max
        steps.append(ids)
        scores.append(log_probs)
    tokens = torch.cat(steps, dim=1)
    ended = (tokens == EOS).long().cumsum(dim=1)
    alive = (ended - (tokens == EOS).long()) == 0  # up to the first EOS, that one included
    return Sampled(tokens.masked_fill(~alive, EOS), alive.sum(dim=1), torch.stack(scores, dim=1))


@torch.no_grad()
def exact_kl(sampled: Sampled, reference: Any, prompts: Tensor) -> Tensor:
    """Return [N] KL(policy || reference) summed over a response's positions, nats: exact at each position.

    Its mean over samples is an unbiased estimate of the KL between the distributions of whole responses.

    Args:
        sampled: responses of the policy.
        reference: the reference model.
        prompts: [N, P] as for `sample_responses`.
    """
    ids = torch.cat([prompts, sampled.ids], dim=1)
    logits = reference(input_ids=ids, use_cache=False).logits[:, prompts.shape[1] - 1 : -1].float()
    per_token = (sampled.log_probs.exp() * (sampled.log_probs - logits.log_softmax(dim=-1))).sum(dim=-1)
    positions = torch.arange(per_token.shape[1])
    return (per_token * (positions < sampled.lengths[:, None])).sum(dim=1)
