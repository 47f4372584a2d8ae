"""Make the small world's files: vocabulary, language model, prompts, and responses of the reference to rank.

    python -m trl_dpo_ext.arena.build_world FOLDER

The world that comes with the package was made by this, see its README.md. Another processor may round differently and
give another world, so results are only comparable within one.
"""

from __future__ import annotations

import gzip
import json
import logging
import random
import re
import sys
from collections import Counter
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from ..run.recipe_files import recipes_folder
from .sampling import sample_responses
from .world import EOS, PROMPT_TOKENS, RESPONSES

logger = logging.getLogger(__name__)

VOCABULARY = 1500  # words
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 7, 64, 3e-3, 0.1
TRAIN, PICK, MEASURE = 512, 192, 192  # prompts
_SENTENCE = re.compile(r"[^.!?\n]*[.!?]?")
_WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|[.,!?]")


def sentences_of(split: str) -> list[list[str]]:
    """Return the words of the first sentence of each prompt with its continuation in the quickstart's data."""
    with gzip.open(recipes_folder() / "quickstart" / "data" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    texts = [row["prompt"] + completion for row in rows for completion in row["completions"]]
    return [_WORD.findall(match[0]) for text in texts if (match := _SENTENCE.match(text.lower().strip()))]


def most_frequent_words(sentences: list[list[str]]) -> list[str]:
    """Return the vocabulary: the end of a text, then the most frequent words and punctuation."""
    counts = Counter(word for sentence in sentences for word in sentence)
    ordered = sorted(counts, key=lambda word: (-counts[word], word))
    return ["<end>", *ordered[: VOCABULARY - 1]]


def train_model(rows: list[list[int]], seed: int = 0) -> LlamaForCausalLM:
    """Train a language model of about 0.3 million weights from scratch, and round it to float16."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=EOS,
    )
    model = LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    steps = EPOCHS * (len(rows) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    shuffle = random.Random(seed)
    for epoch in range(EPOCHS):
        order = shuffle.sample(rows, len(rows))
        losses = []
        for start in range(0, len(rows) - BATCH + 1, BATCH):
            part = order[start : start + BATCH]
            longest = max(map(len, part))
            ids = torch.tensor([row + [EOS] * (longest - len(row)) for row in part])
            labels = torch.tensor([row + [-100] * (longest - len(row)) for row in part])
            loss = model(input_ids=ids, labels=labels, use_cache=False).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        logger.info(f"epoch {epoch + 1} of {EPOCHS}: {sum(losses) / len(losses):.3f} nats per token")
    return model.half().float().eval()


def prompts_of(rows: list[list[int]]) -> list[list[int]]:
    """Return the different beginnings of `PROMPT_TOKENS` tokens, shuffled."""
    found = dict.fromkeys(tuple(row[:PROMPT_TOKENS]) for row in rows if len(row) > PROMPT_TOKENS + 2)
    return random.Random(0).sample([list(ids) for ids in found], len(found))


def build(folder: Path) -> None:
    """Write the world's files."""
    folder.mkdir(parents=True, exist_ok=True)
    sentences = {split: sentences_of(split) for split in ("train", "test")}
    words = most_frequent_words(sentences["train"])
    number = {word: i for i, word in enumerate(words)}
    # Rare words are left out of the sentences.
    rows = {
        split: [[*(number[word] for word in sentence if word in number), EOS] for sentence in found]
        for split, found in sentences.items()
    }
    model = train_model(rows["train"])
    logger.info(f"test: {mean_loss(model, rows['test']):.3f} nats per token")
    known = prompts_of(rows["train"])
    new = [ids for ids in prompts_of(rows["test"]) if ids not in known]
    held_out = [*new, *known[TRAIN:]][: PICK + MEASURE]
    held_out = random.Random(1).sample(held_out, PICK + MEASURE)
    prompts = {"train": known[:TRAIN], "pick": held_out[:PICK], "measure": held_out[PICK:]}
    repeated = torch.tensor(prompts["train"]).repeat_interleave(RESPONSES, dim=0)
    sampled = sample_responses(model, repeated, torch.Generator().manual_seed(0))
    flat = [sampled.ids[i, : sampled.lengths[i]].tolist() for i in range(len(repeated))]
    responses = [flat[start : start + RESPONSES] for start in range(0, len(flat), RESPONSES)]

    model.config.save_pretrained(folder)
    weights = {
        name: value.half().contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    content = {"words": words, "prompts": prompts, "responses": responses}
    with open(folder / "rows.json.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(json.dumps(content).encode())


def mean_loss(model: LlamaForCausalLM, rows: list[list[int]]) -> float:
    """Return the mean loss of a token, nats."""
    total = count = 0.0
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            if len(row) > 1:
                total += model(input_ids=ids, labels=ids, use_cache=False).loss.item() * (len(row) - 1)
                count += len(row) - 1
    return total / count


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    build(Path(sys.argv[1]))
