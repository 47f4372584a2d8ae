"""Caches of reference log-probs, forged with right checksums or damaged: right values are read, or a sentence names the
file.
"""

from __future__ import annotations

import hashlib
import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from tests.attack import tampering
from tests.reference.test_fill_reference_cache import Row, logps
from tests.reference.test_foreign_cache import METADATA, cache, filled, write
from trl_dpo_ext.modeling.layout import PromptGroup
from trl_dpo_ext.reference.reference_cache import CacheError, response_keys

# Four responses: as many as are computed again for each file from elsewhere.
DATA: list[Row] = [
    {"prompt_ids": [5, 6, 7], "completion_ids": [[8, 9], [10, 11, 12]]},
    {"prompt_ids": [5], "completion_ids": [[8], [9, 9, 9, 9]]},
]
ALLOWED = 0.05  # the mean difference per token that counts as rounding of another machine
SCHEMA = pa.schema([("key", pa.binary()), ("logps", pa.list_(pa.float32()))])
STRANGE = [np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-3, 2e-3, 3.0, -5.0, -1e30, 3e38, -3e38, 1e-40]
METADATA_CHANGES: list[dict[str, str]] = [
    {"fingerprint": "xyz"}, {"dtype": "bfloat16"}, {"format": "2"}, {"more": "x"}, {"format": ""},
]  # fmt: skip


def entries() -> tuple[list[bytes], list[np.ndarray]]:
    """Return the keys of all responses and their log-probs."""
    keys: list[bytes] = []
    values: list[np.ndarray] = []
    for row in DATA:
        keys += response_keys(PromptGroup(row["prompt_ids"], row["completion_ids"]))
        values += [np.array(logps(row["prompt_ids"], ids), np.float32) for ids in row["completion_ids"]]
    return keys, values


def change_entries(keys: list[Any], values: list[Any], draw: random.Random) -> None:
    """Change the values, their number, their keys or their order."""
    for _ in range(draw.choice([1, 1, 2, 4])):
        if not keys:
            return
        i = draw.randrange(len(keys))
        action = draw.randrange(9)
        if values[i] is None or not len(values[i]):
            continue
        if action == 0:
            values[i] = np.full_like(values[i], draw.choice(STRANGE))
        elif action == 1:
            values[i] = values[i].copy()
            values[i][draw.randrange(len(values[i]))] = draw.choice(STRANGE)
        elif action == 2:
            values[i] = values[i][: draw.randrange(len(values[i]))]
        elif action == 3:
            values[i] = np.append(values[i], np.float32(-1))
        elif action == 4:
            j = draw.randrange(len(keys))
            values[i], values[j] = values[j], values[i]
        elif action == 5:
            keys[i] = draw.choice([b"", b"x", b"x" * 16, b"x" * 17, None, keys[draw.randrange(len(keys))]])
        elif action == 6:
            with np.errstate(over="ignore"):
                scaled = values[i] * np.float32(draw.choice([0.5, 0.9, 1.1, 2]))
            values[i] = draw.choice([None, scaled, values[i] - 1])
        elif action == 7:
            del keys[i], values[i]
        else:
            keys.append(keys[i])
            values.append(values[i] - np.float32(draw.choice([0, 0.01, 3])))


def forge(folder: Path, draw: random.Random) -> None:
    """Write a file as an enemy does, who knows the format and names the file after its checksum."""
    keys, values = entries()
    change_entries(keys, values, draw)
    metadata = {**METADATA, **draw.choice([*METADATA_CHANGES, *[{}] * 12])}
    table = pa.table([keys, values], schema=SCHEMA).replace_schema_metadata(metadata)
    way = draw.random()
    if way < 0.1:
        kinds = [pa.float64(), pa.float16(), pa.int32(), pa.string()]
        column = pa.array([list(map(str, v if v is not None else [])) for v in values]).cast(pa.list_(pa.string()))
        table = table.set_column(1, "logps", column if draw.random() < 0.3 else table["logps"])
        if draw.random() < 0.5:
            zeros = [[0] * len(v) for v in values if v is not None]
            table = pa.table([keys[: len(zeros)], pa.array(zeros, pa.list_(pa.int32()))], names=["key", "logps"])
            table = table.cast(pa.schema([("key", pa.binary()), ("logps", pa.list_(draw.choice(kinds[:3])))]))
            table = table.replace_schema_metadata(metadata)
    elif way < 0.2:
        table = draw.choice(
            [
                table.drop_columns(["logps"]),
                table.rename_columns(["logps", "key"]),
                table.append_column("more", pa.array(range(len(table)))),
                pa.concat_tables([table, table]),
                table.slice(0, 0),
                table.slice(1),
                table.select(["logps", "key"]),
            ]
        )
    path = write(folder, table)
    if draw.random() < 0.4:  # bytes inside, under the new checksum
        contents = bytearray(path.read_bytes())
        path.unlink()
        for _ in range(draw.choice([1, 3, 20])):
            contents[draw.randrange(len(contents))] ^= 1 << draw.randrange(8)
        name = hashlib.blake2b(contents, digest_size=16).hexdigest()
        (folder / f"{name}.arrow").write_bytes(contents)


def use(root: Path) -> str:
    """Fill and read the cache as a run does; "right", "refused", or "wrong: VALUES"."""
    folder = root / "abc-float32"
    try:
        filled(root, DATA)
        stored = cache(root)
        found = [stored.lookup(PromptGroup(row["prompt_ids"], row["completion_ids"])) for row in DATA]
    except CacheError as error:
        return "refused" if str(folder) in str(error) else f"no file is named: {error}"
    for row, values in zip(DATA, found, strict=True):
        assert values is not None
        for ids, value in zip(row["completion_ids"], values, strict=True):
            difference = np.abs(value - np.array(logps(row["prompt_ids"], ids), np.float32))
            if not (len(value) == len(ids) and difference.mean() <= ALLOWED + 1e-6):
                return f"wrong: {value}"
    return "right"


def test_no_tampered_cache_is_trained_on(seconds, seed, tmp_path, capsys):
    root = tmp_path / "cache"
    folder = root / "abc-float32"
    draw, end, counts = random.Random(seed), time.monotonic() + seconds, Counter[str]()
    assert use(root) == "right"
    while counts.total() < 300 or time.monotonic() < end:
        shutil.rmtree(root, ignore_errors=True)
        folder.mkdir(parents=True)
        if draw.random() < 0.75:
            kind = "forged"
            forge(folder, draw)
        else:
            filled(root, DATA)
            name = draw.choice(["checked.txt", "arrow", "arrow"])
            kind = f"damaged {name}"
            path = folder / name if name == "checked.txt" else next(folder.glob("*.arrow"))
            tampering.tamper_bytes(path, draw)
        try:
            outcome = use(root)
            assert outcome in ("right", "refused"), outcome
        except Exception as error:
            raise AssertionError(f"seed {seed}, {kind} number {counts.total()}") from error
        counts[f"{kind} {outcome}"] += 1
    with capsys.disabled():
        print(f"\n{counts.total()} tampered caches, seed {seed}: {dict(sorted(counts.items()))}")
