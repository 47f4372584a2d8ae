"""Build the rankings of the controlled sentiment experiment (arXiv 2305.18290, section 6.1 and appendix C.1).

    python recipes/gpt2-large-imdb/build_data.py

Takes prefixes of 2 to 8 tokens of movie reviews, samples four completions of each from the model of sft.yaml, and
scores them with a sentiment classifier. Writes train.jsonl and test.jsonl into the folder that dpo.yaml and
plackett_luce.yaml name.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_dpo_ext.data import load_splits
from trl_dpo_ext.evaluation import apply_reward, get_reward, sample
from trl_dpo_ext.record import atomic_file

PREFIX_TOKENS = (2, 8)
COMPLETIONS = 4
NEW_TOKENS = 48
DEFAULT_OUTPUT = Path("outputs/gpt2-large-imdb-data")


def draw_prefixes(texts: list[str], tokenizer: Any, count: int, seed: int) -> list[str]:
    """Return up to `count` different prefixes of PREFIX_TOKENS tokens, in random order."""
    generator = random.Random(seed)
    prefixes: dict[str, None] = {}
    for index in generator.sample(range(len(texts)), len(texts)):
        ids = tokenizer(texts[index])["input_ids"][: generator.randint(*PREFIX_TOKENS)]
        prefixes[tokenizer.decode(ids, skip_special_tokens=True)] = None
        if len(prefixes) == count:
            break
    return list(prefixes)


def rank(prefixes: list[str], model: Any, tokenizer: Any, reward: Any, seed: int, batch_size: int) -> list[dict]:
    """Return one row per prefix: prompt, four sampled completions, and their scores."""
    prompts = [prefix for prefix in prefixes for _ in range(COMPLETIONS)]
    samples = sample(model, tokenizer, prompts, max_new_tokens=NEW_TOKENS, seed=seed, batch_size=batch_size)
    scores = apply_reward(reward, samples.prompts, samples.completions)
    groups = [slice(start, start + COMPLETIONS) for start in range(0, len(prompts), COMPLETIONS)]
    return [
        {"prompt": prompts[group.start], "completions": samples.completions[group], "scores": scores[group]}
        for group in groups
    ]


def main(arguments: list[str] | None = None) -> None:
    """Build both splits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/gpt2-large-imdb-sft", help="the model of sft.yaml")
    parser.add_argument("--reviews", default="stanfordnlp/imdb", help="dataset with splits train and test")
    parser.add_argument("--reward", default="siebert/sentiment-roberta-large-english", help="as in recipes/train.py")
    parser.add_argument("--output", type=Path, default=DEFAULT_OUTPUT)
    parser.add_argument("--train", type=int, default=25_000, help="prefixes (the paper: 25,000)")
    parser.add_argument("--test", type=int, default=1_000, help="prefixes of the test reviews")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=256, help="completions to sample at a time")
    options = parser.parse_args(arguments)

    sys.path.insert(0, str(Path.cwd()))  # as recipes/train.py does, so that a reward of your own is found
    reward = get_reward(options.reward)
    reviews = load_splits(options.reviews)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).to(device)
    options.output.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", options.train), ("test", options.test)):
        prefixes = draw_prefixes(reviews[split]["text"][:], tokenizer, count, options.seed)
        rows = rank(prefixes, model, tokenizer, reward, options.seed, options.batch_size)
        path = options.output / f"{split}.jsonl"
        with atomic_file(path) as temporary:
            temporary.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        mean = sum(sum(row["scores"]) for row in rows) / (COMPLETIONS * len(rows))
        print(f"{split}: {len(rows)} rankings of {COMPLETIONS}, mean score {mean:.3f}, in {path}")


if __name__ == "__main__":
    main()
