"""Which run a checkpoint belongs to: compared on resuming, so that no run goes on from another one's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash
from accelerate import PartialState
from accelerate.utils import gather_object

from ...data import DataError
from ..errors import CheckpointError
from .data_digest import STREAMED_ROWS, difference, row_digests
from .run_settings import RunSettings, changes

logger = logging.getLogger(__name__)

ROWS = "train_rows.npy"


class RunIdentity:
    """The settings and the training rows of a run.

    Args:
        settings: see `run_settings`.
        dataset: the tokenized training dataset.
    """

    def __init__(self, settings: RunSettings, dataset: Any) -> None:
        self.settings = settings
        self._dataset = dataset
        self._rows: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """The digests of the rows, see `row_digests`; computed when they are first asked for."""
        if self._rows is None:
            self._rows = row_digests(self._dataset)
        return self._rows

    def check_processes(self, evaluation: Mapping[str, Any]) -> None:
        """Refuse processes that hold different data: each step takes other rows of it on each.

        Args:
            evaluation: the tokenized evaluation datasets by name; all processes have the same names.

        Raises:
            DataError: on all processes.
        """
        if PartialState().num_processes == 1:
            return
        data = {"training": self.rows, **{f"{name} evaluation": row_digests(rows) for name, rows in evaluation.items()}}
        for what, rows in data.items():
            found = gather_object([(len(rows), xxhash.xxh3_64_hexdigest(rows.tobytes()))])
            if len(set(found)) > 1:
                counts = ", ".join(f"{rows} on process {rank}" for rank, (rows, _) in enumerate(found))
                raise DataError(
                    f"The processes have different {what} data (rows: {counts}). Give every process the same rows in "
                    "the same order; each step deals them out to the processes."
                )

    def save_rows(self, folder: str | Path) -> None:
        """Write the digests of the rows into a checkpoint."""
        np.save(Path(folder) / ROWS, self.rows)

    def check(self, folder: str | Path, then: RunSettings | None) -> None:
        """Refuse a checkpoint of another run.

        Args:
            folder: the checkpoint.
            then: the settings in it; None in checkpoints of earlier versions, which gives a warning.

        Raises:
            CheckpointError: names all values that differ.
        """
        if then is None:
            logger.warning(f"{folder} doesn't say which losses, settings and data it was trained with: not checked.")
            return
        found = changes(then, self.settings)
        path = Path(folder) / ROWS
        try:
            rows = np.load(path, allow_pickle=False)
            if rows.dtype != np.uint64 or rows.ndim != 1:
                raise ValueError(f"it holds {rows.dtype} {list(rows.shape)}, expected uint64 [rows]")
        except Exception as error:  # a damaged header raises whatever evaluating or allocating it raises
            raise CheckpointError(f"{path} can't be read: {error}. Take another checkpoint.") from error
        if (clause := difference(rows, self.rows)) is not None:
            part = "" if hasattr(self._dataset, "__len__") else f" (the first {STREAMED_ROWS} of the stream)"
            found.append(f"training data{part}: {clause}")
        if found:
            raise CheckpointError(
                f"{folder} belongs to another run. What differs:\n"
                + "".join(f"  {clause}\n" for clause in found)
                + "Set it as it was. Or start a new run: remove resume_from_checkpoint, and the checkpoints in "
                "output_dir are moved aside; or choose another output_dir."
            )
