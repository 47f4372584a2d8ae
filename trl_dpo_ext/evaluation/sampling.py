"""Batched, seeded sampling from a causal language model, and the log-probs it gives to completions."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm.auto import trange
from transformers import GenerationConfig


@dataclass(frozen=True)
class Samples:
    """One completion for each prompt, as sampled.

    Attributes:
        prompts: [N] the prompts.
        completions: [N] the text behind the prompt, leading space included and special tokens left out, so that
            prompt + completion reads as the whole text.
        prompt_ids: [N] token ids of each prompt.
        completion_ids: [N] sampled token ids, the end-of-sequence token included where one was sampled.
        temperature: at which they were sampled.
    """

    prompts: list[str]
    completions: list[str]
    prompt_ids: list[list[int]]
    completion_ids: list[list[int]]
    temperature: float

    def __len__(self) -> int:
        return len(self.prompts)


def sample(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int = 24,
    temperature: float = 1.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool = True,
) -> Samples:
    """Sample one completion for each prompt; repeat a prompt to get more.

    Every token is drawn from the model's whole distribution: top-k, top-p and penalties that the model's own
    generation config may hold are switched off. Each batch has its own random stream, made from `seed` and the
    batch's number, so two models that see the same prompts in the same batches share their random numbers. The
    caller's random state, the model's train/eval modes and the tokenizer's settings are as before afterwards.

    Args:
        model: a transformers causal language model, or a PEFT model over one.
        tokenizer: its tokenizer; prompts are tokenized with its defaults (a BOS where it adds one).
        prompts: [N] text. Apply a chat template first where one is wanted; a BOS that it writes isn't doubled.
        max_new_tokens: tokens to sample at most.
        temperature: 0 takes the most likely token each time.
        seed: same seed, prompts, batch size, model and hardware: same samples.
        batch_size: prompts a forward.
        progress: show a progress bar.

    Raises:
        ValueError: no prompts, or an argument out of range.
        TypeError: a prompt that isn't a string.
    """
    check_sampling(prompts, max_new_tokens, temperature, batch_size)
    prompt_ids = tokenized(prompts, tokenizer)
    config = _generation_config(model, tokenizer, max_new_tokens, temperature)
    ends = set(config.eos_token_id or [])
    completion_ids: list[list[int]] = []
    # Only the CPU's and CUDA's random states can be saved device by device.
    with evaluation_mode(model), torch.random.fork_rng([model.device] if model.device.type == "cuda" else []):
        for batch, start in enumerate(
            trange(0, len(prompts), batch_size, desc="sampling", unit="batch", disable=not progress)
        ):
            torch.manual_seed(random.Random(f"{seed}/{batch}").getrandbits(63))
            input_ids, attention_mask = _left_padded(prompt_ids[start : start + batch_size], config.pad_token_id)
            output = model.generate(
                input_ids=input_ids.to(model.device),
                attention_mask=attention_mask.to(model.device),
                generation_config=config,
            )
            completion_ids += [_until_end(row, ends) for row in output[:, input_ids.shape[1] :].tolist()]
    completions = [completion_text(tokenizer, p, c) for p, c in zip(prompt_ids, completion_ids, strict=True)]
    return Samples(list(prompts), completions, prompt_ids, completion_ids, temperature)


def prompt_text(prompt: str | Sequence[Mapping[str, Any]], tokenizer: Any) -> str:
    """Return a prompt as the model reads it, for `sample`: text as it is, a conversation through the chat template."""
    if isinstance(prompt, str):
        return prompt
    return str(tokenizer.apply_chat_template(prompt, add_generation_prompt=True, tokenize=False))


def sequence_logps(
    model: Any, prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]], *, batch_size: int = 32
) -> Tensor:
    """Return the log-prob of each completion given its prompt.

    Args:
        model: a causal language model; evaluated without dropout and without gradients.
        prompt_ids: [N] token ids, at least one each.
        completion_ids: [N] token ids; an empty completion has log-prob 0.
        batch_size: sequences a forward.

    Returns:
        [N] float32 on the CPU: log-probs summed over the completion's tokens, nats.

    Raises:
        ValueError: prompts and completions that don't match in number, or a prompt of no tokens.
    """
    if len(prompt_ids) != len(completion_ids):
        raise ValueError(f"{len(prompt_ids)} prompts but {len(completion_ids)} completions.")
    if not all(prompt_ids):
        raise ValueError("A prompt has no tokens: its completion's first token has no distribution.")
    logps = []
    with evaluation_mode(model):
        for start in range(0, len(prompt_ids), batch_size):
            rows = slice(start, start + batch_size)
            input_ids, attention_mask, labels = right_padded(prompt_ids[rows], completion_ids[rows])
            logits = model(
                input_ids=input_ids.to(model.device), attention_mask=attention_mask.to(model.device), use_cache=False
            ).logits
            shifted = labels[:, 1:].to(logits.device)
            token_logps = -F.cross_entropy(logits[:, :-1].float().transpose(1, 2), shifted, reduction="none")
            logps.append(token_logps.sum(dim=1).cpu())
    return torch.cat(logps) if logps else torch.zeros(0)


def check_sampling(prompts: Sequence[str], max_new_tokens: int, temperature: float, batch_size: int = 1) -> None:
    """Raise the errors of `sample` for its arguments."""
    if isinstance(prompts, str) or not prompts:
        raise ValueError(f"prompts={prompts!r}: expected a list of at least one string.")
    for row, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise TypeError(
                f"prompts[{row}] is a {type(prompt).__name__}, expected a string. Render a conversation with the "
                "tokenizer's chat template first."
            )
    for name, value, least in (("max_new_tokens", max_new_tokens, 1), ("batch_size", batch_size, 1)):
        if value < least:
            raise ValueError(f"{name}={value!r} is out of range, expected >= {least}.")
    if not temperature >= 0:
        raise ValueError(f"temperature={temperature!r} is out of range, expected >= 0.")


def _generation_config(model: Any, tokenizer: Any, max_new_tokens: int, temperature: float) -> GenerationConfig:
    ends = end_tokens(getattr(model, "generation_config", None), tokenizer)
    padding = next((i for i in (tokenizer.pad_token_id, *ends) if i is not None), 0)
    # Every knob is given a value because generate() fills those left out from the model's own generation config.
    warpers = {"temperature": temperature, "top_k": 0, "top_p": 1.0, "typical_p": 1.0, "min_p": 0.0}
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=temperature > 0,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,  # training with gradient checkpointing switches it off
        eos_token_id=ends or None,
        pad_token_id=padding,
        **(warpers if temperature > 0 else {}),
    )


def end_tokens(config: Any, tokenizer: Any) -> list[int]:
    """Return the token ids that end a completion: those of a model's generation config, else the tokenizer's EOS."""
    ends = getattr(config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if ends is None else ends
    return [] if ends is None else [ends] if isinstance(ends, int) else list(ends)


def tokenized(prompts: Sequence[str], tokenizer: Any) -> list[list[int]]:
    """Return the token ids of each prompt.

    Raises:
        ValueError: a prompt without any.
    """
    prompt_ids = [one_bos(list(ids), tokenizer) for ids in tokenizer(list(prompts))["input_ids"]]
    empty = next((row for row, ids in enumerate(prompt_ids) if not ids), None)
    if empty is not None:
        raise ValueError(f"prompts[{empty}]={prompts[empty]!r} has no tokens: there is nothing to continue.")
    return prompt_ids


def one_bos(ids: list[int], tokenizer: Any) -> list[int]:
    """Return token ids without the second BOS that a text with a written-out BOS got from the tokenizer."""
    return ids[1:] if ids[:2] == [tokenizer.bos_token_id] * 2 else ids


def _left_padded(rows: Sequence[Sequence[int]], pad_token_id: int) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    input_ids = torch.tensor([[pad_token_id] * (width - len(row)) + [*row] for row in rows])
    attention_mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return input_ids, attention_mask


def right_padded(
    prompt_ids: Sequence[Sequence[int]], completion_ids: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return input ids, attention mask and labels (-100 at prompt and padding), each [N, L], of completions."""
    rows = list(zip(prompt_ids, completion_ids, strict=True))
    width = max(len(p) + len(c) for p, c in rows)
    padding = [width - len(p) - len(c) for p, c in rows]
    input_ids = [[*p, *c, *[0] * left] for (p, c), left in zip(rows, padding, strict=True)]
    attention_mask = [[1] * (width - left) + [0] * left for left in padding]
    labels = [[*[-100] * len(p), *c, *[-100] * left] for (p, c), left in zip(rows, padding, strict=True)]
    return torch.tensor(input_ids), torch.tensor(attention_mask), torch.tensor(labels)


def _until_end(ids: list[int], ends: set[int]) -> list[int]:
    end = next((i for i, token in enumerate(ids) if token in ends), len(ids) - 1)
    return ids[: end + 1]


def completion_text(tokenizer: Any, prompt_ids: list[int], completion_ids: list[int]) -> str:
    """Return the text behind the prompt, leading space included and special tokens left out."""
    # Decoded together, since some tokenizers drop the leading space of whatever they decode.
    options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
    whole: str = tokenizer.decode([*prompt_ids, *completion_ids], **options)
    return whole[len(tokenizer.decode(prompt_ids, **options)) :]


@contextmanager
def evaluation_mode(model: torch.nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; afterwards each module is in the mode it was in."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
