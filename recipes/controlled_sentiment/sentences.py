"""Write the sentences of movie reviews that the reference model is fine-tuned on.

    python recipes/controlled_sentiment/sentences.py outputs/controlled_sentiment/sentences

They come from the file that the quickstart's prefixes are cut from, and from its other end: no sentence of which a
prefix is used is among them.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "quickstart"))

from build_data import SEED, read_snippets

COUNT = 1024


def main(folder: str) -> None:
    """Write train.jsonl, one `text` a line."""
    snippets = read_snippets()
    order = random.Random(SEED).sample(snippets, len(snippets))  # the one in which prefixes are drawn, from the front
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in order[-COUNT:])
    (output / "train.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
