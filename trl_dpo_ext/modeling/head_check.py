"""Whether TRL's fused language-model head gives a model's own log-probs, found out by trying.

TRL's head multiplies the hidden states by a weight, adds a bias, and knows the common ways to scale and cap logits. A
model may do more (ModernBERT's decoder has a layer before the product, RecurrentGemma caps under another name, PEFT may
wrap the head), and the log-probs are then wrong without an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from .forward import evaluation_mode, prepare_inputs, token_outputs
from .layout import PromptGroup, gather_token_logps, padded_layout

_TOKENS = 16  # of the prompt, and of each response
_FLOAT32 = 1e-3  # nats
_LOWER_PRECISION = 2**-8  # of the largest logit: about twice what rounding logits to 8 bits gives on average


@torch.no_grad()
def check_head(
    model: nn.Module, config: PreTrainedConfig, group: PromptGroup, options: Mapping[str, Any] | None = None
) -> str | None:
    """Compare the fused head's log-probs of one small group with the log-softmax of the model's own logits.

    Args:
        model: with the compact head; may be wrapped (DDP, FSDP: then every process must call this).
        config: the model's config.
        group: any group of the data; its first tokens are used.
        options: of the model's forward, such as `output_router_logits`.

    Returns:
        What is wrong, in a clause; None where they agree.
    """
    group = PromptGroup(group.prompt_ids[-_TOKENS:], [ids[:_TOKENS] for ids in group.completion_ids[:2]])
    device = next(model.parameters()).device
    lengths = torch.tensor([[len(ids) for ids in group.completion_ids]])
    layout = {**padded_layout([group], len(group.completion_ids)), "lengths": lengths}
    batch = {name: values.to(device) for name, values in layout.items()}
    with evaluation_mode(model), torch.autocast(device.type, enabled=False):
        outputs: Any = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
        logits: Tensor = outputs.logits[:, :-1].float()
        own = logits.log_softmax(-1).gather(-1, batch["labels"][:, 1:].clamp(min=0).unsqueeze(-1)).squeeze(-1)
        expected = gather_token_logps(own, batch["index"].to(own.device), (1, *lengths.shape[1:], int(lengths.max())))
        try:
            inputs = prepare_inputs(model, config, batch) | dict(options or {})
            got = token_outputs(model, inputs, batch).logps
        except Exception as error:  # the fused head reads attributes that a model may not have
            return f"TRL's fused head fails on this model ({type(error).__name__}: {str(error)[:200]})"
    exact = all(p.dtype == torch.float32 for p in model.parameters()) and device.type == "cpu"
    allowed = _FLOAT32 if exact else _LOWER_PRECISION * (1 + float(logits.abs().max()))
    # Rounding errors average out over the tokens; those of a wrong head don't.
    errors = (got - expected).abs()
    difference = float(errors.max() if exact else errors.sum() / lengths.sum())
    if difference <= allowed:
        return None
    return f"TRL's fused head differs from the model's own logits by {difference:.2g} nats a token"
