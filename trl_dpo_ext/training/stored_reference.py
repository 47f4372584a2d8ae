"""Compute reference log-probs once, before training, and store them for all later runs."""

from __future__ import annotations

import logging
from typing import Any

import torch
from accelerate import Accelerator
from datasets import IterableDataset

from ..reference import ReferenceIdentity
from ..reference.fill_reference_cache import Compute, Processes, all_cached, batch_difference, fill_cache
from ..reference.reference_cache import ReferenceCache, default_folder
from .errors import CheckpointError, ConfigError
from .safety.together import raise_on_all

logger = logging.getLogger(__name__)


def computes_online(*datasets: Any) -> bool:
    """Return whether the run must compute reference log-probs in each step because a dataset is streamed; log it."""
    if not any(isinstance(dataset, IterableDataset) for dataset in datasets):
        return False
    logger.warning(
        "precompute_ref_log_probs=True, but a dataset is streamed and can't be precomputed. The reference log-probs of "
        "all datasets of this run are computed in each step instead."
    )
    return True


def open_cache(identity: ReferenceIdentity, folder: str | None, dtype: str) -> ReferenceCache:
    """Open the cache of a reference.

    Args:
        identity: identity of the reference.
        folder: `ref_cache_dir`, or None for the default.
        dtype: the precision that the reference computes in, from `compute_dtype`.

    Raises:
        ConfigError: the reference has no fingerprint.
    """
    if identity.fingerprint is None:
        raise ConfigError(
            "precompute_ref_log_probs=True stores log-probs under a fingerprint of the reference weights, which can't "
            "be read here (a warning says why). Set it to False to compute the log-probs in each step."
        )
    return ReferenceCache(folder or default_folder(), identity.fingerprint, dtype)


class StoredReference:
    """Fills the cache of a run's reference.

    The cache key is the tokens of a row, so rows can be shuffled, filtered or replaced.

    Args:
        cache: the cache of this reference in this precision.
        dtype: the precision, from `compute_dtype`.
        compute: runs the reference on groups. Valid only until training changes the reference weights.
        accelerator: the run's accelerator; all processes share the work.
        progress: show a progress bar.
        sharded: each forward pass needs all processes.
    """

    def __init__(
        self,
        cache: ReferenceCache,
        dtype: str,
        compute: Compute,
        accelerator: Accelerator,
        progress: bool,
        sharded: bool = False,
    ) -> None:
        self.cache = cache
        self.dtype = dtype
        self._compute = compute
        self._main, self._sharded = accelerator.is_main_process, sharded
        # With a parallelism config several processes share one forward pass, so each has to run them all.
        alone = accelerator.parallelism_config is not None
        index, count = (0, 1) if alone else (accelerator.process_index, accelerator.num_processes)

        def most(number: int) -> int:
            numbers = torch.tensor([number], device=accelerator.device)
            return int(accelerator.gather(numbers).max()) if sharded else number

        self._processes = Processes(index, count, accelerator.wait_for_everyone, progress, most)

    def fill(self, dataset: Any, name: str, batch_size: int) -> None:
        """Compute and store the missing log-probs of a tokenized dataset; see `fill_cache`. Skips a streamed one."""
        if isinstance(dataset, IterableDataset):
            return
        missing = fill_cache(
            self.cache, dataset, self._compute, name=name, batch_size=batch_size, processes=self._processes
        )
        if not self._processes.most(missing) or self.dtype in ("float32", "float64"):
            return
        difference = batch_difference(self.cache, dataset, self._compute) if self._main or self._sharded else 0.0
        if self._main:
            logger.warning(
                "%s dataset: the stored reference log-probs are computed in %s, so they depend on the shape of the "
                "batch, and training batches have other shapes. Computed alone, the responses of the first prompt "
                "differ by up to %.2g nats. This adds noise to the margins. Use float32 to avoid it.",
                name,
                self.dtype,
                difference,
            )

    def check_complete(self, *datasets: Any) -> None:
        """Refuse to go on without the reference where something would have to be computed. All processes call this.

        Raises:
            CheckpointError: on all processes.
        """
        failure = None
        if not self.holds(*datasets):
            failure = CheckpointError(
                f"{self.cache.folder} doesn't hold all reference log-probs of this run any more, and they can't be "
                "computed again: the weights, which were the reference, are sharded and already the checkpoint's. Set "
                "ref_cache_dir to the folder that holds them, or precompute_ref_log_probs: false."
            )
        raise_on_all(failure)

    def holds(self, *datasets: Any) -> bool:
        """Return whether the cache holds every response of these tokenized datasets."""
        self.cache.refresh()
        return all(not isinstance(rows, IterableDataset) and all_cached(self.cache, rows) for rows in datasets)
