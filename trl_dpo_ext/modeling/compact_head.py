"""Run TRL's fused language-model head on scored positions only.

Without Triton (on a CPU, for example), TRL computes every position and discards the unscored ones: with 350 prompt
tokens and 40 response tokens, about 90% of the head's work. This module selects the hidden states before they reach
TRL's head. TRL's arithmetic (soft-capped and scaled logits, chunking over vocabulary and tokens, all outputs) is reused
unchanged.
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

from .._compat.deepspeed import call_as_forward, is_partitioned
from .._compat.trl import FusedCausalLMOutput, run_fused_head
from .layout import IGNORED

_FUSED = "fused_forward_of_trl"  # attribute of a patched model


def add_compact_head(model: PreTrainedModel, *, own_head: bool = False) -> None:
    """Make `model(..., fused_lm_head=True)` project only the scored positions through the language-model head.

    `labels`, `shift_labels` and all outputs keep their meaning and shape. The forward gains one argument, `token_mask`
    [R, L]: 1 for each token that counts in the load-balancing loss of a mixture-of-experts model. It is needed when
    `attention_mask` isn't [R, L].

    Args:
        model: causal language model patched by TRL's `add_fused_lm_head`. With PEFT, the base model. A second call
            replaces the first.
        own_head: run the model's own head instead of TRL's. It is right for every model, and holds the logits of all
            scored positions in memory. For models whose head is more than a product and a bias, see `check_head`.
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
                raise ValueError("fused_lm_head=True, but there are no targets. Pass labels or shift_labels.")
            targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        else:
            targets = shift_labels
        scored = targets != IGNORED

        # TRL's head reads `token_mask` from the `attention_mask` argument; the model body needs the real mask.
        def restore_mask(module: Any, positional: Any, named: dict[str, Any]) -> Any:
            return positional, {**named, "attention_mask": attention_mask}

        def keep_scored(module: Any, positional: Any, output: Any) -> Any:
            hidden = output.last_hidden_state
            output.last_hidden_state = hidden[scored.to(hidden.device)].unsqueeze(0)
            return output

        hooks = (
            self.base_model.register_forward_pre_hook(restore_mask, with_kwargs=True),
            self.base_model.register_forward_hook(keep_scored),
        )
        # Only the router's loss reads this mask; the layers see the other one.
        kwargs["attention_mask"] = attention_mask if token_mask is None else token_mask
        labels = targets[scored].unsqueeze(0)
        try:
            if own_head:
                outputs = _token_outputs(type(self).forward(self, *args, **kwargs), labels)
            elif is_partitioned(self.get_output_embeddings().weight):
                outputs = _partitioned_head(self, fused_forward, self.base_model(*args, **kwargs), labels, kwargs)
            else:
                outputs = fused_forward(*args, fused_lm_head=True, shift_labels=labels, **kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        scored_shape = (1, int(scored.sum()))
        columns = slice(None) if shift_labels is not None else slice(-1)
        for field in fields(outputs):
            value = getattr(outputs, field.name)
            if isinstance(value, Tensor) and value.shape == scored_shape:
                # masked_scatter keeps the graph connected even if a row has no scored position.
                spread = value.new_zeros(scored.shape).masked_scatter(scored.to(value.device), value)
                setattr(outputs, field.name, spread[:, columns])
        return outputs

    model.forward = types.MethodType(forward, model)


def _partitioned_head(
    model: PreTrainedModel, fused_forward: Any, backbone_outputs: Any, labels: Tensor, inputs: dict[str, Any]
) -> FusedCausalLMOutput:
    """Run TRL's head as the forward of the module that owns its weight, so that ZeRO-3 gathers the weight."""
    head: Any = model.get_output_embeddings()
    owner = next(m for m in head.modules() if any(p is head.weight for p in m.parameters(recurse=False)))
    names = [field.name for field in fields(FusedCausalLMOutput)]

    def run(hidden: Tensor) -> tuple[Tensor | None, ...]:
        backbone_outputs.last_hidden_state = hidden
        outputs = run_fused_head(fused_forward, head, backbone_outputs, shift_labels=labels, **inputs)
        return tuple(getattr(outputs, name) for name in names)

    values = call_as_forward(owner, run, backbone_outputs.last_hidden_state)
    return FusedCausalLMOutput(**dict(zip(names, values, strict=True)))


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
