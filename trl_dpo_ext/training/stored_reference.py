"""Reference log-probs that are computed once, before training, and stored for all later runs."""

from __future__ import annotations

import logging
from typing import Any

from accelerate import Accelerator
from datasets import IterableDataset

from ..reference import ReferenceIdentity
from ..reference.fill_reference_cache import Compute, Processes, all_cached, batch_difference, fill_cache
from ..reference.reference_cache import ReferenceCache, default_folder
from .errors import ConfigError

logger = logging.getLogger(__name__)


def computes_online(*datasets: Any) -> bool:
    """Return whether a streamed dataset keeps a run from storing its reference log-probs, and log it."""
    flat = [one for some in datasets for one in (some.values() if isinstance(some, dict) else [some])]
    if not any(isinstance(dataset, IterableDataset) for dataset in flat):
        return False
    logger.warning(
        "precompute_ref_log_probs=True: a streamed dataset can't be computed in advance. Its reference log-probs, and "
        "those of the run's other datasets, are computed in each step."
    )
    return True


def open_cache(identity: ReferenceIdentity, folder: str | None, dtype: str) -> ReferenceCache:
    """Open the cache of a reference.

    Args:
        identity: of the reference.
        folder: `ref_cache_dir`, or None for the default.
        dtype: precision the reference computes in, from `compute_dtype`.

    Raises:
        ConfigError: the reference has no fingerprint.
    """
    if identity.fingerprint is None:
        raise ConfigError(
            "precompute_ref_log_probs=True stores log-probs under a fingerprint of the reference, and its weights "
            "can't be read here (a warning says why). Set it to False: the log-probs are then computed in each step."
        )
    return ReferenceCache(folder or default_folder(), identity.fingerprint, dtype)


class StoredReference:
    """Fills the cache of a run's reference.

    Rows are found in the cache by their tokens, so they can be shuffled, filtered or exchanged.

    Args:
        cache: of this reference in this precision.
        dtype: the precision, from `compute_dtype`.
        compute: runs the reference on groups; only before training moves its weights.
        accelerator: of the run; all processes share the work.
        progress: show a progress bar.
    """

    def __init__(
        self, cache: ReferenceCache, dtype: str, compute: Compute, accelerator: Accelerator, progress: bool
    ) -> None:
        self.cache = cache
        self.dtype = dtype
        self._compute = compute
        self._main = accelerator.is_main_process
        self._processes = Processes(progress=progress)
        if accelerator.parallelism_config is None:  # else several processes compute one forward together
            self._processes = Processes(
                accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone, progress
            )

    def fill(self, dataset: Any, name: str, batch_size: int) -> None:
        """Store what is missing of a tokenized dataset; see `fill_cache`. A streamed one is left alone."""
        if isinstance(dataset, IterableDataset):
            return
        missing = fill_cache(
            self.cache, dataset, self._compute, name=name, batch_size=batch_size, processes=self._processes
        )
        if missing and self.dtype not in ("float32", "float64") and self._main:
            logger.warning(
                "%s dataset: the stored reference log-probs are computed in %s, where they depend on the shape of the "
                "batch, and training batches have other shapes: computed alone, the responses of the first prompt "
                "differ by up to %.2g nats. Margins carry that as noise; in float32 they don't.",
                name,
                self.dtype,
                batch_difference(self.cache, dataset, self._compute),
            )

    def holds(self, *datasets: Any) -> bool:
        """Return whether every response of these tokenized datasets is stored."""
        self.cache.refresh()
        return all(not isinstance(rows, IterableDataset) and all_cached(self.cache, rows) for rows in datasets)
