"""Stored log-probs from elsewhere: a right checksum says nothing about the values.

The files are written here by hand, as anyone can who knows the format.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tests import helpers
from tests.reference.test_fill_reference_cache import Reference, Row, assert_right, cache, logps, rows
from tests.training import support
from tests.traps.support import fresh, token_logps
from trl_dpo_ext.modeling.layout import PromptGroup
from trl_dpo_ext.reference.fill_reference_cache import fill_cache
from trl_dpo_ext.reference.reference_cache import CacheError, response_keys

Change = Callable[[np.ndarray], np.ndarray]
METADATA = {"format": "1", "fingerprint": "abc", "dtype": "float32"}


def write(folder: Path, table: pa.Table) -> Path:
    """Write a file whose name is the checksum of its contents."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    contents = sink.getvalue().to_pybytes()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{hashlib.blake2b(contents, digest_size=16).hexdigest()}.arrow"
    path.write_bytes(contents)
    return path


def forged(
    folder: Path, data: list[Row], change: Change, values: Any = logps, metadata: dict[str, str] = METADATA
) -> Path:
    keys, lists = [], []
    for row in data:
        keys += response_keys(PromptGroup(row["prompt_ids"], row["completion_ids"]))
        lists += [change(np.array(values(row["prompt_ids"], ids), np.float32)) for ids in row["completion_ids"]]
    schema = pa.schema([("key", pa.binary()), ("logps", pa.list_(pa.float32()))], metadata=metadata)
    return write(folder, pa.table([keys, lists], schema=schema))


def filled(root: Path, data: list[Row]) -> Reference:
    reference = Reference()
    fill_cache(cache(root), data, reference, name="train", batch_size=4)
    return reference


WRONG: dict[str, Change] = {
    "minus five everywhere": lambda values: np.full_like(values, -5),
    "zero everywhere": np.zeros_like,
    "another model's": lambda values: values * 0.9 - 0.1,
    "in another order": lambda values: values[::-1] - 0.2,
}
NO_LOG_PROBS: dict[str, Change] = {
    "plus three": lambda values: np.full_like(values, 3),
    "one value above 0": lambda values: np.append(values[:-1], np.float32(2e-3)),
    "NaN": lambda values: np.full_like(values, np.nan),
    "one minus infinity": lambda values: np.append(values[:-1], np.float32(-np.inf)),
}
LENGTHS: dict[str, Change] = {
    "one value for all tokens": lambda values: values[:1],
    "one too many": lambda values: np.append(values, np.float32(-1)),
    "none": lambda values: values[:0],
}


def test_right_values_are_compared_once(tmp_path):
    data = rows(12)
    path = forged(tmp_path / "abc-float32", data, lambda values: values - 0.01)  # within rounding
    first = filled(tmp_path, data)
    assert len(first.responses) == 4
    assert not filled(tmp_path, data).batches
    assert path.name in (tmp_path / "abc-float32" / "checked.txt").read_text()


def test_own_values_are_not_compared(tmp_path):
    data = rows(12)
    assert len(filled(tmp_path, data).responses) > 20
    assert not filled(tmp_path, data).batches
    (tmp_path / "abc-float32" / "checked.txt").unlink()  # as a file of an earlier version
    assert len(filled(tmp_path, data).responses) == 4
    assert not filled(tmp_path, data).batches


@pytest.mark.parametrize("kind", WRONG)
def test_values_of_another_model_are_refused(kind, tmp_path):
    data = rows(12)
    path = forged(tmp_path / "abc-float32", data, WRONG[kind])
    for _ in range(2):
        with pytest.raises(CacheError) as error:
            filled(tmp_path, data)
        assert str(error.value).startswith(f"{path}: these reference log-probs are not those of this run's reference.")
        assert "train dataset, row" in str(error.value)
        assert "The cache is wrong, not your rows. Delete that file" in str(error.value)
    path.unlink()
    filled(tmp_path, data)
    assert_right(cache(tmp_path), data)


def test_each_file_is_compared(tmp_path):
    data = rows(40)
    good = [forged(tmp_path / "abc-float32", data[start : start + 4], lambda v: v) for start in range(0, 36, 4)]
    bad = forged(tmp_path / "abc-float32", data[36:], WRONG["minus five everywhere"])
    with pytest.raises(CacheError) as error:
        filled(tmp_path, data)
    assert str(bad) in str(error.value)
    assert not [path for path in good if str(path) in str(error.value)]


@pytest.mark.parametrize("kind", NO_LOG_PROBS)
def test_a_file_with_values_that_no_log_prob_has_is_left_out(kind, tmp_path, caplog):
    data = rows(6)
    path = forged(tmp_path / "abc-float32", data, NO_LOG_PROBS[kind])
    filled(tmp_path, data)
    assert_right(cache(tmp_path), data)
    message = next(r.getMessage() for r in caplog.records if r.levelno == logging.WARNING)
    assert str(path) in message
    assert "as a log-prob" in message
    assert "computed again; delete the file" in message


@pytest.mark.parametrize("kind", LENGTHS)
def test_there_is_one_log_prob_for_each_token(kind, tmp_path):
    data = [row for row in rows(12) if min(map(len, row["completion_ids"])) > 1]
    path = forged(tmp_path / "abc-float32", data, LENGTHS[kind])
    with pytest.raises(CacheError, match=r"log-probs for train dataset, row \d+, response \d, which has \d+ tokens.*"):
        filled(tmp_path, data)
    with pytest.raises(CacheError, match=r"The cache is wrong, not your rows\. Delete that file") as error:
        cache(tmp_path).lookup(PromptGroup(data[0]["prompt_ids"], data[0]["completion_ids"]))
    assert str(path) in str(error.value)


