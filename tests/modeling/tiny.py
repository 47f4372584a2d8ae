"""Tiny random decoders of many families, and the log-probs of single sequences to compare layouts with."""

from __future__ import annotations

import random
from typing import Any

import torch
import transformers as hf
from torch import Tensor, nn
from trl.trainer.utils import add_fused_lm_head

from trl_dpo_ext.modeling.compact_head import add_compact_head
from trl_dpo_ext.modeling.layout import PromptGroup, gather_token_logps
from trl_dpo_ext.modeling.masks import model_inputs

VOCAB = 61
OUTPUTS = ("log_probs", "entropy", "mean_logits", "is_top1", "log_sum_sq_probs")

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    # Large weights, so that the mask changes the log-probs by much more than rounding.
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GATED: dict[str, Any] = {**_COMMON, "intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8}
_MIXED = ["sliding_attention", "full_attention"]

FAMILIES: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**_GATED),
    "qwen2": lambda: hf.Qwen2Config(**_GATED),
    "qwen2_mixed": lambda: hf.Qwen2Config(**_GATED, use_sliding_window=True, sliding_window=4, layer_types=_MIXED),
    "qwen3": lambda: hf.Qwen3Config(**_GATED),
    "phi3": lambda: hf.Phi3Config(**_GATED),
    "gpt2": lambda: hf.GPT2Config(**_COMMON, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0),
    "gpt_neox": lambda: hf.GPTNeoXConfig(**_COMMON, intermediate_size=48),
    "gptj": lambda: hf.GPTJConfig(**_COMMON, rotary_dim=4),
    "mistral_sliding": lambda: hf.MistralConfig(**_GATED, sliding_window=4),
    "gemma2": lambda: hf.Gemma2Config(
        **_GATED, sliding_window=4, final_logit_softcapping=5.0, attn_logit_softcapping=20.0, query_pre_attn_scalar=8
    ),
    "gemma3": lambda: hf.Gemma3TextConfig(**_GATED, sliding_window=4, layer_types=_MIXED, query_pre_attn_scalar=8),
    "mixtral": lambda: hf.MixtralConfig(**_GATED, num_local_experts=4, num_experts_per_tok=2),
    "olmo2": lambda: hf.Olmo2Config(**_GATED),
    "granite": lambda: hf.GraniteConfig(**_GATED, logits_scaling=4.0, residual_multiplier=0.5),
    "cohere": lambda: hf.CohereConfig(**_GATED, logit_scale=0.3),
}


def tiny(family: str, *, attention: str | None = None, seed: int = 0, **changes: Any) -> Any:
    """Return a model of a family, in float32 and training mode, with the fused head."""
    config = FAMILIES[family]()
    for name, value in changes.items():
        setattr(config, name, value)
    return headed(config, attention=attention, seed=seed)


def headed(config: hf.PreTrainedConfig, *, attention: str | None = None, seed: int = 0) -> Any:
    """Return a causal language model of a config with the fused head."""
    torch.manual_seed(seed)
    options = {} if attention is None else {"attn_implementation": attention}
    model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32, **options)
    add_fused_lm_head(model, outputs=OUTPUTS)
    add_compact_head(model)
    return model


def ragged_groups(seed: int = 0) -> list[PromptGroup]:
    """Return groups of K = 1..5, including prompts and responses of one token."""
    draw = random.Random(seed)

    def ids(n: int) -> list[int]:
        return [draw.randrange(3, VOCAB) for _ in range(n)]

    shapes = [(1, [3, 1]), (9, [7]), (6, [1, 5, 2, 8]), (1, [1]), (12, [4, 4, 9, 1, 6]), (3, [2, 10, 3])]
    return [PromptGroup(ids(prompt), [ids(n) for n in lengths]) for prompt, lengths in shapes]


def shape_of(groups: list[PromptGroup]) -> tuple[int, int, int]:
    """Return (B, K, T) of a batch."""
    completions = [group.completion_ids for group in groups]
    return len(groups), max(map(len, completions)), max(len(ids) for k in completions for ids in k)


def one_by_one(model: nn.Module, groups: list[PromptGroup]) -> Tensor:
    """Return the log-probs of every response as a single sequence, from the model's logits, [B, K, T]."""
    out = torch.zeros(shape_of(groups))
    for b, group in enumerate(groups):
        for k, completion in enumerate(group.completion_ids):
            ids = torch.tensor([group.prompt_ids + completion])
            logits = model(input_ids=ids, use_cache=False).logits[0, len(group.prompt_ids) - 1 : -1]
            logps = logits.float().log_softmax(-1)[range(len(completion)), completion]
            out[b, k, : len(completion)] = logps
    return out


def by_layout(model: Any, batch: dict[str, Tensor], shape: tuple[int, int, int]) -> Tensor:
    """Return the log-probs of a batch of any layout, computed as in the trainer, [B, K, T]."""
    inputs = model_inputs(model.config, batch, model.get_input_embeddings().weight.dtype)
    outputs = model(**inputs, use_cache=False, fused_lm_head=True)
    return gather_token_logps(outputs.log_probs, batch["index"], shape)
