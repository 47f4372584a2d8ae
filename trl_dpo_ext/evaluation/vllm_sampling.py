"""Samples drawn with vLLM, where it is installed, by the contract of `sample`."""

from __future__ import annotations

import importlib
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, GenerationConfig

from .sampling import Samples, check_sampling, completion_text, end_tokens, tokenized

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # the values of max_lora_rank that vLLM takes

# What PEFT writes and vLLM refuses, or ignores in some version and then samples from another model.
_NOT_PLAIN = (
    "use_dora",
    "modules_to_save",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "trainable_token_indices",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
)
_CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq")


def sample_with_vllm(
    model: str,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    max_new_tokens: int = 24,
    temperature: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> Samples:
    """Sample one completion for each prompt, as `sample` does, with vLLM; repeat a prompt to get more.

    Prompts are tokenized, completions end and are turned into text as in `sample`, and every token is drawn from the
    model's whole distribution. The samples are others: each prompt has its own random stream, made from `seed` and
    its row, and vLLM's kernels round differently.

    Args:
        model: Hub id or folder of a causal language model, without adapter.
        tokenizer: its tokenizer, or the adapter's.
        prompts: [N] text. Apply a chat template first where one is wanted; a BOS that it writes isn't doubled.
        adapter: folder of a LoRA adapter over the model.
        revision: of the model's Hub repository.
        dtype: of the weights, as vLLM names it; "auto" takes the checkpoint's, 16 bits where that is float32.
        max_new_tokens: tokens to sample at most.
        temperature: 0 takes the most likely token each time.
        seed: same seed, prompts, model, version and hardware: same samples, as far as vLLM's kernels are deterministic.
        progress: show vLLM's progress bar.

    Raises:
        ValueError: vLLM isn't installed, an adapter it can't take, no prompts, or an argument out of range.
        TypeError: a prompt that isn't a string.
    """
    vllm = import_vllm()
    check_sampling(prompts, max_new_tokens, temperature)
    if temperature != 0 and not 0.01 <= temperature <= 2:  # below, vLLM would sample at 0.01
        raise ValueError(f"temperature={temperature!r} is out of range for vLLM, expected 0 or 0.01 to 2.")
    loading: dict[str, Any] = {} if adapter is None else {"enable_lora": True, "max_lora_rank": lora_rank(adapter)}
    prompt_ids = tokenized(prompts, tokenizer)
    ends = end_tokens(_generation_config(model, revision or "main"), tokenizer)
    requests = [
        vllm.SamplingParams(
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=random.Random(f"{seed}/{row}").getrandbits(63),
            max_tokens=max_new_tokens,
            ignore_eos=True,  # vLLM always takes the tokenizer's too; these are all that end a completion in `sample`
            stop_token_ids=ends,
            detokenize=False,
        )
        for row in range(len(prompts))
    ]
    engine = vllm.LLM(
        model=model,
        tokenizer=tokenizer.name_or_path,
        revision=revision,
        dtype=dtype,
        generation_config="vllm",  # not the model's own top-p, penalties, ...
        **loading,
    )
    lora = None
    if adapter is not None:
        request = importlib.import_module("vllm.lora.request").LoRARequest
        lora = request(lora_name="adapter", lora_int_id=1, lora_path=adapter)
    found = engine.generate(
        [{"prompt_token_ids": ids} for ids in prompt_ids], requests, use_tqdm=progress, lora_request=lora
    )
    completion_ids = [list(result.outputs[0].token_ids) for result in found]
    completions = [completion_text(tokenizer, p, c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return Samples(list(prompts), completions, prompt_ids, completion_ids, temperature)


def import_vllm() -> Any:
    """Return the module.

    It is in no extra: vLLM wants one version of torch and a few of transformers, not those this package is tested with.

    Raises:
        ValueError: it isn't installed, or can't be imported.
    """
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ValueError(
            f"vLLM can't be imported ({error}). Install it with `pip install vllm`, best in an environment of its own; "
            "without --vllm, transformers samples."
        ) from error


def lora_rank(adapter: str) -> int:
    """Return the rank to reserve for an adapter: its own, rounded up to one that vLLM takes.

    Raises:
        ValueError: an adapter that vLLM can't take, or would take for another one.
        FileNotFoundError: no adapter there.
    """
    config = json.loads((Path(adapter) / "adapter_config.json").read_text(encoding="utf-8"))
    if reasons := _reasons(config):
        raise ValueError(
            f"vLLM can't sample from the adapter {adapter} as it is: it has {', '.join(reasons)}. Merge it with "
            f"`trl-dpo-ext merge {adapter} FOLDER` and sample from FOLDER, or leave out --vllm."
        )
    return next(rank for rank in RANKS if rank >= config["r"])


def _reasons(config: Mapping[str, Any]) -> list[str]:
    said = {name: config[name] for name in _NOT_PLAIN if config.get(name)}
    if config.get("peft_type") != "LORA":
        return [f"peft_type={config.get('peft_type')!r}, not LORA"]
    if config.get("bias", "none") != "none":
        said["bias"] = config["bias"]
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGES_THE_BASE):
        said["init_lora_weights"] = config["init_lora_weights"]
    reasons = [f"{name}={value!r}" for name, value in said.items()]
    return reasons + ([f"rank {config['r']}, above {RANKS[-1]}"] if config["r"] > RANKS[-1] else [])


def _generation_config(model: str, revision: str) -> Any:
    try:
        return GenerationConfig.from_pretrained(model, revision=revision)
    except OSError:  # has none; loading the model with transformers makes one of its config then
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(model, revision=revision))
