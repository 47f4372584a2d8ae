"""Stored log-probs are read back exactly; damaged, foreign and half-written files are left out."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import pickle
import random
import shutil
import struct
from collections import namedtuple
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest

from trl_dpo_ext.modeling.layout import PromptGroup
from trl_dpo_ext.reference import reference_cache as module
from trl_dpo_ext.reference.reference_cache import CacheError, ReferenceCache, default_folder, response_keys

GROUPS = [PromptGroup([5, 6, 7], [[8, 9], [10]]), PromptGroup([5], [[8, 9, 3, 3], [4, 4], [70000]])]


def values_of(group: PromptGroup) -> list[np.ndarray]:
    """Some values that tell responses and tokens apart."""
    return [
        np.array([-(t + token / 7 + len(group.prompt_ids)) for t, token in enumerate(ids)], np.float32)
        for ids in group.completion_ids
    ]


def filled(root: Path, groups: list[PromptGroup] = GROUPS) -> ReferenceCache:
    cache = ReferenceCache(root, "abc", "float32")
    cache.check_room(0, 0)
    for group in groups:
        cache.add(response_keys(group), values_of(group))
    cache.refresh()
    return cache


def assert_holds(cache: ReferenceCache, groups: list[PromptGroup] = GROUPS) -> None:
    for group in groups:
        got = cache.lookup(group)
        assert got is not None
        for values, expected in zip(got, values_of(group), strict=True):
            assert values.dtype == np.float32
            assert values.tolist() == expected.tolist()


def test_values_come_back(tmp_path):
    assert_holds(filled(tmp_path))
    assert_holds(ReferenceCache(tmp_path, "abc", "float32"))
    (folder,) = tmp_path.iterdir()
    assert folder.name == "abc-float32"
    assert len(list(folder.glob("*.arrow"))) == 2
    for other in (ReferenceCache(tmp_path, "abd", "float32"), ReferenceCache(tmp_path, "abc", "bfloat16")):
        assert len(other) == 0
        assert other.lookup(GROUPS[0]) is None


def test_one_missing_response_leaves_its_group_out(tmp_path):
    cache = filled(tmp_path)
    assert cache.lookup(PromptGroup([5, 6, 7], [[10], [8, 9]])) is not None  # any order, any subset
    assert cache.lookup(PromptGroup([5, 6, 7], [[10], [11]])) is None
    assert cache.found(response_keys(PromptGroup([5, 6, 7], [[10], [11]]))).tolist() == [True, False]


def test_keys_by_hand():
    prompt, completion = [5, 60000, 7], [8, 9]
    text = struct.pack("<6i", 3, *prompt, *completion)
    assert response_keys(PromptGroup(prompt, [completion])) == [hashlib.blake2b(text, digest_size=16).digest()]


def test_every_token_and_the_boundary_count():
    keys = [
        key
        for group in (
            PromptGroup([5, 6], [[7, 8], [7, 8, 8], [7, 9], [8, 7]]),
            PromptGroup([5, 6, 7], [[8]]),
            PromptGroup([5], [[6, 7, 8]]),
            PromptGroup([6, 5], [[7, 8]]),
            PromptGroup([0, 5, 6], [[7, 8]]),
        )
        for key in response_keys(group)
    ]
    assert len(set(keys)) == len(keys) == 8


def test_keys_of_any_bytes_are_told_apart(tmp_path):
    """Also those that end in zeros, which numpy's byte strings drop when they are read one by one."""
    rng = random.Random(0)
    keys = list({bytes(rng.choices([0, 1, 127, 128, 255], [6, 1, 1, 1, 2], k=16)) for _ in range(3000)})
    there, others = keys[::2], keys[1::2]
    cache = ReferenceCache(tmp_path, "abc", "float32")
    cache.check_room(0, 0)
    cache.add(there, [np.array([-float(i)], np.float32) for i in range(len(there))])
    cache.refresh()
    assert len(cache) == len(there) > 1000
    assert cache.found(there).all()
    assert not cache.found(others).any()
    _, places = cache._find(there)
    assert cache._order[places].tolist() == list(range(len(there)))


def test_values_stay_on_disk_and_travel_to_workers(tmp_path):
    groups = [PromptGroup([prompt], [[1, 2], [3]]) for prompt in range(1, 61)]
    opened = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    cache = filled(tmp_path, groups)
    assert len(list(cache.folder.glob("*.arrow"))) == 60
    if opened:
        assert len(os.listdir("/proc/self/fd")) <= opened + 2  # or a large cache would use up the open files
    assert not cache.lookup(groups[0])[0].flags.writeable
    copied = pickle.dumps(cache)
    assert len(copied) < 60 * 100
    assert_holds(pickle.loads(copied), groups)


def test_what_was_there_first_stays(tmp_path):
    """A run that is resumed reads what it read before, whatever another one has added since."""
    cache = filled(tmp_path)
    for number in range(20):  # whose names come before and after
        cache.add(response_keys(GROUPS[0]), [values - 1 - number for values in values_of(GROUPS[0])])
    cache.refresh()
    assert_holds(cache)
    assert_holds(ReferenceCache(tmp_path, "abc", "float32"))


# Damage


def _only_file(cache: ReferenceCache) -> Path:
    (path,) = cache.folder.glob("*.arrow")
    return path


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def cut_off_a_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(place: float) -> Any:
    def flip_a_byte(path: Path) -> None:
        contents = bytearray(path.read_bytes())
        contents[int(place * len(contents))] ^= 1
        path.write_bytes(contents)

    return flip_a_byte


