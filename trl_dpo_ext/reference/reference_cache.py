"""Reference log-probs on disk, in Arrow files that are written once and named after their contents.

One folder holds the log-probs of one reference in one precision, with one entry per response. The key of an entry is a
hash of the prompt's token ids, the position where the response starts, and the response's token ids. Its value is one
log-prob per token of the response. Nothing else is part of the key: another loss, learning rate, order, subset or
pairing of the same responses finds them all, and other tokens or weights find none.

A file's name is the checksum of its contents, and files are written atomically. So no file is ever rewritten, processes
don't disturb each other, and a damaged file shows because its checksum no longer matches its name.

A right checksum says nothing about what was stored. So each file's values are checked when it is opened, the lengths
when they are looked up, and a few responses of a file that came from elsewhere are computed again; `checked.txt` lists
the files that were written here or have passed that.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from huggingface_hub.constants import HF_HOME

from ..modeling.layout import PromptGroup
from ..record import atomic_file

logger = logging.getLogger(__name__)

_KEY_BYTES = 16
_KEY_TYPE = f"S{_KEY_BYTES}"
_FORMAT = "1"  # of keys and values; stored in each file
_CHECKED = "checked.txt"
_LARGEST = 1e-3  # a log-prob is at most 0; rounding may add a little
_SCHEMA = pa.schema([("key", pa.binary()), ("logps", pa.list_(pa.float32()))])


class CacheError(OSError):
    """A cache folder that can't be written, whose disk is too full, or that holds wrong log-probs."""


def default_folder() -> Path:
    """Return the default folder of all caches, below the Hugging Face cache home (`HF_HOME`)."""
    return Path(HF_HOME) / "trl_dpo_ext" / "reference"


def response_keys(group: PromptGroup) -> list[bytes]:
    """Return the key of each response: a 128-bit hash of the prompt's length, its ids, and the response's ids.

    >>> a, b = response_keys(PromptGroup([5, 6], [[7, 8], [9]]))
    >>> len(a), a == b, a == response_keys(PromptGroup([5, 6], [[7, 8]]))[0]
    (16, False, True)
    >>> a == response_keys(PromptGroup([5, 6, 7], [[8]]))[0]  # same tokens, split elsewhere
    False
    """
    prompt = np.array([len(group.prompt_ids), *group.prompt_ids], "<i4")
    start = hashlib.blake2b(prompt.tobytes(), digest_size=_KEY_BYTES)
    keys = []
    for ids in group.completion_ids:
        whole = start.copy()
        whole.update(np.array(ids, "<i4").tobytes())
        keys.append(whole.digest())
    return keys


@dataclass(frozen=True)
class _Shard:
    """One memory-mapped file: keys [N]; the log-probs of entry i are values[offsets[i] : offsets[i + 1]]."""

    keys: np.ndarray
    offsets: np.ndarray
    values: np.ndarray


