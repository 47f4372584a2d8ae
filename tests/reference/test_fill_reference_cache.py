"""Filling the cache: each response once, in batches of similar lengths, by several processes, after interruptions."""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trl_dpo_ext.modeling.layout import PromptGroup
from trl_dpo_ext.reference import fill_reference_cache as fill
from trl_dpo_ext.reference.fill_reference_cache import Processes, all_cached, compute_dtype, fill_cache
from trl_dpo_ext.reference.reference_cache import CacheError, ReferenceCache

Row = dict[str, Any]


def logps(prompt: Sequence[int], ids: Sequence[int]) -> np.ndarray:
    """A value for each token that depends on all before it, as a model's does."""
    total = float(sum((i + 1) * token for i, token in enumerate(prompt)))
    out = []
    for place, token in enumerate(ids):
        total += (len(prompt) + place + 1) * token
        out.append(-(total % 97))
    return np.array(out, np.float32)


class Reference:
    """Stands for the model; keeps the batches it was given."""

    def __init__(self) -> None:
        self.batches: list[list[PromptGroup]] = []

    def __call__(self, groups: Sequence[PromptGroup]) -> list[list[np.ndarray]]:
        self.batches.append(list(groups))
        return [[logps(g.prompt_ids, ids) for ids in g.completion_ids] for g in groups]

    @property
    def responses(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        return [(tuple(g.prompt_ids), tuple(ids)) for batch in self.batches for g in batch for ids in g.completion_ids]


def rows(count: int, seed: int = 0) -> list[Row]:
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(100) for _ in range(rng.randint(low, high))]

    return [{"prompt_ids": ids(1, 20), "completion_ids": [ids(1, 30) for _ in range(2 + n % 3)]} for n in range(count)]


def cache(folder: Path) -> ReferenceCache:
    return ReferenceCache(folder, "abc", "float32")


def assert_right(stored: ReferenceCache, data: Sequence[Row]) -> None:
    for row in data:
        got = stored.lookup(PromptGroup(row["prompt_ids"], row["completion_ids"]))
        assert got is not None
        for values, ids in zip(got, row["completion_ids"], strict=True):
            assert values.tolist() == logps(row["prompt_ids"], ids).tolist()


def test_each_response_is_computed_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    data = rows(20)
    data.append({**data[3], "completion_ids": data[3]["completion_ids"][::-1]})  # another pairing of the same
    data.append({"prompt_ids": [1], "completion_ids": [[2], [2], [3]]})  # the same response twice
    data.append({"prompt_ids": [9], "completion_ids": [[2], [3]]})  # the same behind another prompt
    stored, reference = cache(tmp_path), Reference()
    unique = {(tuple(r["prompt_ids"]), tuple(ids)) for r in data for ids in r["completion_ids"]}
    assert not all_cached(stored, data)
    assert fill_cache(stored, data, reference, name="train", batch_size=4) == len(unique)
    assert len(reference.responses) == len(unique)
    assert set(reference.responses) == unique
    assert_right(stored, data)
    assert all_cached(stored, data)
    assert f"0 of {len(unique)} responses found" in caplog.text

    for seen in (stored, cache(tmp_path)):
        again = Reference()
        assert fill_cache(seen, data[::-1], again, name="train", batch_size=1) == 0
        assert not again.batches
    assert caplog.text.count(f"{len(unique)} of {len(unique)} responses found") == 2

    more = [*data, *rows(3, seed=1)]
    again = Reference()
    assert fill_cache(cache(tmp_path), more, again, name="train", batch_size=1) == 2 + 3 + 4
    assert len(again.responses) == 9


def test_batches_are_of_like_length_and_within_the_memory_of_the_first(tmp_path):
    data, reference = rows(200), Reference()
    fill_cache(cache(tmp_path), data, reference, name="train", batch_size=4)
    tokens = [[sum(len(g.prompt_ids) + len(ids) for ids in g.completion_ids) for g in b] for b in reference.batches]
    flat = [n for batch in tokens for n in batch]
    assert flat == sorted(flat, reverse=True)
    assert len(tokens[0]) == 4
    assert max(map(len, tokens)) > 16
    assert max(len(batch) * batch[0] for batch in tokens) <= 4 * tokens[0][0]


