"""Write all pairs of the rankings, for TRL's RewardTrainer.

python recipes/controlled_sentiment/pairs.py outputs/controlled_sentiment/data outputs/controlled_sentiment/pairs
"""

from __future__ import annotations

import json
import sys
from itertools import permutations
from pathlib import Path

from trl_dpo_ext.data import load_splits
from trl_dpo_ext.record import atomic_file


def main(source: str, folder: str) -> None:
    """Write train.jsonl and test.jsonl with prompt, chosen and rejected. Equal scores give no pair."""
    output = Path(folder)
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in load_splits(source).items():
        with atomic_file(output / f"{name}.jsonl") as temporary, open(temporary, "w", encoding="utf-8") as file:
            for row in rows:
                scored = zip(row["completions"], row["scores"], strict=True)
                for (better, high), (worse, low) in permutations(scored, 2):
                    if high > low:
                        pair = {"prompt": row["prompt"], "chosen": better, "rejected": worse}
                        file.write(json.dumps(pair, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