class ReferenceCache:
    """The stored log-probs of one reference in one precision.

    Values stay on disk (memory-mapped); memory holds 28 bytes per response. A pickled cache, as dataloader workers get
    it, carries the names of its files and maps them again.

    Args:
        root: folder of all caches.
        fingerprint: identifies the reference's weights.
        dtype: the precision it computes in, see `compute_dtype`.
    """

    def __init__(self, root: str | Path, fingerprint: str, dtype: str) -> None:
        self.folder = Path(root).expanduser() / f"{fingerprint}-{dtype}"
        self.dtype = dtype
        self._metadata = {"format": _FORMAT, "fingerprint": fingerprint, "dtype": dtype}
        self._shards: dict[str, _Shard] = {}
        self._refused: dict[str, tuple[int, ...]] = {}
        self.refresh()

    def __len__(self) -> int:
        return len(self._keys)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "folder": self.folder,
            "dtype": self.dtype,
            "_metadata": self._metadata,
            "_refused": self._refused,
            "_shards": [*self._shards],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        # Each file was checked when first opened.
        self._shards = {name: _open(self.folder / name, self._metadata, check=False) for name in state["_shards"]}
        self._build_index()

    @property
    def files(self) -> list[str]:
        """Names of the files in use, all undamaged."""
        return sorted(self._shards)

    def refresh(self) -> None:
        """Open files that are new, and warn of those that can't be used; their entries count as missing."""
        # Older files come first, so a resumed run reads the same values as before.
        for path, stamp in sorted(_files(self.folder).items(), key=lambda item: (item[1], item[0])):
            if path.name in self._shards or self._refused.get(path.name) == stamp:
                continue
            try:
                self._shards[path.name] = _open(path, self._metadata)
            except (OSError, ValueError, pa.ArrowException) as error:
                self._refused[path.name] = stamp
                logger.warning(
                    "%s in the reference cache can't be used (%s). Its log-probs are computed again; delete the file.",
                    path,
                    error,
                )
        self._build_index()

    def _build_index(self) -> None:
        keys = [shard.keys for shard in self._shards.values()] or [np.empty(0, _KEY_TYPE)]
        self._starts = np.cumsum([0, *map(len, keys)])
        together = np.concatenate(keys)
        self._order = np.argsort(together, kind="stable")  # of equal keys, the one of the earliest file comes first
        self._keys = together[self._order]
        lengths = [np.diff(shard.offsets) for shard in self._shards.values()] or [np.empty(0, np.int32)]
        self._lengths = np.concatenate(lengths)[self._order]
        self._opened = list(self._shards.values())

    def _find(self, keys: Sequence[bytes]) -> tuple[np.ndarray, np.ndarray]:
        """Return for each key whether it is stored, and its position in the index."""
        wanted = np.array(keys, _KEY_TYPE)
        if not len(self._keys):
            return np.zeros(len(wanted), bool), np.zeros(len(wanted), np.int64)
        places = np.searchsorted(self._keys, wanted).clip(max=len(self._keys) - 1)
        return self._keys[places] == wanted, places

    def found(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return a bool for each key: whether its log-probs are stored."""
        return self._find(keys)[0]

    def lookup(self, group: PromptGroup) -> list[np.ndarray] | None:
        """Return the log-probs of a group's K responses, one float32 array each; None unless all are stored."""
        found, places = self._find(response_keys(group))
        if not found.all():
            return None
        values = []
        for entry in self._order[places]:
            number = int(np.searchsorted(self._starts, entry, side="right")) - 1
            shard, i = self._opened[number], entry - self._starts[number]
            values.append(shard.values[shard.offsets[i] : shard.offsets[i + 1]])
        for number, (ids, logps) in enumerate(zip(group.completion_ids, values, strict=True)):
            if len(ids) != len(logps):
                path = self.file_of(response_keys(group))[number]
                raise CacheError(
                    f"{path} holds {len(logps)} log-probs for a response of {len(ids)} tokens. {delete_advice([path])}"
                )
        return values

    def lengths(self, keys: Sequence[bytes]) -> np.ndarray:
        """Return for each of these keys, all stored, the number of its log-probs."""
        _, places = self._find(keys)
        return self._lengths[places]

    def file_of(self, keys: Sequence[bytes]) -> list[Path]:
        """Return for each of these keys, all stored, the file that its log-probs are read from."""
        _, places = self._find(keys)
        numbers = np.searchsorted(self._starts, self._order[places], side="right") - 1
        names = list(self._shards)
        return [self.folder / names[number] for number in numbers]

    def entries(self, path: Path) -> int:
        """Return the number of responses in one of the files."""
        return len(self._shards[path.name].keys)

    def unchecked(self) -> set[Path]:
        """Return the files that came from elsewhere and whose values haven't been compared with the reference's."""
        try:
            known = set((self.folder / _CHECKED).read_text(encoding="utf-8").split())
        except (OSError, UnicodeDecodeError):
            known = set()
        return {self.folder / name for name in self._shards if name not in known}

    def mark_checked(self, path: Path) -> None:
        """Note that a file's values are the reference's; later runs then don't compare them again."""
        with (self.folder / _CHECKED).open("a", encoding="utf-8") as file:
            file.write(f"{path.name}\n")

    def check_room(self, tokens: int, responses: int) -> None:
        """Create the folder, and check that it is writable and its disk has room for so many log-probs.

        Raises:
            CacheError: it isn't, or the disk is too full.
        """
        size = 4 * tokens + 2 * _KEY_BYTES * responses
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder):
                free = shutil.disk_usage(self.folder).free
        except OSError as error:
            raise self._unwritable(error) from error
        if free < size:
            raise CacheError(
                f"The reference log-probs need about {size / 1e9:.2f} GB, and the disk of {self.folder} has "
                f"{free / 1e9:.2f} GB free. Free some space, or set ref_cache_dir to a folder on another disk."
            )

    def add(self, keys: Sequence[bytes], values: Sequence[np.ndarray]) -> None:
        """Write a file with these entries. They are readable after the next `refresh`.

        Args:
            keys: N keys from `response_keys`.
            values: N float32 arrays, one log-prob for each token of the response.

        Raises:
            CacheError: the disk is full, or the folder is gone.
        """
        offsets = np.cumsum([0, *map(len, values)], dtype=np.int32)
        columns = [
            pa.array(keys, pa.binary()),
            pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.concatenate(values), pa.float32())),
        ]
        table = pa.table(columns, names=["key", "logps"], metadata=self._metadata)
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        contents = sink.getvalue()
        path = self.folder / f"{_checksum(contents)}.arrow"
        try:
            self.mark_checked(path)  # first: a run that is killed in between leaves a name without a file, no more
            with atomic_file(path) as temporary:
                temporary.write_bytes(contents)
        except OSError as error:
            raise self._unwritable(error) from error

    def _unwritable(self, error: OSError) -> CacheError:
        return CacheError(
            f"The reference cache can't be written: {error}. Free space on its disk, or set ref_cache_dir to a "
            f"writable folder (now: {self.folder})."
        )


