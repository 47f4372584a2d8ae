"""Make the small world's files: tokenizer, language model, prompts, and responses of the reference to rank.

    python -m trl_dpo_ext.arena.build_world FOLDER

The world that comes with the package was made by this, see its README.md. Another processor may round differently and
give another world, so results are only comparable within one.
"""

from __future__ import annotations

import gzip
import json
import random
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from ..run.recipe_files import recipes_folder
from .sampling import sample_responses
from .world import EOS, PROMPT_TOKENS, RESPONSES, World

VOCABULARY = 1024
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 14, 64, 3e-3, 0.1
TRAIN, PICK, MEASURE = 512, 192, 192  # prompts
_SENTENCE = re.compile(r"[^.!?\n]*[.!?]?")


def texts(split: str) -> list[str]:
    """Return the first sentence of each prompt with its continuation in the quickstart's data."""
    with gzip.open(recipes_folder() / "quickstart" / "data" / f"{split}.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    found = [row["prompt"] + completion for row in rows for completion in row["completions"]]
    sentences = (_SENTENCE.match(text) for text in found)
    return [match[0].strip().lower() for match in sentences if match is not None]


def train_tokenizer(sentences: list[str]) -> Tokenizer:
    """Train a byte-level BPE; token 0 ends a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        sentences,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=["<end>"],
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    return tokenizer


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
        print(f"epoch {epoch + 1} of {EPOCHS}: {sum(losses) / len(losses):.3f} nats per token", flush=True)
    return model.half().float().eval()


def prompts_of(tokenizer: Tokenizer, sentences: list[str]) -> list[list[int]]:
    """Return the different beginnings of `PROMPT_TOKENS` tokens, where a word ends there, shuffled."""
    found = {}
    for sentence in sentences:
        ids = tokenizer.encode(sentence).ids
        if len(ids) > PROMPT_TOKENS + 2 and tokenizer.decode([ids[PROMPT_TOKENS]]).startswith(" "):
            found[tuple(ids[:PROMPT_TOKENS])] = None
    return random.Random(0).sample([list(ids) for ids in found], len(found))


def build(folder: Path) -> None:
    """Write the world's files."""
    folder.mkdir(parents=True, exist_ok=True)
    train, test = texts("train"), texts("test")
    tokenizer = train_tokenizer(train)
    model = train_model([[*tokenizer.encode(text).ids[:32], EOS] for text in train])
    known = prompts_of(tokenizer, train)
    new = [ids for ids in prompts_of(tokenizer, test) if ids not in known]
    held_out = [*known[TRAIN : TRAIN + PICK + MEASURE - len(new)], *new[: PICK + MEASURE]]
    held_out = random.Random(1).sample(held_out, PICK + MEASURE)
    prompts = {"train": known[:TRAIN], "pick": held_out[:PICK], "measure": held_out[PICK:]}
    model.config.save_pretrained(folder)
    weights = {name: value.half().contiguous() for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(folder / "tokenizer.json"))
    world = World(model, tokenizer, prompts, [])
    generator = torch.Generator().manual_seed(0)
    repeated = torch.tensor(prompts["train"]).repeat_interleave(RESPONSES, dim=0)
    sampled = sample_responses(model, repeated, generator)
    rows = [sampled.ids[i, : sampled.lengths[i]].tolist() for i in range(len(repeated))]
    responses = [rows[start : start + RESPONSES] for start in range(0, len(rows), RESPONSES)]
    with open(folder / "rows.json.gz", "wb") as raw, gzip.GzipFile("", "wb", fileobj=raw, mtime=0) as file:
        file.write(json.dumps({"prompts": world.prompts, "responses": responses}).encode())


if __name__ == "__main__":
    build(Path(sys.argv[1]))