def column(name: str, values: Any, kind: Any) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, pa.array(values, kind))


def twice(table: pa.Table) -> pa.Table:
    return pa.concat_tables([table, table])


STRUCTURES: dict[str, Callable[[pa.Table], pa.Table]] = {
    "keys of other lengths": column("key", [b"x", 31 * b"y"], pa.binary()),
    "keys that are text": column("key", ["x", "y"], pa.string()),
    "no keys": column("key", [None, None], pa.binary()),
    "an empty cell": column("logps", [None, [-1.0]], pa.list_(pa.float32())),
    "an empty value": column("logps", [[None], [-1.0]], pa.list_(pa.float32())),
    "doubles": column("logps", [[-1.0], [-1.0]], pa.list_(pa.float64())),
    "plain numbers": column("logps", [-1.0, -1.0], pa.float32()),
    "no log-probs": lambda table: table.drop_columns(["logps"]),
    "another column": lambda table: table.append_column("more", pa.array([1, 2])),
    "two pieces": twice,
    "no rows": lambda table: table.slice(0, 0),
}


@pytest.mark.parametrize("kind", STRUCTURES)
def test_other_tables_are_left_out(kind, tmp_path, caplog):
    data = [{"prompt_ids": [1], "completion_ids": [[2], [3]]}]
    keys = response_keys(PromptGroup([1], [[2], [3]]))
    schema = pa.schema([("key", pa.binary()), ("logps", pa.list_(pa.float32()))], metadata=METADATA)
    table = pa.table([keys, [[-1.0], [-1.0]]], schema=schema)
    path = write(tmp_path / "abc-float32", STRUCTURES[kind](table).replace_schema_metadata(METADATA))
    filled(tmp_path, data)
    assert_right(cache(tmp_path), data)
    assert str(path) in caplog.text or kind == "no rows"


@pytest.mark.parametrize("offsets", [(0, 10**6, 2), (0, -1, 2), (1, 1, 2), (0, 1, 10**6)])
def test_offsets_that_point_elsewhere_are_left_out(offsets, tmp_path, caplog):
    data = [{"prompt_ids": [1], "completion_ids": [[2], [3]]}]
    path = forged(tmp_path / "abc-float32", data, lambda values: values)
    contents, place = path.read_bytes(), np.array([0, 1, 2], "<i4").tobytes()
    assert contents.count(place) == 1
    contents = contents.replace(place, np.array(offsets, "<i4").tobytes())
    path.unlink()
    path = path.with_name(f"{hashlib.blake2b(contents, digest_size=16).hexdigest()}.arrow")
    path.write_bytes(contents)
    stored = cache(tmp_path)
    group = PromptGroup([1], [[2], [3]])
    if offsets == (1, 1, 2):  # a sound file; the first response has no value
        with pytest.raises(CacheError, match="holds 0 log-probs for a response of 1 tokens"):
            stored.lookup(group)
        return
    assert stored.lookup(group) is None
    assert str(path) in caplog.text


def test_a_type_that_arrow_does_not_have_is_left_out(tmp_path, caplog):
    """Arrow's errors have several parents: this one is a NotImplementedError."""
    data = [{"prompt_ids": [1], "completion_ids": [[2], [3]]}]
    keys = response_keys(PromptGroup([1], [[2], [3]]))
    path = write(tmp_path / "abc-float32", pa.table([keys, [1, 2]], names=["key", "logps"]))
    contents = path.read_bytes()
    path.unlink()
    wide = contents.replace(b"\x40\x00\x00\x00", b"\x80\x00\x00\x00")  # integers of 128 bits in place of 64
    with pytest.raises(pa.ArrowNotImplementedError, match="more than 64 bits"):
        pa.ipc.open_stream(wide).read_all()
    path = path.with_name(f"{hashlib.blake2b(wide, digest_size=16).hexdigest()}.arrow")
    path.write_bytes(wide)
    filled(tmp_path, data)
    assert_right(cache(tmp_path), data)
    assert str(path) in caplog.text


@pytest.mark.usefixtures("no_head_check")
def test_a_run_refuses_forged_values_before_it_trains(tiny_model_dir, tmp_path):
    """With a real model: its own values pass, and -5 everywhere doesn't."""
    data, model = helpers.ranked_dataset(6), fresh(tiny_model_dir)

    def trainer(folder: str, change: Change) -> Any:
        plain = support.trainer(tiny_model_dir, tmp_path / f"{folder}-plain", data)
        fingerprint = plain.reference_identity.fingerprint
        forged(
            tmp_path / folder / f"{fingerprint}-float32",
            list(plain.train_dataset),
            change,
            lambda prompt, ids: token_logps(model, prompt, ids),
            {**METADATA, "fingerprint": str(fingerprint)},
        )
        settings = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path / folder)}
        return support.trainer(tiny_model_dir, tmp_path / folder, data, **settings)

    trainer("good", lambda values: values)
    with pytest.raises(CacheError, match="not those of this run's reference"):
        trainer("bad", WRONG["minus five everywhere"])
