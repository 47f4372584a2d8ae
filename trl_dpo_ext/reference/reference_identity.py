"""The identity of a run's reference, saved with checkpoints and compared on resume."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..record import ReferenceRecord, checked, read_record, write_json

logger = logging.getLogger(__name__)

FILE = "reference.json"
KINDS = {
    "adapters_off": "the base model with its adapters off",
    "starting_adapter": "a frozen copy of the starting adapter",
    "second_model": "a second model",
    "none": "none",
}


class ReferenceMismatchError(ValueError):
    """A checkpoint that was trained against another reference."""


@dataclass(frozen=True)
class ReferenceIdentity:
    """The reference of a run.

    Attributes:
        kind: one of `KINDS`.
        description: a phrase for people that names the model.
        fingerprint: see `fingerprint`; None without a reference, or if its weights can't be read.
    """

    kind: str
    description: str
    fingerprint: str | None

    def as_dict(self) -> dict[str, Any]:
        """Return the dictionary that `from_dict` reads."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ReferenceIdentity:
        """Build it from a dictionary.

        Raises:
            ValueError: an unknown kind, or missing or unknown keys.
        """
        return cls(**checked(values, ReferenceRecord, "the reference", ValueError).model_dump())

    def __str__(self) -> str:
        if self.kind == "none":
            return self.description
        return f"{self.description} ({self.kind}, fingerprint {(self.fingerprint or 'unknown')[:12]})"

    def save(self, folder: str | Path) -> None:
        """Write `reference.json` into a checkpoint."""
        write_json(Path(folder) / FILE, self.as_dict())

    def check_checkpoint(self, folder: str | Path) -> None:
        """Refuse to resume from a checkpoint that was trained against another reference.

        A checkpoint of an earlier version, which doesn't name its reference, gives a warning.

        Raises:
            ReferenceMismatchError: the references differ, or the file can't be read.
        """
        path = Path(folder) / FILE
        if self.kind == "none":
            return
        if not path.exists():
            logger.warning(
                f"{folder} doesn't name the reference it was trained against, so it isn't checked. Now it is {self}."
            )
            return
        record = read_record(path, ReferenceRecord, ReferenceMismatchError, "Take another checkpoint.")
        saved = ReferenceIdentity(**record.model_dump())
        if saved.kind != "none" and None in (saved.fingerprint, self.fingerprint):
            logger.warning(f"The reference of {folder} ({saved}) can't be compared with this one ({self}).")
        elif saved.fingerprint != self.fingerprint:
            raise ReferenceMismatchError(
                f"{folder} was trained against another reference.\n  then: {saved}\n  now:  {self}\n"
                "Give the trainer the model, starting adapter and ref_model that the run began with, not those of the "
                "checkpoint: resume_from_checkpoint loads the trained weights over them. To train against the new "
                "reference on purpose, start a new run without resume_from_checkpoint."
            )
