"""Write the sentences of movie reviews that the reference model is fine-tuned on.

    python recipes/controlled_sentiment/sentences.py outputs/controlled_sentiment/sentences

They come from the same file as the quickstart's prefixes, but from its other end, so no sentence is used for both.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))

from build_data import SEED, read_snippets

from trl_dpo_ext.record import atomic_file

COUNT = 1024


def main(folder: str) -> None:
    """Write train.jsonl with one `text` per line."""
    snippets = read_snippets()
    order = random.Random(SEED).sample(snippets, len(snippets))  # prefixes are drawn in the same order, from the front
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in order[-COUNT:])
    with atomic_file(output / "train.jsonl") as temporary:
        temporary.write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
