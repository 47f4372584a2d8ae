"""Weights for the undesirable responses of `bco_unpaired`, where they have other prompts than the desirable ones.

Binary Classifier Optimization (arXiv 2404.04656) weights them by the ratio of the two densities of prompts, estimated
by a logistic regression on embeddings of the prompts. The embedding is the reference's mean last hidden state.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, tqdm
from datasets import Dataset, Value
from torch.nn import functional as F

from ..data import DataError
from ..record import write_json

logger = logging.getLogger(__name__)

FILE = "density_ratio.json"
SMALLEST, LARGEST = 0.5, 10.0  # of the ratio, as in TRL's BCO trainer
_TOKENS = 8192  # in a forward pass


@dataclass(frozen=True)
class DensityRatio:
    """A fitted logistic regression on standardized embeddings.

    Attributes:
        mean, scale: [H] of the embeddings.
        weight: [H].
        bias: a number.
    """

    mean: np.ndarray
    scale: np.ndarray
    weight: np.ndarray
    bias: float

    def logits(self, embeddings: np.ndarray) -> np.ndarray:
        """Return [N] log of the density ratio, desirable to undesirable, of [N, H] embeddings."""
        logits: np.ndarray = (embeddings - self.mean) / self.scale @ self.weight + self.bias
        return logits

    def ratios(self, embeddings: np.ndarray) -> np.ndarray:
        """Return [N] density ratios, cut to 0.5 and 10."""
        with np.errstate(over="ignore"):
            return np.exp(self.logits(embeddings)).clip(SMALLEST, LARGEST)

    def save(self, folder: str | Path) -> None:
        """Write the regression into a folder."""
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "scale", "weight")}
        write_json(Path(folder) / FILE, {**arrays, "bias": self.bias, "smallest": SMALLEST, "largest": LARGEST})


def fit(embeddings: np.ndarray, desirable: np.ndarray) -> DensityRatio:
    """Fit the logistic regression that tells the prompts of desirable responses from those of undesirable ones.

    Both classes have the same total weight, so the odds are the ratio of the densities. The penalty is |weight|^2 / 2
    on standardized embeddings.

    Args:
        embeddings: [N, H] float64.
        desirable: [N] bool; a prompt with responses of both kinds occurs twice.
    """
    mean, scale = embeddings.mean(axis=0), embeddings.std(axis=0)
    scale[scale == 0] = 1
    x, y = torch.from_numpy((embeddings - mean) / scale), torch.from_numpy(desirable).double()
    balance = torch.where(y > 0, len(y) / (2 * y.sum()), len(y) / (2 * (1 - y).sum()))
    parameters = torch.zeros(x.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        logits = x @ parameters[:-1] + parameters[-1]
        value = F.binary_cross_entropy_with_logits(logits, y, balance, reduction="sum")
        value = value + parameters[:-1].square().sum() / 2
        value.backward()
        return value

    optimizer.step(loss)
    found = parameters.detach().numpy()
    return DensityRatio(mean, scale, found[:-1].copy(), float(found[-1]))


@torch.no_grad()
def embeddings_of(model: Any, prompts: Sequence[Sequence[int]], accelerator: Accelerator, progress: bool) -> np.ndarray:
    """Return the mean last hidden state of each prompt, [N, H] float64. All processes share the work.

    Args:
        model: the reference, as it is run.
        prompts: N lists of token ids.
        accelerator: of the run.
        progress: show a progress bar.
    """
    body = (model.get_base_model() if hasattr(model, "get_base_model") else model).base_model
    longest_first = sorted(range(len(prompts)), key=lambda number: -len(prompts[number]))
    size = max(1, _TOKENS // len(prompts[longest_first[0]]))
    batches = [longest_first[start : start + size] for start in range(0, len(prompts), size)]
    mine = batches[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, np.ndarray]] = []
    for batch in tqdm(mine, desc="Embedding prompts", disable=not progress):
        width = max(len(prompts[number]) for number in batch)
        rows = [[*prompts[number], *[0] * (width - len(prompts[number]))] for number in batch]
        lengths = torch.tensor([len(prompts[number]) for number in batch], device=accelerator.device)
        ids = torch.tensor(rows, device=accelerator.device)
        mask = torch.arange(width, device=accelerator.device) < lengths[:, None]
        hidden = body(input_ids=ids, attention_mask=mask.long(), use_cache=False).last_hidden_state.double()
        means = (hidden * mask[..., None]).sum(dim=1) / lengths[:, None]
        found += zip(batch, means.cpu().numpy(), strict=True)
    return np.stack([row for _, row in sorted(gather_object(found), key=lambda item: item[0])])


def fit_to_rows(model: Any, rows: Dataset, accelerator: Accelerator, progress: bool) -> DensityRatio:
    """Fit the regression to the prompts of tokenized rows with labels.

    Raises:
        DataError: all labelled responses are desirable, or all are not.
    """
    prompts: list[list[int]] = []
    desirable: list[bool] = []
    for row in rows.select_columns(["prompt_ids", "labels"]):
        for kind in {label for label in row["labels"] or [] if label is not None}:
            prompts.append(row["prompt_ids"])
            desirable.append(bool(kind))
    if len(set(desirable)) < 2:
        raise DataError(
            "train dataset: match_prompts compares the prompts of desirable responses with those of undesirable ones, "
            f"and all {len(desirable)} labelled prompts have the same kind. Set match_prompts: false."
        )
    embeddings = embeddings_of(model, prompts, accelerator, progress)
    ratio = fit(embeddings, np.array(desirable))
    right = ((ratio.logits(embeddings) > 0) == np.array(desirable)).mean()
    weights = ratio.ratios(embeddings)[~np.array(desirable)]
    logger.info(
        f"match_prompts: the prompts tell {right:.0%} of {len(prompts)} desirable and undesirable responses apart. The "
        f"weights of the undesirable ones are {weights.min():.2f} to {weights.max():.2f}, {weights.mean():.2f} on "
        "average."
    )
    return ratio


def with_weights(rows: Dataset, ratio: DensityRatio, model: Any, accelerator: Accelerator, progress: bool) -> Dataset:
    """Return tokenized rows with the density ratio of each row's prompt in `weight`, where it has no value yet."""
    weights = ratio.ratios(embeddings_of(model, rows["prompt_ids"], accelerator, progress)).tolist()
    if "weight" in rows.column_names:
        weights = [new if own is None else own for own, new in zip(rows["weight"], weights, strict=True)]
        rows = rows.remove_columns("weight")
    return rows.add_column("weight", weights, feature=Value("float64"))
