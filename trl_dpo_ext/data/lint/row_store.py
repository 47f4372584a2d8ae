"""The hashes or lengths that the linter keeps of each row, in flat arrays of 8-byte numbers, so a million rows fit."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator, Sequence
from functools import cached_property
from hashlib import blake2b
from typing import Any

import numpy as np

# The constants of splitmix64 (Steele, Lea, Flood 2014), whose steps turn similar numbers into unrelated ones.
_GOLDEN, _FIRST, _SECOND = (np.uint64(c) for c in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def content_hash(content: Any) -> int:
    """Return 64 bits of a text, a message list, or token ids.

    Among ten million different contents, the chance of any collision is about 3 in a million.
    """
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True)
    kind = b"text" if isinstance(content, str) else b"json"
    return int.from_bytes(blake2b(text.encode(errors="surrogatepass"), digest_size=8, person=kind).digest(), "little")


def mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit numbers, so that sums of them can be compared instead of the numbers themselves."""
    values = values.astype(np.uint64) + _GOLDEN
    values = (values ^ (values >> np.uint64(30))) * _FIRST
    values = (values ^ (values >> np.uint64(27))) * _SECOND
    return values ^ (values >> np.uint64(31))


class RowStore:
    """One number (a hash or a length) for each of N prompts and each of their R responses.

    It grows row by row; then its arrays are read.

    Args:
        code: type of the numbers as in `array`: "Q" for hashes, "q" for lengths.
    """

    def __init__(self, code: str) -> None:
        self._prompts, self._responses = array(code), array(code)
        self._rows, self._widths, self._ranks = array("q"), array("q"), array("q")

    def add(self, row: int, prompt: int, responses: Sequence[int], ranks: Sequence[int]) -> None:
        """Add a row: its number in the user's dataset, the number of its prompt, and those of its responses."""
        if not responses:
            return  # nothing to compare, and the sums below need one
        self._rows.append(row)
        self._widths.append(len(responses))
        self._prompts.append(prompt)
        self._responses.extend(responses)
        self._ranks.extend(ranks)

    def __len__(self) -> int:
        return len(self._rows)

    # These are cached, so add every row before reading the first of them.

    @cached_property
    def rows(self) -> np.ndarray:
        """Row numbers in the user's dataset, int64 [N]."""
        return np.array(self._rows)

    @cached_property
    def prompts(self) -> np.ndarray:
        """The prompts' numbers, [N]."""
        return np.array(self._prompts)

    @cached_property
    def responses(self) -> np.ndarray:
        """The responses' numbers, [R]."""
        return np.array(self._responses)

    @cached_property
    def ranks(self) -> np.ndarray:
        """The responses' ranks, 0 = best, int64 [R]."""
        return np.array(self._ranks)

    @cached_property
    def widths(self) -> np.ndarray:
        """How many responses each prompt has, int64 [N]."""
        return np.array(self._widths)

    @cached_property
    def starts(self) -> np.ndarray:
        """The index of each prompt's first response, int64 [N]."""
        return np.cumsum(self.widths) - self.widths

    @cached_property
    def owners(self) -> np.ndarray:
        """Which of the N prompts each response belongs to, int64 [R]."""
        return np.repeat(np.arange(len(self)), self.widths)

    @cached_property
    def best(self) -> np.ndarray:
        """Which responses have the best rank of their prompt, bool [R]."""
        return self.ranks == np.minimum.reduceat(self.ranks, self.starts)[self.owners]

    @cached_property
    def worst(self) -> np.ndarray:
        """Which responses have the worst rank of their prompt, bool [R]."""
        return self.ranks == np.maximum.reduceat(self.ranks, self.starts)[self.owners]

    def totals(self, values: np.ndarray) -> np.ndarray:
        """Sum numbers [R] over each prompt's responses, [N]; 64-bit hashes wrap around."""
        return np.add.reduceat(values, self.starts)

    def by_width(self, prompts: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the chosen prompts (indices) by their number of responses K: prompts [n], responses [n, K]."""
        for width in np.unique(self.widths[prompts]):
            chosen = prompts[self.widths[prompts] == width]
            yield chosen, self.starts[chosen, None] + np.arange(width)
