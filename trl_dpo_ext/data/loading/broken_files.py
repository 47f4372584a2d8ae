"""Why data files can't be read: which file, which line. It runs after reading has failed, so it may be slow."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import pyarrow
import pyarrow.parquet

from ..data_error import DataError


def why_unreadable(files: Sequence[Path], error: BaseException) -> str:
    """Return a sentence that names the first broken file, and its line where there is one.

    Args:
        files: .json, .jsonl, .csv or .parquet files, which may also end in .gz.
        error: what reading them raised; the sentence quotes it if no broken file is found.
    """
    for file in files:
        if fault := _fault(file):
            return f"{file}, {fault}" if fault.startswith("line") else f"{file}: {fault}"
    if isinstance(error, DataError):  # it names the file itself
        return str(error)
    message = " ".join(str(error.__cause__ or error).split())
    if "corresponds to no data" in message:  # what `datasets` says of a split without rows
        message = "there is no row in it."
    return f"{', '.join(map(str, files))}: {message or type(error).__name__}"


def _fault(file: Path) -> str | None:
    try:
        if file.stat().st_size == 0:
            return "the file is empty."
        if ".parquet" in file.suffixes:
            return _parquet_fault(file)
        with cast(IO[bytes], gzip.open(file) if file.suffix == ".gz" else file.open("rb")) as content:
            return _text_fault(content, file.suffixes)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        return f"the compressed file is damaged or cut off ({error})."
    except OSError as error:
        return f"it can't be opened ({error.strerror or error})."


def _parquet_fault(file: Path) -> str | None:
    try:
        pyarrow.parquet.read_table(file).validate(full=True)
    except pyarrow.ArrowException as error:
        return f"not a Parquet file, or a damaged one ({error})."
    return None


def _text_fault(content: IO[bytes], suffixes: list[str]) -> str | None:
    if ".csv" in suffixes:
        return _csv_fault(content)
    first = content.read(1)
    content.seek(0)
    if first == b"[":
        return _json_array_fault(content.read())
    for number, line in enumerate(content, 1):
        if fault := _utf8_fault(line) or _json_line_fault(line.decode("utf-8-sig")):
            return f"line {number}: {fault}"
    return None


def _utf8_fault(line: bytes) -> str | None:
    if line.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "the file is UTF-16, expected UTF-8. Convert it, for example with `iconv -f UTF-16 -t UTF-8`."
    try:
        line.decode()
    except UnicodeDecodeError as error:
        return (
            f"byte 0x{line[error.start]:02x} at position {error.start} isn't UTF-8. Convert the file, for example with "
            "`iconv -f WINDOWS-1252 -t UTF-8`."
        )
    return None


def _json_line_fault(line: str) -> str | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        return f"not JSON ({error.msg} at character {error.pos}); each line must hold one row as a JSON object."
    except RecursionError:
        return "it is nested too deeply."
    return _row_fault(row)


def _row_fault(row: object) -> str | None:
    if not isinstance(row, dict):
        return f"it holds {json.dumps(row)[:60]}, expected a JSON object with the columns of a row."
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        return f"it holds \\u{ord(error.object[error.start]):04x}, half of a character pair (a lone surrogate)."
    return None


def _json_array_fault(content: bytes) -> str | None:
    for number, line in enumerate(content.splitlines(), 1):
        if fault := _utf8_fault(line):
            return f"line {number}: {fault}"
    try:
        rows = json.loads(content)
    except json.JSONDecodeError as error:
        return f"line {error.lineno}: not JSON ({error.msg} at character {error.colno - 1} of the line)."
    except RecursionError:
        return "it is nested too deeply."
    return next((f"row {i}: {fault}" for i, row in enumerate(rows) if (fault := _row_fault(row))), None)


def _csv_fault(content: IO[bytes]) -> str | None:
    lines = list(content)
    for number, line in enumerate(lines, 1):
        if fault := _utf8_fault(line):
            return f"line {number}: {fault}"
    reader = csv.reader(_text(lines))
    try:
        header = next(reader, [])
        for fields in reader:
            if len(fields) > len(header):
                return (
                    f"line {reader.line_num}: {len(fields)} fields, but the header has {len(header)}; quote text that "
                    "contains commas or line breaks."
                )
    except csv.Error as error:
        return f"line {reader.line_num}: {error}."
    return None


def _text(lines: list[bytes]) -> Iterator[str]:
    return (line.decode("utf-8-sig") for line in lines)
