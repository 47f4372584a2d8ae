"""Batched, seeded sampling from a causal language model, with transformers."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from tqdm.auto import tqdm
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from ...data.end_tokens import end_token_ids
from ...data.prompts import TokenizedPrompt
from ...modeling.forward import evaluation_mode
from ...modeling.learned_positions import learned_positions
from .samples import AnyPrompt, Samples, check_sampling, completed, tokenized


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[AnyPrompt],
    *,
    max_new_tokens: int = 24,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Samples:
    """Sample one completion per prompt. Repeat a prompt to get several.

    Each token is drawn from the model's full distribution: top-k, top-p and penalties in the model's own generation
    config are ignored. Each batch has its own random stream, derived from `seed` and the batch's number, so two models
    that get the same prompts in the same batches share their random numbers. The caller's random state, the model's
    train/eval modes and the tokenizer's settings are restored afterwards.

    Args:
        model: a causal language model of transformers, or a PEFT model around one. If its weights are sharded (FSDP2,
            ZeRO-3), all processes must call this alike; layers are gathered one at a time, for each token.
        tokenizer: its tokenizer.
        prompts: [N] prompts of rows (`held_out_prompts`, `tokenized_prompt`), or plain text, in which a BOS is not
            doubled. A conversation that you render yourself may get other tokens than in training.
        max_new_tokens: maximum length of a completion, in tokens.
        temperature: 0 takes the most likely token.
        seed: the same seed, prompts, batch size, model and hardware give the same samples.
        batch_size: prompts per batch.
        progress: whether to show a progress bar.

    Returns:
        the samples, in the order of the prompts.

    Raises:
        ValueError: there are no prompts, an argument is out of range, the model has too few positions for a prompt and
            its completion, or its logits give no probabilities.
        TypeError: a prompt is neither a string nor a `TokenizedPrompt`.
    """
    check_sampling(prompts, max_new_tokens, temperature, batch_size)
    tokenized_prompts = tokenized(prompts, tokenizer)
    _check_positions(model, tokenized_prompts, max_new_tokens)
    config = _generation_config(model, tokenizer, max_new_tokens, temperature)
    ends = set(config.eos_token_id or [])
    completion_ids: list[list[int]] = []
    # Random states can be saved per device only for the CPU and CUDA.
    with (
        torch.no_grad(),
        evaluation_mode(model),
        torch.random.fork_rng([model.device] if model.device.type == "cuda" else []),
        tqdm(total=len(prompts), desc="sampling", unit="prompt", disable=not progress) as bar,
    ):
        for batch, start in enumerate(range(0, len(prompts), batch_size)):
            torch.manual_seed(random.Random(f"{seed}/{batch}").getrandbits(63))
            rows = [prompt.token_ids for prompt in tokenized_prompts[start : start + batch_size]]
            input_ids, attention_mask = _left_padded(rows, config.pad_token_id)
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
                # Each forward pass of sharded weights needs all processes. transformers knows of ZeRO-3 and FSDP1.
                synced_gpus=True if isinstance(model, FSDPModule) else None,
                logits_processor=LogitsProcessorList([_EachToken(bar, max_new_tokens)]),
            )
            completion_ids += [_until_end(row, ends) for row in output[:, input_ids.shape[1] :].tolist()]
            bar.update(len(rows))
    return completed(tokenized_prompts, completion_ids, tokenizer, temperature)


class _EachToken(LogitsProcessor):
    """Shows how far a batch is, and refuses logits that hold NaN or infinity.

    Greedy decoding would take the first token of those without a word.
    """

    def __init__(self, bar: Any, max_new_tokens: int) -> None:
        self._bar, self._most, self._tokens = bar, max_new_tokens, 0

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        self._tokens += 1
        self._bar.set_postfix_str(f"token {self._tokens} of at most {self._most}", refresh=False)
        self._bar.update(0)  # draws at most ten times a second
        if not torch.isfinite(scores.logsumexp(-1)).all():  # a few tokens may be at -infinity
            raise ValueError(
                "The model's logits hold NaN or infinity, so nothing can be sampled. Check its weights, and its dtype: "
                "float16 overflows where bfloat16 and float32 don't."
            )
        return scores


def _check_positions(model: Any, prompts: Sequence[TokenizedPrompt], max_new_tokens: int) -> None:
    positions = learned_positions(model)
    longest = max(range(len(prompts)), key=lambda row: len(prompts[row].token_ids))
    tokens = len(prompts[longest].token_ids)
    if positions is not None and tokens + max_new_tokens > positions:
        raise ValueError(
            f"prompts[{longest}] has {tokens} tokens, and max_new_tokens={max_new_tokens}, but the model has "
            f"{positions} positions. Leave out the prompts that are too long, or sample fewer tokens."
        )


def _generation_config(model: Any, tokenizer: Any, max_new_tokens: int, temperature: float) -> GenerationConfig:
    ends = end_token_ids(tokenizer, getattr(model, "generation_config", None))
    padding = next((i for i in (tokenizer.pad_token_id, *ends) if i is not None), 0)
    # Set every field: generate() takes those that are missing from the model's own generation config.
    warpers = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "typical_p": 1.0, "min_p": 0.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,  # gradient checkpointing switches it off in training
        eos_token_id=ends or None,
        pad_token_id=padding,
        **(warpers if temperature > 0 else {}),
    )


def _left_padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    input_ids = torch.tensor([[pad_token_id] * (width - len(row)) + [*row] for row in rows])
    attention_mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return input_ids, attention_mask


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: end + 1]