def not_log_probs(values: np.ndarray) -> np.ndarray:
    """Return the values that no log-prob can have: NaN, infinities, and what is above 0 by more than rounding."""
    return values[~((values <= _LARGEST) & (values > -np.inf))]  # NaN is neither


def delete_advice(paths: Sequence[Path]) -> str:
    """Return what to do about files with wrong log-probs."""
    what = "that file; its" if len(paths) == 1 else "those files; their"
    return f"The cache is wrong, not your rows. Delete {what} log-probs are then computed again."


def _files(folder: Path) -> dict[Path, tuple[int, ...]]:
    """Return the folder's Arrow files, each with a stamp that changes when the file is replaced."""
    found: dict[Path, tuple[int, ...]] = {}
    for path in folder.glob("*.arrow"):
        try:
            stat = path.lstat()
        except FileNotFoundError:  # deleted meanwhile
            continue
        found[path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found


def _checksum(contents: Any) -> str:
    return hashlib.blake2b(contents, digest_size=16).hexdigest()


def _open(path: Path, metadata: dict[str, str], *, check: bool = True) -> _Shard:
    """Map a file.

    Raises:
        OSError, ValueError, pa.ArrowException: the file is damaged, unreadable, not a cache file, or of another
            reference.
    """
    with pa.memory_map(str(path)) as source:
        buffer = source.read_buffer()  # keeps the mapping, without an open file for each
    if check and _checksum(buffer) != path.stem:
        raise ValueError("its name isn't the checksum of its contents: it is damaged, or no cache file")
    table = pa.ipc.open_stream(buffer).read_all()
    found = {name.decode(): value.decode() for name, value in (table.schema.metadata or {}).items()}
    if found != metadata:
        raise ValueError(f"it belongs to {found}, not to {metadata}")
    if not table.schema.equals(_SCHEMA):
        raise ValueError(f"it has the columns {', '.join(map(str, table.schema))}, not those of a cache file")
    if [table[name].num_chunks for name in table.column_names] != [1, 1]:
        raise ValueError("its rows are not in one piece")
    (keys,), (logps,) = table["key"].chunks, table["logps"].chunks
    if check:
        _check_values(table, keys, logps)
    return _Shard(
        keys=np.frombuffer(keys.buffers()[2], _KEY_TYPE, count=len(keys)),
        offsets=logps.offsets.to_numpy(),
        values=logps.values.to_numpy(),
    )


def _check_values(table: pa.Table, keys: pa.BinaryArray, logps: pa.ListArray) -> None:
    """Refuse a file whose arrays aren't keys and log-probs, whatever its checksum says."""
    table.validate(full=True)
    if keys.null_count or logps.null_count or logps.values.null_count:
        raise ValueError("it has empty cells")
    sizes = np.diff(np.frombuffer(keys.buffers()[1], np.int32, count=len(keys) + 1))
    if keys.offset or logps.offset or (sizes != _KEY_BYTES).any():
        raise ValueError(f"its keys don't have {_KEY_BYTES} bytes each")
    bad = not_log_probs(logps.values.to_numpy())
    if len(bad):
        raise ValueError(f"it holds {bad[0]:g} as a log-prob, and {len(bad)} such values in all")
