"""Precomputed reference log-probs: what stands between the trainer and the reference cache."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from datasets import IterableDataset

from ..data.collator import PreferenceCollator
from ..modeling.layout import PromptGroup
from ..reference.fill_reference_cache import Processes, all_cached, batch_difference, compute_dtype, fill_cache
from ..reference.reference_cache import ReferenceCache, default_folder
from .errors import ConfigError

if TYPE_CHECKING:
    from .engine import PreferenceTrainer

logger = logging.getLogger(__name__)


def computes_online(*datasets: Any) -> bool:
    """Say, and log, whether a streamed dataset keeps a run from storing its reference log-probs."""
    flat = [one for some in datasets for one in (some.values() if isinstance(some, dict) else [some])]
    if not any(isinstance(dataset, IterableDataset) for dataset in flat):
        return False
    logger.warning(
        "precompute_ref_log_probs=True: a streamed dataset can't be computed ahead, so its reference log-probs, and "
        "those of the run's other datasets, are computed online."
    )
    return True


class StoredReference:
    """The stored log-probs of a trainer's reference.

    Made before training moves weights: reference and precision are settled here, once. From then on the trainer's
    collator finds the values of a batch by its tokens, so rows can be shuffled, filtered or exchanged.

    Args:
        trainer: whose reference can be run now.

    Raises:
        ConfigError: the weights of the reference can't be read.
    """

    def __init__(self, trainer: PreferenceTrainer) -> None:
        self.trainer = trainer
        with trainer.reference() as reference, trainer.accelerator.autocast():
            self.dtype = compute_dtype(reference)
        weights = trainer.reference_identity.fingerprint
        if weights is None:
            raise ConfigError(
                "precompute_ref_log_probs=True stores log-probs under a fingerprint of the reference, and its weights "
                "can't be read here (a warning says why). Set it False: the log-probs are then computed online."
            )
        self.cache = ReferenceCache(trainer.args.ref_cache_dir or default_folder(), weights, self.dtype)
        cast(PreferenceCollator, trainer.data_collator).reference = self.cache.lookup

    def fill(self, dataset: Any, name: str, batch_size: int) -> None:
        """Store what is missing of a dataset; see `fill_cache`."""
        accelerator = self.trainer.accelerator
        progress = not self.trainer.args.disable_tqdm
        processes = Processes(progress=progress)
        if accelerator.parallelism_config is None:  # else several processes compute one forward together
            processes = Processes(
                accelerator.process_index, accelerator.num_processes, accelerator.wait_for_everyone, progress
            )
        missing = fill_cache(self.cache, dataset, self.compute, name=name, batch_size=batch_size, processes=processes)
        if missing and self.dtype not in ("float32", "float64") and self.trainer.is_world_process_zero():
            logger.warning(
                "%s dataset: the stored reference log-probs are computed in %s, where they depend on the shape of the "
                "batch, and training batches have other shapes: computed alone, the responses of the first prompt "
                "differ by up to %.2g nats. Margins carry that as noise; in float32 they don't.",
                name,
                self.dtype,
                batch_difference(self.cache, dataset, self.compute),
            )

    def holds(self, *datasets: Any) -> bool:
        """Say whether everything about these tokenized datasets is stored."""
        self.cache.refresh()
        return all(not isinstance(rows, IterableDataset) and all_cached(self.cache, rows) for rows in datasets)

    def compute(self, groups: Sequence[PromptGroup]) -> list[list[np.ndarray]]:
        """Run the reference on B groups; return for each its K float32 arrays of a log-prob per token."""
        trainer = self.trainer
        rows = [{**vars(group), "ranks": [0] * len(group.completion_ids)} for group in groups]
        layout = cast(PreferenceCollator, trainer.data_collator).layout
        batch = trainer._prepare_inputs(PreferenceCollator(layout)(rows))
        with trainer.reference() as reference, trainer.accelerator.autocast():
            values = trainer._token_logps(trainer._forward(reference, trainer._model_inputs(batch)), batch)
        by_group = zip(values.cpu().numpy(), groups, strict=True)
        return [[row[k, : len(ids)] for k, ids in enumerate(group.completion_ids)] for row, group in by_group]