def test_what_is_left_of_many_batches_is_put_together(tmp_path):
    data = rows(60)
    every_third = [row for n, row in enumerate(data) if n % 3 == 0]
    stored = cache(tmp_path)
    others = [row for n, row in enumerate(data) if n % 3]
    fill_cache(stored, others, Reference(), name="train", batch_size=4)
    whole, rest = Reference(), Reference()
    fill_cache(cache(tmp_path / "new"), data, whole, name="train", batch_size=4)
    assert fill_cache(stored, data, rest, name="train", batch_size=4) == sum(
        len(r["completion_ids"]) for r in every_third
    )
    assert len(rest.batches) <= len(whole.batches) / 2
    assert_right(stored, data)


class Interrupted(BaseException):
    pass


def stop_after(count: int, reference: Reference) -> Callable[[Sequence[PromptGroup]], list[list[np.ndarray]]]:
    def compute(groups: Sequence[PromptGroup]) -> list[list[np.ndarray]]:
        if len(reference.batches) == count:
            raise Interrupted
        return reference(groups)

    return compute


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_an_interrupted_pass_keeps_what_it_has(batches, tmp_path):
    data, whole, first, second = rows(30), Reference(), Reference(), Reference()
    fill_cache(cache(tmp_path / "whole"), data, whole, name="train", batch_size=4)
    assert len(whole.batches) > 4
    with pytest.raises(Interrupted):
        fill_cache(cache(tmp_path), data, stop_after(batches, first), name="train", batch_size=4)
    stored = cache(tmp_path)
    fill_cache(stored, data, second, name="train", batch_size=4)
    # The very batches of a pass that nothing interrupted, so that a model's values come out the same to the last bit.
    assert first.batches == whole.batches[:batches]
    assert second.batches == whole.batches[batches:]
    assert_right(stored, data)


def test_files_are_written_as_the_pass_goes_on(tmp_path, monkeypatch):
    data, sizes = rows(120), []
    stored, reference = cache(tmp_path), Reference()

    def compute(groups: Sequence[PromptGroup]) -> list[list[np.ndarray]]:
        sizes.append(len(list(stored.folder.glob("*.arrow"))))
        return reference(groups)

    monkeypatch.setattr(fill, "_FLUSH_SECONDS", -1.0)
    fill_cache(stored, data, compute, name="train", batch_size=4)
    assert sizes == list(range(len(reference.batches)))
    monkeypatch.undo()

    sizes.clear()
    monkeypatch.setattr(fill, "_FLUSH_TOKENS", 500)
    stored = cache(tmp_path / "by size")
    fill_cache(stored, data, compute, name="train", batch_size=4)
    assert 2 < sizes[-1] < len(sizes) - 2
    assert_right(stored, data)


# Several processes


def together(count: int, work: Callable[[Processes], None]) -> None:
    """Run as many processes as threads, which wait for each other as processes do."""
    barrier, failures = threading.Barrier(count, timeout=600), []

    def run(index: int) -> None:
        try:
            work(Processes(index, count, barrier.wait))
        except BaseException as error:
            failures.append(error)
            barrier.abort()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


@pytest.mark.parametrize("found", [0, 10])
def test_processes_share_the_work(found, tmp_path):
    data = rows(40)
    if found:
        fill_cache(cache(tmp_path), data[:found], Reference(), name="train", batch_size=4)
    references = [Reference() for _ in range(3)]

    def work(processes: Processes) -> None:
        stored = cache(tmp_path)
        fill_cache(stored, data, references[processes.index], name="train", batch_size=4, processes=processes)
        assert_right(stored, data)

    together(3, work)
    computed = [response for reference in references for response in reference.responses]
    assert len(computed) == len(set(computed)) == sum(len(row["completion_ids"]) for row in data[found:])
    assert min(len(reference.batches) for reference in references) > 1
    counts = [len(reference.batches) for reference in references]
    assert max(counts) - min(counts) <= 1


