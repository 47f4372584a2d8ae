"""Build the quickstart's preference data: data/train.jsonl.gz and data/test.jsonl.gz.

    python recipes/quickstart/build_data.py

The controlled sentiment experiment of the DPO paper (arXiv 2305.18290, section 6.1) in small: prefixes of 2 to 8
tokens of movie reviews, four completions of each sampled from SmolLM2-135M-Instruct, ranked by the sentiment that
VADER gives the whole text. The files are in the repository, so this script is needed only to change them; run again
with the same settings, versions and kind of processor, it writes the same bytes.
recipes/controlled_sentiment builds its own data with it, from another model.
"""

import argparse
import gzip
import io
import json
import random
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_dpo_ext.evaluation import apply_reward, get_reward, sample
from trl_dpo_ext.run.quickstart_model import download, fetch

SOURCE = "vaderSentiment==3.3.2"
SOURCE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
SOURCE_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
SNIPPETS = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"

SEED = 0
SPLITS = {"train": 1024, "test": 256}  # prefixes to sample from; some rows are dropped afterwards
PREFIX_TOKENS = (2, 8)
COMPLETIONS = 4
NEW_TOKENS = 24
BATCH_SIZE = 64
THREADS = 1  # the order of floating-point sums depends on it


def read_snippets() -> list[str]:
    """Return the movie-review sentences published with VADER, white space normalised, each once."""
    with tempfile.TemporaryDirectory() as scratch:
        sdist = download(SOURCE, SOURCE_SHA256, Path(scratch) / "sdist", "--no-binary", ":all:")
        with tarfile.open(sdist) as outer, tarfile.open(fileobj=outer.extractfile(SOURCE_ARCHIVE)) as inner:
            lines = io.TextIOWrapper(inner.extractfile(SNIPPETS), encoding="utf-8").read().splitlines()
    return list(dict.fromkeys(" ".join(line.split("\t")[2].split()) for line in lines))


def draw_prefixes(snippets: list[str], tokenizer: Any) -> Iterator[str]:
    """Yield prefixes of PREFIX_TOKENS tokens that end where a word does, each once whatever its case."""
    generator = random.Random(SEED)
    seen = set()
    for snippet in generator.sample(snippets, len(snippets)):
        ids = tokenizer(snippet)["input_ids"]
        length = generator.randint(*PREFIX_TOKENS)
        # A snippet whose next token goes on with the word, or that ends here, gives no prefix.
        if len(ids) <= length or not tokenizer.decode(ids[length]).startswith(" "):
            continue
        prefix = tokenizer.decode(ids[:length])
        if prefix.casefold() not in seen:
            seen.add(prefix.casefold())
            yield prefix


def problem(prompt: str, completions: list[str], scores: list[float], tokenizer: Any) -> str | None:
    """Return why a row is unfit for training, or None."""
    prompt_ids = tokenizer(prompt)["input_ids"]
    wholes = tokenizer([prompt + completion for completion in completions])["input_ids"]
    if any(ids[: len(prompt_ids)] != prompt_ids for ids in wholes):
        return "completion merges with the prefix"
    if not all(completion.strip() for completion in completions):
        return "empty completion"
    if any("\ufffd" in completion for completion in completions):
        return "cut character"
    if len(set(completions)) < len(completions):
        return "identical completions"
    if len(set(scores)) == 1:
        return "all scores equal"
    return None


def build_split(
    name: str, prefixes: list[str], model: Any, tokenizer: Any, taken: set[str], new_tokens: int = NEW_TOKENS
) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Sample, score and filter one split.

    Args:
        name: of the split; with SEED it makes the sampling seed.
        prefixes: of the split.
        model: samples the completions.
        tokenizer: the model's.
        taken: completions of other splits; this split's are added.
        new_tokens: of a completion, at most.

    Returns:
        The rows, and how many were dropped for which reason.
    """
    prompts = [prefix for prefix in prefixes for _ in range(COMPLETIONS)]
    seed = SEED + list(SPLITS).index(name)
    samples = sample(model, tokenizer, prompts, max_new_tokens=new_tokens, seed=seed, batch_size=BATCH_SIZE)
    scores = apply_reward(get_reward("vader"), samples.prompts, samples.completions)
    rows: list[dict[str, Any]] = []
    dropped: dict[str, int] = {}
    texts = set()
    for start in range(0, len(prompts), COMPLETIONS):
        group = slice(start, start + COMPLETIONS)
        row = {"prompt": prompts[start], "completions": samples.completions[group], "scores": scores[group]}
        reason = problem(**row, tokenizer=tokenizer)
        if reason is None and not taken.isdisjoint(row["completions"]):
            reason = "completion of another split"
        if reason is None:
            rows.append(row)
            texts.update(row["completions"])
        else:
            dropped[reason] = dropped.get(reason, 0) + 1
    taken |= texts
    return rows, dropped


def write(rows: list[dict[str, Any]], path: Path) -> None:
    """Write JSON lines, gzipped without time and file name, so that equal rows give equal bytes."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_bytes(gzip.compress(lines.encode(), compresslevel=9, mtime=0))


def main() -> None:
    """Build both splits and print what went into them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "data", help="folder (default: data/)")
    parser.add_argument("--model", help="folder of the model to sample from (default: the quickstart's)")
    parser.add_argument("--new-tokens", type=int, default=NEW_TOKENS, help=f"of a completion (default: {NEW_TOKENS})")
    parser.add_argument("--limit", type=int, help="take only so many prefixes a split, for a trial")
    arguments = parser.parse_args()

    torch.set_num_threads(THREADS)
    folder = arguments.model or fetch()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    prefixes = list(draw_prefixes(read_snippets(), tokenizer))
    arguments.output.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    start = 0
    for name, count in SPLITS.items():
        chosen = prefixes[start : start + min(count, arguments.limit or count)]
        start += count
        rows, dropped = build_split(name, chosen, model, tokenizer, taken, arguments.new_tokens)
        write(rows, arguments.output / f"{name}.jsonl.gz")
        mean = sum(sum(row["scores"]) for row in rows) / (COMPLETIONS * len(rows))
        print(f"{name}: {len(chosen)} prefixes, {len(rows)} rows, mean score {mean:.4f}, dropped {dropped}")
    print(f"torch {torch.__version__}, {THREADS} thread(s), seed {SEED}, {len(prefixes)} prefixes available")


if __name__ == "__main__":
    main()
