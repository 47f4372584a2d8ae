"""Checks files before their readers see them: some end the process instead of raising, some are silently misread."""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

# Arrow's reader (26.0) ends the process with a segmentation fault at a block that begins with `null`, and at objects
# that are nested some ten thousand levels deep. Blocks begin at any line.
MOST_LEVELS = 100
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"')
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_OTHER = re.compile(rb"[^\[\]{}]+")


def unsafe_json(file: Path) -> str | None:
    """Return why a .json, .jsonl or .gz file can't be handed to Arrow, or None.

    It reads every line, but parses few: most faults are left to the reader, whose errors
    `trl_dpo_ext.data.loading.broken_files` explains. Half of a character pair isn't always an error of the reader.
    """
    with _open(file) as content:
        found_row = False
        for number, line in _lines(content):
            if not found_row and line.startswith(b"["):
                return _unsafe_array(line + b"\n" + content.read())
            found_row = True
            if fault := _unsafe_line(line):
                return f"line {number}: {fault}"
    return None if found_row else "it holds no row."


def csv_header(file: Path) -> list[str]:
    """Return the names of a .csv or .gz file's columns; none where the reader will raise."""
    with _open(file) as content, io.TextIOWrapper(content, encoding="utf-8-sig", errors="replace", newline="") as text:
        try:
            return next(csv.reader(text), [])
        except csv.Error:
            return []


def repeated_column(file: Path) -> str | None:
    """Return why a .csv or .gz file's columns can't be told apart, or None: pandas renames the second of two."""
    header = csv_header(file)
    repeated = next((name for name in header if header.count(name) > 1), None)
    return None if repeated is None else f"line 1: the column {repeated!r} occurs twice."


def _open(file: Path) -> IO[bytes]:
    return cast(IO[bytes], gzip.open(file) if file.suffix == ".gz" else file.open("rb"))


def _lines(content: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    number = 0
    for part in content:
        for line in part.splitlines():  # Arrow takes a lone carriage return for a line's end too
            number += 1
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if stripped := line.strip():
                yield number, stripped


def _unsafe_line(line: bytes) -> str | None:
    if not (line.startswith(b"{") and line.endswith(b"}")):
        held = line[:40].decode(errors="backslashreplace")
        return f"it holds {held!r}, expected a row as a JSON object."
    if line.count(b"{") + line.count(b"[") > MOST_LEVELS and _levels(line) > MOST_LEVELS:
        return f"it is nested more than {MOST_LEVELS} levels deep."
    return half_a_character(line) if _SURROGATE.search(line) else None


def half_a_character(line: bytes) -> str | None:
    """Return which half of a character pair a JSON text holds without its other half, or None."""
    try:
        json.dumps(json.loads(line), ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"it holds \\u{ord(error.object[error.start]):04x}, half of a character pair (a lone surrogate)."
    except (ValueError, RecursionError):
        return None  # the reader raises
    return None


def _levels(line: bytes) -> int:
    """Return how deeply objects and lists of a line are nested."""
    level = most = 0
    for bracket in _OTHER.sub(b"", _STRING.sub(b"", line)):
        level += 1 if bracket in b"[{" else -1
        most = max(most, level)
    return most


def _unsafe_array(content: bytes) -> str | None:
    # `datasets` parses a JSON array itself, and hands its elements to Arrow, a line each.
    if b"null" not in content:
        return None
    try:
        rows = json.loads(content)
    except (ValueError, RecursionError):
        return None  # the reader raises
    if isinstance(rows, list) and None in rows:
        return f"row {rows.index(None)}: it holds null, expected a JSON object with the columns of a row."
    return None
