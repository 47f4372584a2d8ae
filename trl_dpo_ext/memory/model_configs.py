"""Published shapes of well-known models, so that their memory can be estimated without the Hub."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import (
    AutoConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoXConfig,
    LlamaConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from ..registry import did_you_mean


class UnknownModelError(ValueError):
    """A model whose config is neither in a folder, nor known, nor to be had from the Hub."""


def _pythia(hidden: int, layers: int, heads: int, vocabulary: int) -> GPTNeoXConfig:
    return GPTNeoXConfig(
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        vocab_size=vocabulary,
        max_position_embeddings=2048,
        tie_word_embeddings=False,
    )


def _llama_8b() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=8,
        vocab_size=128256,
        max_position_embeddings=131072,
        tie_word_embeddings=False,
    )


def _qwen3_8b() -> Qwen3Config:
    return Qwen3Config(
        hidden_size=4096,
        intermediate_size=12288,
        num_hidden_layers=36,
        num_attention_heads=32,
        num_key_value_heads=8,
        head_dim=128,
        vocab_size=151936,
        max_position_embeddings=40960,
        tie_word_embeddings=False,
    )


def _qwen2_5_half_b() -> Qwen2Config:
    return Qwen2Config(
        hidden_size=896,
        intermediate_size=4864,
        num_hidden_layers=24,
        num_attention_heads=14,
        num_key_value_heads=2,
        vocab_size=151936,
        max_position_embeddings=32768,
        tie_word_embeddings=True,
    )


def _smollm2_135m() -> LlamaConfig:
    return LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
    )


SHAPES: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2-large": lambda: GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt-j-6b": GPTJConfig,
    "pythia-2.8b": lambda: _pythia(2560, 32, 32, 50304),
    "pythia-6.9b": lambda: _pythia(4096, 32, 32, 50432),
    "llama-3.1-8b": _llama_8b,
    "qwen2.5-0.5b": _qwen2_5_half_b,
    "qwen3-8b": _qwen3_8b,
    "smollm2-135m": _smollm2_135m,
}
"""Shape by the last part of the Hub id, in lower case; variants such as `-instruct` have the same."""


def load_model_config(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> Any:
    """Return a model's config without its weights.

    Args:
        name: a folder with a config.json; what isn't there but begins, in its last part, with a name of `SHAPES`,
            such as `Qwen/Qwen3-8B-Base` or an earlier stage's output `outputs/gpt-j-6b-tldr-sft_merged`; any Hub id.
        revision: of the Hub id.
        trust_remote_code: as for transformers.

    Raises:
        UnknownModelError: none of these.

    >>> load_model_config("meta-llama/Llama-3.1-8B-Instruct").num_hidden_layers
    32
    """
    short = name.rstrip("/").rpartition("/")[2].lower()
    like = max((shape for shape in SHAPES if short.startswith(shape)), key=len, default=None)
    if not Path(name).is_dir() and like is not None:
        return SHAPES[like]()
    try:
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UnknownModelError(
            f"The config of {name!r} can't be read: {reason}{did_you_mean(short, SHAPES)} Give a folder with a "
            f"config.json, a Hub id that can be reached, or one of the shapes known here: {', '.join(SHAPES)}."
        ) from error
