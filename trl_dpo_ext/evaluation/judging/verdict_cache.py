"""An endpoint's answers on disk, so that nothing is paid for twice, even after a crash."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

from .contracts import EndpointError


class VerdictCache:
    """A JSONL file with one answer per line. Each line is on the disk before the next question is asked.

    Use it as a context manager. While it is open, no other process can open it. A half-written last line, left by a
    machine that crashed, is removed.

    Args:
        path: the file; it is created if it doesn't exist.

    Raises:
        EndpointError: another process has the file open, its folder doesn't exist, or a line is not an answer. The
            message names the line.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._answers: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> VerdictCache:
        try:
            self._file = open(self.path, "a+b")
        except OSError as error:
            raise EndpointError(f"The verdict cache {str(self.path)!r} can't be opened: {error.strerror}.") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read()
        except BlockingIOError:
            self._file.close()
            raise EndpointError(f"The verdict cache {str(self.path)!r} is in use by another process.") from None
        except EndpointError:
            self._file.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def answers(self, key: str) -> list[str]:
        """Return all answers to a question, oldest first."""
        with self._lock:
            return list(self._answers.get(key, []))

    def add(self, key: str, answer: str, **facts: Any) -> None:
        """Write an answer to the disk, with further facts for people who read the file."""
        line = json.dumps({"key": key, "answer": answer, **facts}, ensure_ascii=False) + "\n"
        with self._lock:
            self._file.write(line.encode("utf-8", "backslashreplace"))
            self._file.flush()
            os.fsync(self._file.fileno())
            self._answers.setdefault(key, []).append(answer)

    def _read(self) -> None:
        self._file.seek(0)
        content = self._file.read()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            self._file.truncate(len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                row = json.loads(line)
                self._answers.setdefault(str(row["key"]), []).append(str(row["answer"]))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise EndpointError(
                    f"{self.path}, line {number} is not an answer of an endpoint. Correct or remove that line, or "
                    "use another cache file."
                ) from None