def test_processes_without_a_disk_in_common_compute_all(tmp_path):
    data, references = rows(20), [Reference(), Reference()]

    def work(processes: Processes) -> None:
        stored = cache(tmp_path / str(processes.index))
        fill_cache(stored, data, references[processes.index], name="train", batch_size=4, processes=processes)
        assert_right(stored, data)

    together(2, work)
    for reference in references:
        assert len(reference.responses) == len(set(reference.responses)) == sum(len(r["completion_ids"]) for r in data)


def test_runs_that_know_nothing_of_each_other_fill_one_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(fill, "_FLUSH_SECONDS", -1.0)
    data = rows(40)

    def work(processes: Processes) -> None:
        mine = data[10 * processes.index : 10 * processes.index + 20]
        stored = cache(tmp_path)
        fill_cache(stored, mine, Reference(), name="train", batch_size=2)
        assert_right(stored, mine)

    together(3, work)
    assert_right(cache(tmp_path), data)
    assert not list(tmp_path.rglob("*.tmp"))


# What can't be stored


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_log_prob_that_is_not_finite_is_an_error(value, tmp_path):
    data = rows(12)
    place = 7  # of its row, the second response

    def compute(groups: Sequence[PromptGroup]) -> list[list[np.ndarray]]:
        out = Reference()(groups)
        for group, values in zip(groups, out, strict=True):
            if group.prompt_ids == data[place]["prompt_ids"]:
                values[1][-1] = value
        return out

    stored = cache(tmp_path)
    with pytest.raises(ValueError, match=f"train dataset, row {place}, response 1: .*{value}"):
        fill_cache(stored, data, compute, name="train", batch_size=1)
    stored.refresh()
    assert stored.lookup(PromptGroup(data[place]["prompt_ids"], data[place]["completion_ids"][1:2])) is None
    assert len(stored) > 1  # the longer rows, computed before


def test_a_folder_that_cannot_be_written_is_found_before_the_pass(tmp_path):
    (tmp_path / "file").write_text("")
    reference = Reference()
    with pytest.raises(CacheError, match="ref_cache_dir"):
        fill_cache(cache(tmp_path / "file"), rows(3), reference, name="train", batch_size=1)
    assert not reference.batches


def test_a_full_cache_needs_no_writing(tmp_path, monkeypatch):
    data = rows(5)
    fill_cache(cache(tmp_path), data, Reference(), name="train", batch_size=1)
    monkeypatch.setattr(ReferenceCache, "check_room", lambda *_: pytest.fail("nothing is to be written"))
    stored = cache(tmp_path)
    fill_cache(stored, data, Reference(), name="train", batch_size=1)
    assert_right(stored, data)


# Precision


class Layer(torch.nn.Linear):
    compute_dtype: torch.dtype


@pytest.mark.parametrize(
    ("weights", "quantized", "autocast", "expected"),
    [
        (torch.float32, None, None, "float32"),
        (torch.bfloat16, None, None, "bfloat16"),
        (torch.float32, None, torch.bfloat16, "float32+autocast_bfloat16"),
        (torch.bfloat16, None, torch.bfloat16, "bfloat16+autocast_bfloat16"),
        (torch.float16, torch.bfloat16, None, "float16+4bit_bfloat16"),
        (torch.bfloat16, torch.bfloat16, None, "bfloat16"),
    ],
)
def test_the_precision(weights, quantized, autocast, expected):
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embeddings = torch.nn.Embedding(3, 2, dtype=weights)
            self.layer = Layer(2, 2)
            if quantized is not None:
                self.layer.compute_dtype = quantized

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.embeddings

    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        assert compute_dtype(Model()) == expected