def change_a_value(path: Path) -> None:
    contents, value = path.read_bytes(), values_of(GROUPS[0])[0].tobytes()
    assert contents.count(value) == 1
    path.write_bytes(contents.replace(value, value[:4] + bytes(4)))


def empty(path: Path) -> None:
    path.write_bytes(b"")


def write_text(path: Path) -> None:
    path.write_text("These are not log-probs.\n")


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def broken_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def another_name(path: Path) -> None:
    path.rename(path.with_name("mine.arrow"))


def of_another_reference(path: Path) -> None:
    """A sound file, but of another model: its values would be wrong ones."""
    other = ReferenceCache(path.parents[1], "abd", "float32")
    other.check_room(0, 0)
    other.add(response_keys(GROUPS[0]), values_of(GROUPS[0]))
    path.unlink()
    (theirs,) = other.folder.glob("*.arrow")
    shutil.copy(theirs, path.parent)


def of_something_else(path: Path) -> None:
    """A sound Arrow file with its checksum for a name, but without what a cache holds."""
    datasets.Dataset.from_dict({"key": [1], "logps": [[0.0]]}).save_to_disk(path.parents[1] / "other")
    (theirs,) = (path.parents[1] / "other").glob("*.arrow")
    contents = theirs.read_bytes()
    path.unlink()
    path.with_name(f"{hashlib.blake2b(contents, digest_size=16).hexdigest()}.arrow").write_bytes(contents)


DAMAGE = [truncate, cut_off_a_byte, change_a_value, empty, write_text, directory, broken_link, another_name]
DAMAGE += [of_another_reference, of_something_else, *map(flip, (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.999))]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage.__name__)
def test_damage_is_found_and_mended(damage, tmp_path, caplog):
    damage(_only_file(filled(tmp_path, GROUPS[:1])))
    (path,) = (tmp_path / "abc-float32").glob("*.arrow")
    cache = ReferenceCache(tmp_path, "abc", "float32")
    assert cache.lookup(GROUPS[0]) is None
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert str(path) in record.getMessage()
    assert "computed again" in record.getMessage()

    cache.refresh()
    assert len(caplog.records) == 1  # once is enough
    if damage is not directory:  # a file can't take the place of a folder
        cache.add(response_keys(GROUPS[0]), values_of(GROUPS[0]))
        cache.refresh()
        assert_holds(cache, GROUPS[:1])
        assert len(caplog.records) == 1


def test_a_sound_file_beside_a_damaged_one_is_used(tmp_path):
    first = _only_file(filled(tmp_path, GROUPS[:1]))
    (second,) = set(filled(tmp_path, GROUPS[1:]).folder.glob("*.arrow")) - {first}
    truncate(second)
    again = ReferenceCache(tmp_path, "abc", "float32")
    assert_holds(again, GROUPS[:1])
    assert again.lookup(GROUPS[1]) is None


def test_a_file_that_is_being_written_is_not_seen(tmp_path):
    cache = filled(tmp_path)
    shutil.copy(_first(cache), cache.folder / "0123456789abcdef.tmp")
    (cache.folder / "README.md").write_text("# A data set card")
    assert len(ReferenceCache(tmp_path, "abc", "float32")) == 5


def _first(cache: ReferenceCache) -> Path:
    return sorted(cache.folder.glob("*.arrow"))[0]


# Nowhere to write


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    cache = ReferenceCache(tmp_path / "file", "abc", "float32")
    with pytest.raises(CacheError, match=r"can't be written.*ref_cache_dir") as error:
        cache.check_room(10, 1)
    assert str(tmp_path / "file") in str(error.value)


def test_a_disk_without_room(tmp_path, monkeypatch):
    cache = ReferenceCache(tmp_path, "abc", "float32")
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: usage(4 * 10**9))
    cache.check_room(999_000_000, 1000)
    with pytest.raises(CacheError, match=r"4\.00 GB, and the disk of .* has 4\.00 GB free.*ref_cache_dir"):
        cache.check_room(1_000_000_000, 1)


def test_a_disk_that_fills_up_leaves_nothing_half_written(tmp_path, monkeypatch):
    cache = filled(tmp_path, GROUPS[:1])
    write = Path.write_bytes

    def full(path: Path, contents: Any) -> int:
        write(path, bytes(contents)[:50])
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(CacheError, match="No space left"):
        cache.add(response_keys(GROUPS[1]), values_of(GROUPS[1]))
    monkeypatch.undo()
    assert {path.suffix for path in cache.folder.iterdir()} == {".arrow", ".txt"}  # nothing temporary
    assert len(list(cache.folder.iterdir())) == 2
    assert_holds(ReferenceCache(tmp_path, "abc", "float32"), GROUPS[:1])


def test_the_default_folder_lies_below_that_of_hugging_face(monkeypatch):
    monkeypatch.setattr(module, "HF_HOME", "/somewhere/hf")
    assert default_folder() == Path("/somewhere/hf/trl_dpo_ext/reference")


def test_a_folder_is_a_dataset(tmp_path):
    cache = filled(tmp_path)
    files = [str(path) for path in cache.folder.glob("*.arrow")]
    rows = datasets.load_dataset("arrow", data_files=files, split="train", cache_dir=str(tmp_path / "hf"))
    expected = {
        key: values.tolist()
        for group in GROUPS
        for key, values in zip(response_keys(group), values_of(group), strict=True)
    }
    assert {row["key"]: row["logps"] for row in rows} == expected
    for file in files:
        assert datasets.Dataset.from_file(file).column_names == ["key", "logps"]
