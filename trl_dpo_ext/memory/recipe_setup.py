"""Turns a parsed recipe into the setup that the memory estimate runs, and makes variants of a setup."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from trl import ModelConfig, get_peft_config, get_quantization_config

from ..training import ConfigError, PreferenceConfig
from .model_configs import load_model_config
from .step import Setup, Shape

DEFAULT_LENGTH = 1024


def make_setup(
    args: PreferenceConfig, model_args: ModelConfig, *, responses: int = 2, prompt_tokens: int | None = None
) -> Setup:
    """Return the setup of a parsed recipe.

    Args:
        args, model_args: the parsed recipe.
        responses: K, the responses per prompt, which the recipe doesn't know.
        prompt_tokens: prompt tokens of the longest rows; half of `max_length` by default.

    Raises:
        ConfigError, UnknownModelError: the recipe can't be trained or estimated.
    """
    if model_args.load_in_8bit:
        raise ConfigError("load_in_8bit: true can't be estimated. Set load_in_4bit: true, or neither.")
    if model_args.load_in_4bit and not model_args.use_peft:
        raise ConfigError("load_in_4bit: true needs use_peft: true, since 4-bit weights can't be trained.")
    init = args.model_init_kwargs if isinstance(args.model_init_kwargs, dict) else {}
    config = load_model_config(
        str(model_args.model_name_or_path),
        revision=model_args.model_revision,
        trust_remote_code=bool(args.trust_remote_code),
    )
    dtype: Any = init.get("dtype", model_args.dtype)
    if dtype in (None, "auto"):
        dtype = config.dtype or torch.float32
    length = args.max_length or DEFAULT_LENGTH
    prompt = length // 2 if prompt_tokens is None else prompt_tokens
    if not 1 <= prompt < length:
        raise ConfigError(f"A prompt of {prompt} tokens leaves no room for a response within max_length={length}.")
    if responses < 2:
        raise ConfigError(f"K = {responses} responses per prompt is too few: preferences need at least 2.")
    return Setup(
        config=config,
        args=args,
        shape=Shape(args.per_device_train_batch_size, responses, prompt, length - prompt),
        dtype=getattr(torch, dtype) if isinstance(dtype, str) else dtype,
        quantization=get_quantization_config(model_args),
        peft=get_peft_config(model_args),
        attention=init.get("attn_implementation", model_args.attn_implementation),
    )


def with_length(setup: Setup, length: int) -> Setup:
    """Return the setup with another `max_length`; prompts keep their share of it."""
    shape = setup.shape
    prompt = max(1, round(length * shape.prompt_tokens / (shape.prompt_tokens + shape.response_tokens)))
    return replace(setup, shape=replace(shape, prompt_tokens=prompt, response_tokens=max(1, length - prompt)))


def with_args(setup: Setup, **changes: Any) -> Setup:
    """Return the setup with other training arguments."""
    args = PreferenceConfig.__new__(PreferenceConfig)
    args.__dict__.update({**vars(setup.args), **changes})  # no __post_init__: it would set up devices again
    shape = replace(setup.shape, prompts=args.per_device_train_batch_size)
    return replace(setup, args=args, shape=shape)
