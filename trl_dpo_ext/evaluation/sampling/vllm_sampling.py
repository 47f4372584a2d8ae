"""Sampling with vLLM, if it is installed; results have the same form as those of `sample`."""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from transformers import AutoConfig, GenerationConfig

from ..._compat.vllm import LORA_RANKS, lora_rank
from ...data.end_tokens import end_token_ids
from ...record import Record, checked, read_record
from .samples import AnyPrompt, Samples, check_sampling, completed, tokenized

# Settings of PEFT that vLLM refuses, or ignores in some versions, which would sample from a different model.
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


class _AdapterConfig(Record):
    r: Annotated[int, Field(ge=1, le=10**6)] | None = None
    bias: str | None = None


def sample_with_vllm(
    model: str,
    tokenizer: Any,
    prompts: Sequence[AnyPrompt],
    *,
    adapter: str | None = None,
    revision: str | None = None,
    dtype: str = "auto",
    max_new_tokens: int = 24,
    temperature: float = 1.0,
    seed: int = 0,
    progress: bool = True,
) -> Samples:
    """Sample one completion per prompt with vLLM. Repeat a prompt to get several.

    Tokenization, the end of a completion, its text and the full distribution are as in `sample`. The samples differ
    from those of `sample`: each prompt has its own random stream, derived from `seed` and its row, and vLLM's kernels
    round differently.

    Args:
        model: Hub id or folder of a causal language model, without an adapter.
        tokenizer: its tokenizer, or the adapter's.
        prompts: [N] prompts of rows (`held_out_prompts`, `tokenized_prompt`), or plain text, in which a BOS is not
            doubled. A conversation that you render yourself may get other tokens than in training.
        adapter: folder of a LoRA adapter for the model.
        revision: revision of the model's Hub repository.
        dtype: dtype of the weights, as vLLM names it. "auto" keeps the checkpoint's, but loads float32 in 16 bits.
        max_new_tokens: maximum length of a completion, in tokens.
        temperature: 0 takes the most likely token.
        seed: the same seed, prompts, model, version and hardware give the same samples, as far as vLLM's kernels are
            deterministic.
        progress: whether to show vLLM's progress bar.

    Returns:
        the samples, in the order of the prompts.

    Raises:
        ValueError: vLLM is not installed or can't load the adapter, there are no prompts, or an argument is out of
            range.
        TypeError: a prompt is neither a string nor a `TokenizedPrompt`.
    """
    vllm = import_vllm()
    check_sampling(prompts, max_new_tokens, temperature)
    if temperature != 0 and not 0.01 <= temperature <= 2:  # below, vLLM would sample at 0.01
        raise ValueError(f"temperature={temperature!r} is out of range for vLLM, expected 0 or 0.01 to 2.")
    loading: dict[str, Any] = {} if adapter is None else {"enable_lora": True, "max_lora_rank": adapter_rank(adapter)}
    tokenized_prompts = tokenized(prompts, tokenizer)
    ends = end_token_ids(tokenizer, _generation_config(model, revision or "main"))
    requests = [
        vllm.SamplingParams(
            temperature=temperature,
            top_p=1.0,
            top_k=0,
            min_p=0.0,
            repetition_penalty=1.0,
            seed=random.Random(f"{seed}/{row}").getrandbits(63),
            max_tokens=max_new_tokens,
            ignore_eos=True,  # else vLLM also ends at the tokenizer's EOS, which `sample` may not do
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
        generation_config="vllm",  # ignore the model's own top-p, penalties, ...
        **loading,
    )
    lora = None
    if adapter is not None:
        request = importlib.import_module("vllm.lora.request").LoRARequest
        lora = request(lora_name="adapter", lora_int_id=1, lora_path=adapter)
    found = engine.generate(
        [{"prompt_token_ids": list(prompt.token_ids)} for prompt in tokenized_prompts],
        requests,
        use_tqdm=progress,
        lora_request=lora,
    )
    completion_ids = [list(result.outputs[0].token_ids) for result in found]
    return completed(tokenized_prompts, completion_ids, tokenizer, temperature)


def import_vllm() -> Any:
    """Return the module `vllm`.

    No extra of this package installs it: vLLM pins versions of torch and transformers that this package isn't tested
    with.

    Raises:
        ValueError: vLLM is not installed, or can't be imported.
    """
    try:
        return importlib.import_module("vllm")
    except ImportError as error:
        raise ValueError(
            f"vLLM can't be imported ({error}). Install it with `pip install vllm`, best in an environment of its own, "
            "or sample with transformers: without --vllm."
        ) from error


def adapter_rank(adapter: str) -> int:
    """Return the `max_lora_rank` that vLLM needs for an adapter.

    Args:
        adapter: its folder.

    Raises:
        ValueError: vLLM can't load the adapter, or would load it wrongly.
        FileNotFoundError: the folder holds no adapter.
    """
    path = Path(adapter) / "adapter_config.json"
    config = read_record(path, dict[str, Any], ValueError)
    checked(config, _AdapterConfig, path, ValueError)
    if reasons := _reasons(config):
        raise ValueError(
            f"vLLM can't sample from the adapter {adapter}: it has {', '.join(reasons)}. Merge it with "
            f"`trl-dpo-ext merge {adapter} FOLDER` and sample from FOLDER, or leave out --vllm."
        )
    rank = lora_rank(config["r"])
    assert rank is not None  # else there is a reason above
    return rank


def _reasons(config: Mapping[str, Any]) -> list[str]:
    unsupported = {name: config[name] for name in _NOT_PLAIN if config.get(name)}
    if config.get("peft_type") != "LORA":
        return [f"peft_type={config.get('peft_type')!r}, not LORA"]
    if config.get("bias", "none") != "none":
        unsupported["bias"] = config["bias"]
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGES_THE_BASE):
        unsupported["init_lora_weights"] = config["init_lora_weights"]
    reasons = [f"{name}={value!r}" for name, value in unsupported.items()]
    return reasons + ([f"rank {config['r']}, above {LORA_RANKS[-1]}"] if config["r"] > LORA_RANKS[-1] else [])


def _generation_config(model: str, revision: str) -> Any:
    try:
        return GenerationConfig.from_pretrained(model, revision=revision)
    except OSError:  # there is none; transformers would then derive it from the model's config
        return GenerationConfig.from_model_config(AutoConfig.from_pretrained(model, revision=revision))
