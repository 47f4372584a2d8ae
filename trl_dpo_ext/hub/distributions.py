"""Compares the next-token distributions of two models on the same prompts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import tqdm
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..data.prompts import plain_prompt

_BATCH = 4  # so that progress shows on a CPU too


def next_token_logits(
    model: Any, tokenizer: Any, prompts: Sequence[str], *, max_tokens: int = 32, progress: str | None = None
) -> list[Tensor]:
    """Return the logits after every token of each prompt, computed in float32 whatever the dtype of the weights.

    Args:
        model: a causal language model; it is left in evaluation mode.
        tokenizer: its tokenizer.
        prompts: N texts, each of at least one token; tokenized as training tokenizes prompts (`plain_prompt`).
        max_tokens: longer prompts are cut to their first `max_tokens` tokens.
        progress: label of a progress bar; None shows none.

    Returns:
        N tensors [tokens of the prompt, vocabulary], float32, on the CPU.
    """
    model.eval()
    found: list[Tensor] = []
    device = model.get_input_embeddings().weight.device
    rows = [torch.tensor(plain_prompt(prompt, tokenizer).token_ids[:max_tokens]) for prompt in prompts]
    with tqdm(total=len(rows), desc=progress, unit="prompt", disable=progress is None) as bar:
        for start in range(0, len(rows), _BATCH):
            batch = rows[start : start + _BATCH]
            ids = pad_sequence(batch, batch_first=True)  # on the right: no token attends to the padding after it
            mask = pad_sequence([torch.ones_like(row) for row in batch], batch_first=True)
            with torch.no_grad(), _computing_in_float32(model):
                logits = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
            found += [one[: len(row)].float().cpu() for one, row in zip(logits, batch, strict=True)]
            bar.update(len(batch))
    return found


@contextlib.contextmanager
def _computing_in_float32(model: nn.Module) -> Iterator[None]:
    # A module's weights are float32 only while it runs, so never more than one layer is held twice.
    def wrap(module: nn.Module) -> None:
        own = [p for p in module.parameters(recurse=False) if p.dtype in (torch.float16, torch.bfloat16)]
        stored: list[Tensor] = []

        def widen(*_: Any) -> None:
            stored[:] = [p.data for p in own]
            for parameter in own:
                parameter.data = parameter.data.float()

        def restore(*_: Any) -> None:
            for parameter, data in zip(own, stored, strict=True):
                parameter.data = data

        if own:
            handles.append(module.register_forward_pre_hook(widen))
            handles.append(module.register_forward_hook(restore, always_call=True))

    handles: list[Any] = []
    for module in model.modules():
        wrap(module)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compare_distributions(trained: Sequence[Tensor], other: Sequence[Tensor]) -> dict[str, float]:
    """Compare two models' next-token distributions, position by position.

    Args:
        trained: logits of the model that was trained, from `next_token_logits`.
        other: logits of the other model on the same tokens.

    Returns:
        `positions`; `kl_mean`, `kl_max`: KL(trained || other), nats, over positions; `logit_difference_max`: largest
        absolute difference of two logits; `same_top1`: share of positions with the same most likely token.
    """
    kls, differences, same = [], [], []
    for a, b in zip(trained, other, strict=True):
        p, q = a.double().log_softmax(dim=-1), b.double().log_softmax(dim=-1)
        kls.append((p.exp() * (p - q)).sum(dim=-1))
        differences.append((a - b).abs().max())
        same.append(a.argmax(dim=-1) == b.argmax(dim=-1))
    kl, agreement = torch.cat(kls), torch.cat(same)
    return {
        "positions": len(kl),
        "kl_mean": kl.mean().item(),
        "kl_max": kl.max().item(),
        "logit_difference_max": torch.stack(differences).max().item(),
        "same_top1": agreement.double().mean().item(),
    }
