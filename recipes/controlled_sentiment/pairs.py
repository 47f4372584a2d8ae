"""Write all pairs of the rankings, for TRL's RewardTrainer.

python recipes/controlled_sentiment/pairs.py outputs/controlled_sentiment/data outputs/controlled_sentiment/pairs
"""

from __future__ import annotations

import json
import sys
from itertools import permutations
from pathlib import Path

from trl_dpo_ext.data import load_splits


def main(source: str, folder: str) -> None:
    """Write train.jsonl and test.jsonl: prompt, chosen, rejected; of equal scores no pair."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in load_splits(source).items():
        with open(output / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for row in rows:
                scored = zip(row["completions"], row["scores"], strict=True)
                for (better, high), (worse, low) in permutations(scored, 2):
                    if high > low:
                        pair = {"prompt": row["prompt"], "chosen": better, "rejected": worse}
                        file.write(json.dumps(pair, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
