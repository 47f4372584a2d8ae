"""TRL's fused language-model head, given only the positions that are scored.

TRL scores every position where there is no Triton (the CPU among others) and drops most of the results: with a prompt
of 350 tokens and responses of 40, nine tenths of the head's work. Here the hidden states are picked before TRL's head
sees them, so its arithmetic (soft-capped and scaled logits, chunks over vocabulary and tokens, all its outputs) stays
the only one.
"""

from __future__ import annotations

import functools
import types
from dataclasses import fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from .._compat.trl import FusedCausalLMOutput
from .layout import IGNORED

_FUSED = "fused_forward_of_trl"  # attribute of a patched model


def add_compact_head(model: PreTrainedModel, *, own_head: bool = False) -> None:
    """Make `model(..., fused_lm_head=True)` project only the scored positions through the language-model head.

    Args:
        model: causal language model to which TRL's `add_fused_lm_head` has been applied. With PEFT, the base model.
            Applied a second time, the last one counts.
        own_head: run the model's own head in place of TRL's. It is right for every model and holds the logits of all
            scored positions in memory: for models whose head does more than a product and a bias (see `check_head`).

    `labels`, `shift_labels` and every output keep their meaning and shape. One argument is added: `token_mask`
    [R, L], 1 for each token that counts in the load-balancing loss of a mixture-of-experts model, where
    `attention_mask` is a mask of another form than [R, L].
    """
    fused_forward = getattr(model, _FUSED, model.forward)
    setattr(model, _FUSED, fused_forward)

    @functools.wraps(type(model).forward)
    def forward(
        self: PreTrainedModel,
        *args: Any,
        fused_lm_head: bool = False,
        labels: Tensor | None = None,
        shift_labels: Tensor | None = None,
        attention_mask: Any = None,
        token_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        if not fused_lm_head:
            kwargs |= {"labels": labels} if labels is not None else {}
            kwargs |= {"shift_labels": shift_labels} if shift_labels is not None else {}
            return fused_forward(*args, attention_mask=attention_mask, **kwargs)
        if shift_labels is None:
            if labels is None:
                raise ValueError("fused_lm_head=True needs labels or shift_labels.")
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        else:
            targets = shift_labels
        scored = targets != IGNORED

        def see(module: Any, positional: Any, named: dict[str, Any]) -> Any:
            return positional, {**named, "attention_mask": attention_mask}

        def pick(module: Any, positional: Any, output: Any) -> Any:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden[scored.to(hidden.device)].unsqueeze(0)
            return output

        hooks = (
            self.base_model.register_forward_pre_hook(see, with_kwargs=True),
            self.base_model.register_forward_hook(pick),
        )
        # Only the router's loss reads this mask; the layers see the other one.
        kwargs["attention_mask"] = attention_mask if token_mask is None else token_mask
        labels = targets[scored].unsqueeze(0)
        try:
            if own_head:
                outputs = _token_outputs(type(self).forward(self, *args, **kwargs), labels)
            else:
                outputs = fused_forward(*args, fused_lm_head=True, shift_labels=labels, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        one_each = (1, int(scored.sum()))
        columns = slice(None) if shift_labels is not None else slice(-1)
        for field in fields(outputs):
            value = getattr(outputs, field.name)
            if isinstance(value, Tensor) and value.shape == one_each:
                # masked_scatter keeps a row without any scored position connected to the model.
                spread = value.new_zeros(scored.shape).masked_scatter(scored.to(value.device), value)
                setattr(outputs, field.name, spread[:, columns])
        return outputs

    model.forward = types.MethodType(forward, model)


def _token_outputs(outputs: Any, labels: Tensor) -> FusedCausalLMOutput:
    """Compute from a model's own logits [1, S, V] what the fused head computes for S labels [1, S]."""
    logits = outputs.logits.float()
    labels = labels.to(logits.device)
    distribution = logits.log_softmax(dim=-1)
    with torch.no_grad():
        entropy = -(distribution.exp() * distribution).sum(dim=-1)
        top1 = (logits.argmax(dim=-1) == labels).float()
    log_probs = distribution.gather(-1, labels.unsqueeze(-1)).squeeze(-1)
    return FusedCausalLMOutput(
        log_probs=log_probs,
        entropy=entropy,
        mean_logits=logits.detach().mean(dim=-1),
        is_top1=top1,
        log_sum_sq_probs=(2 * distribution).logsumexp(dim=-1),
        aux_loss=getattr(outputs, "aux_loss", None),
    )
