"""The record of a run: versions, hardware, time, and files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import shlex
import sys
import uuid
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from .secret_scan import redact, redact_command

T = TypeVar("T")
# Of result.json. Raised when a reader of the former format would misread a file; hub/run_folder.py refuses newer ones.
RECORD_FORMAT = 1

_PACKAGES = ("trl-dpo-ext", "torch", "trl", "transformers", "peft", "accelerate", "datasets", "bitsandbytes")

_DEEPEST = 64  # levels of lists and mappings in a record; functions that walk a record call themselves once a level


FiniteNumber = Annotated[float, Field(ge=-1e300, le=1e300)]
"""Of a record: no NaN, no infinity, and no integer that is too large for a float."""


class RecordError(ValueError):
    """A record that can't be used. The message names the file, the field, and what to do."""


class Record(BaseModel):
    """Base of the schemas that records are read with: types as written, finite numbers, unknown fields ignored."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False, extra="ignore")


class ReferenceRecord(Record):
    """What `reference.json` holds; see `reference.ReferenceIdentity`. It stands here so that a push loads no torch."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["adapters_off", "starting_adapter", "second_model", "none"]
    description: str
    fingerprint: str | None


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages a run's numbers depend on."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def hardware() -> dict[str, Any]:
    """Return what a run ran on: processor, cores used by torch, memory, GPUs."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
    }


def peak_memory() -> dict[str, float | None]:
    """Return the most memory this process has used so far, in GiB: `process` (None where it isn't known) and `gpu`."""
    import torch

    try:
        with open("/proc/self/status") as file:  # ru_maxrss would be inherited from the parent process
            (kib,) = (int(line.split()[1]) for line in file if line.startswith("VmHWM"))
        process = round(kib / 2**20, 2)
    except (OSError, ValueError):
        process = None
    gpu = round(torch.cuda.max_memory_allocated() / 2**30, 2) if torch.cuda.is_available() else 0.0
    return {"process": process, "gpu": gpu}


def launch_command() -> str:
    """Return the command line that started this run, `accelerate launch` included, without access tokens."""
    try:
        with open(f"/proc/{os.getppid()}/cmdline") as file:
            parent = file.read().rstrip("\0").split("\0")
    except OSError:
        parent = []
    launcher = next((i for i, part in enumerate(parent) if Path(part).name in ("accelerate", "torchrun")), None)
    if launcher is None:
        script = Path(sys.argv[0])
        ours = script.name == "trl-dpo-ext" or script.parts[-2:] == ("trl_dpo_ext", "__main__.py")
        parts = ["trl-dpo-ext", *sys.argv[1:]] if ours else ["python", *sys.argv]
    else:
        parts = [Path(parent[launcher]).name, *parent[launcher + 1 :]]
    return shlex.join(redact_command(parts))


def scrub(text: str, token: str | None = None) -> str:
    """Return a text without access tokens and keys: those that have the form of one, and `token`."""
    return redact(text, token)


@contextlib.contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename it to `path` at the end: a reader never finds half a file.

    After an error the temporary file is deleted and `path` stays as it was.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write JSON atomically, with sorted keys."""
    with atomic_file(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, ensure_ascii=False, sort_keys=True) + "\n")


def read_record(
    path: str | Path,
    schema: type[T],
    error: Callable[[str], Exception] = RecordError,
    advice: str = "Restore the file as it was written.",
) -> T:
    """Read a JSON file and check it. Every JSON record of the package is read here, or with the two halves below.

    Args:
        path: the file.
        schema: what it must hold: a subclass of `Record`, or a type such as `dict[str, int]`.
        error: makes the exception from a message; by default `RecordError`.
        advice: sentence that says what to do; it ends the message.

    Returns:
        The content as `schema`.

    Raises:
        FileNotFoundError: there is no such file. What that means, the caller knows.
        error: the file isn't readable, isn't JSON, or a field is missing or of another type.
    """
    return checked(read_json(path, error, advice), schema, path, error, advice)


def read_json(
    path: str | Path,
    error: Callable[[str], Exception] = RecordError,
    advice: str = "Restore the file as it was written.",
) -> Any:
    """Read a JSON file that must have no duplicate keys; see `read_record` for arguments and errors."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_unique)
        check_content(content)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as problem:
        raise error(f"{path} can't be read: {_described(problem)}. {advice}") from None
    return content


def checked(
    content: Any,
    schema: type[T],
    path: str | Path,
    error: Callable[[str], Exception] = RecordError,
    advice: str = "Restore the file as it was written.",
) -> T:
    """Return parsed content as `schema`; see `read_record` for arguments and errors.

    >>> checked({"files": {"a": "3"}}, dict[str, dict[str, int]], "x.json")
    Traceback (most recent call last):
    trl_dpo_ext.record.RecordError: x.json, files.a: '3' is not a valid integer. Restore the file as it was written.
    """
    try:
        return TypeAdapter(schema).validate_python(content, strict=True)
    except ValidationError as problem:
        first, *others = problem.errors(include_url=False)
        more = f" (and {len(others)} more)" if others else ""
        raise error(f"{path}{_fault(first)}{more}. {advice}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(name for name in names if names.count(name) > 1)!r} appears twice")
    return content


def check_content(content: Any) -> None:
    """Refuse what functions that walk, write or print a record stumble over: great depth, and half characters."""
    level = [content]
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                if odd := [key for key in value if not isinstance(key, str)]:  # as YAML may have them
                    raise ValueError(f"the key {odd[0]!r} is not text")
                inner += [*value, *value.values()]
            elif isinstance(value, list):
                inner += value
            elif isinstance(value, str) and not value.isascii():
                value.encode()  # JSON can write half of a surrogate pair, and no file or terminal takes it
        if not inner:
            return
        level = inner
    raise ValueError(f"it is nested deeper than {_DEEPEST} levels")


def _described(problem: OSError | ValueError | RecursionError) -> str:
    if isinstance(problem, OSError):
        return problem.strerror or str(problem)
    if isinstance(problem, json.JSONDecodeError):
        return f"it is not JSON (line {problem.lineno}: {problem.msg})"
    if isinstance(problem, RecursionError):
        return f"it is nested deeper than {_DEEPEST} levels"
    return "it is not UTF-8 text" if isinstance(problem, UnicodeError) else str(problem)


def _fault(found: Any) -> str:
    """Return a clause for one of pydantic's errors, with the place in front."""
    place = ".".join(map(str, found["loc"]))
    where = f", {place}" if place else ""
    if found["type"] == "missing":
        return f"{where} is missing"
    if found["type"] in ("model_type", "dict_type"):
        return f"{where}: found a {type(found['input']).__name__}, expected a mapping"
    value = repr(found["input"])
    value = value if len(value) <= 80 else f"{value[:60]}... ({len(value)} characters)"
    # pydantic's sentences begin with "Input should be", or "Value error, " where a validator of ours raised.
    expected = re.sub(r"^(Input should be|Value error,) ", "", found["msg"])
    if expected != found["msg"] and found["type"] != "value_error":
        return f"{where}: {value} is not {expected}"
    return f"{where}: {value}: {expected[0].lower()}{expected[1:]}"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return names[0] if names else platform.processor()
    except OSError:
        return platform.processor()
