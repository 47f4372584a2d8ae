"""A tiny model with a trained tokenizer, toy datasets, a way to run Python in a fresh process; nothing from the Hub.

These are plain functions, so that scripts in other processes can use them too: `from tests.helpers import ...`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

ROOT = Path(__file__).resolve().parents[1]
TEXT = (
    "the film was a slow and tender story about two sisters who lose their house by the sea but find a way back it has "
    "great actors awful jokes bright colours no plot at all and an ending that nobody in the room will ever forget"
)
WORDS = TEXT.split()
PAD, BOS, EOS, START = "<pad>", "<s>", "<|im_end|>", "<|im_start|>"

# ChatML, as SmolLM2 and Qwen have it: EOS and a newline end a turn. It renders tools and one template argument (date),
# so that a test can tell whether they arrived.
CHAT_TEMPLATE = (
    "{% if bos %}{{ bos_token }}{% endif %}"
    "{% if date is defined %}{{ '<|im_start|>system\nToday is ' + date + '<|im_end|>\n' }}{% endif %}"
    "{% if tools %}{{ '<|im_start|>system\nTools: ' + tools | tojson + '<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + (message['content'] or '') + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def tiny_tokenizer(*, add_bos: bool = False, pad_is_eos: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on a few words, vocabulary 320; pad, BOS and EOS are three different tokens.

    Args:
        add_bos: begin every text with BOS, as Llama does, whose chat template writes BOS as well; if False, don't, as
            SmolLM2 and Qwen.
        pad_is_eos: use EOS for padding.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        show_progress=False,
        special_tokens=[PAD, BOS, EOS, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=EOS if pad_is_eos else PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[START],
        chat_template=CHAT_TEMPLATE.replace("{% if bos %}", "{% if true %}" if add_bos else "{% if false %}"),
        model_max_length=512,
    )


def tiny_model(tokenizer: PreTrainedTokenizerFast, *, seed: int = 0, **config: Any) -> LlamaForCausalLM:
    """A float32 Llama with random weights: 2 layers, hidden size 32.

    The weights are ten times larger than usual, so that log-probs differ between tokens and a test that mixes them up
    fails.
    """
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            **{
                "vocab_size": len(tokenizer),
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 512,
                "initializer_range": 0.2,
                "tie_word_embeddings": False,
                "pad_token_id": tokenizer.pad_token_id,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                **config,
            }
        )
    )
    return model.float().eval()


def save_tiny_model(folder: str | Path, *, add_bos: bool = False, seed: int = 0, **config: Any) -> str:
    """Save a tiny tokenizer and model for `from_pretrained`, and return the folder."""
    tokenizer = tiny_tokenizer(add_bos=add_bos)
    tiny_model(tokenizer, seed=seed, **config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _text(rng: random.Random, low: int, high: int) -> str:
    return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))


def ranked_rows(
    count: int,
    *,
    seed: int = 0,
    responses: tuple[int, int] = (2, 5),
    ties: bool = False,
    scores: bool = False,
    conversational: bool = False,
) -> list[dict[str, Any]]:
    """Return toy rows in the ranked form: prompt, completions, and shuffled ranks (dense, 0 = best) or scores.

    Args:
        count: number of rows.
        seed: seed of the random words.
        responses: fewest and most responses to a prompt; rows cycle through all numbers in between.
        ties: let two responses share a rank in rows with three or more.
        scores: give a column `scores` (higher is better) instead of `ranks`.
        conversational: give messages instead of text.
    """
    rng = random.Random(seed)
    rows = []
    fewest, most = responses
    for number in range(count):
        k = fewest + number % (most - fewest + 1)
        ranks = list(range(k))
        if ties and k > 2:
            ranks[-1] = k - 2
        rng.shuffle(ranks)
        prompt: Any = _text(rng, 2, 8)
        # Numbered, so that no two responses are the same.
        completions: list[Any] = [f" {_text(rng, 1, 9)} {response}" for response in range(k)]
        if conversational:
            prompt = [{"role": "user", "content": prompt}]
            completions = [[{"role": "assistant", "content": text}] for text in completions]
        order = {"scores": [-1.5 * rank for rank in ranks]} if scores else {"ranks": ranks}
        rows.append({"prompt": prompt, "completions": completions, **order})
    return rows


def ranked_dataset(count: int, **options: Any) -> Dataset:
    """Return `ranked_rows` as a Dataset."""
    return Dataset.from_list(ranked_rows(count, **options))


def complete_dataset(count: int, **options: Any) -> Dataset:
    """Return rankings with ties and all that a loss can read: scores, labels, scores of the reference, weights."""
    rows = ranked_rows(count, ties=True, scores=True, **options)
    for number, row in enumerate(rows):
        best = max(row["scores"])
        row["labels"] = [score == best for score in row["scores"]]
        row["reference_scores"] = [-3.0, -1.2, 0.1][: 2 + number % 2]
        row["weight"] = 0.5 + 0.25 * number
    return Dataset.from_list(rows)


def pair_rows(count: int, *, seed: int = 0, conversational: bool = False) -> list[dict[str, Any]]:
    """Return toy rows in TRL's preference form: prompt, chosen, rejected."""
    return [
        {
            "prompt": row["prompt"],
            "chosen": row["completions"][row["ranks"].index(0)],
            "rejected": row["completions"][row["ranks"].index(1)],
        }
        for row in ranked_rows(count, seed=seed, responses=(2, 2), conversational=conversational)
    ]


def pair_dataset(count: int, **options: Any) -> Dataset:
    """Return `pair_rows` as a Dataset."""
    return Dataset.from_list(pair_rows(count, **options))


def training_args(folder: str | Path, **changes: Any) -> dict[str, Any]:
    """Return config arguments for a short, quiet float32 run on the CPU: three steps of two prompts each."""
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "max_steps": 3,
        "per_device_train_batch_size": 2,
        "gradient_checkpointing": False,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
        **changes,
    }


def load_script(path: str) -> Any:
    """Import a script of the repository, such as recipes/rloo.py, that is not part of the package."""
    name = re.sub(r"\W", "_", path)
    spec = importlib.util.spec_from_file_location(name, ROOT / path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    return module


def free_port() -> int:
    """Return an unused TCP port, for `accelerate launch --main_process_port` and torchrun.

    It is below the range that the system assigns (from 32768 on Linux, 49152 on macOS): another process could get a
    port of that range in the seconds before the launcher listens on it.
    """
    while True:
        port = random.SystemRandom().randrange(20_000, 30_000)  # tests seed the global one
        with socket.socket() as listener, contextlib.suppress(OSError):
            listener.bind(("127.0.0.1", port))
            return port


def run_python(*arguments: str, env: dict[str, str] | None = None, timeout: float = 1800) -> str:
    """Run Python in a fresh process in the repository's root, and return its stdout.

    The timeout only catches processes that hang: on a busy machine half a minute can become ten.

    Raises:
        AssertionError: it failed; the message holds the end of its stderr.
    """
    process = subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.terminate()  # not kill(): a launcher must end its workers first
        out, err = process.communicate()
        err += f"\nIt was ended after {timeout} s."
    assert process.returncode == 0, f"{arguments} ended with {process.returncode}:\n{out[-1000:]}\n{err[-4000:]}"
    return out
