"""Rows that a model can't take: token ids without an embedding, and more tokens than learned positions."""

from __future__ import annotations

from typing import Any

from datasets import IterableDataset

from ...modeling.learned_positions import learned_positions
from ..errors import ConfigError


def check_model_limits(model: Any, tokenizer: Any, datasets: dict[str, Any]) -> None:
    """Refuse tokenized rows that would fail inside the model with `index out of range`.

    Args:
        model: the policy.
        tokenizer: of the rows.
        datasets: tokenized, by name. Streamed ones are not read.

    Raises:
        ConfigError: names the dataset, the row and the limit.
    """
    weight = model.get_input_embeddings().weight
    embeddings = getattr(weight, "ds_shape", weight.shape)[0]  # ZeRO-3 keeps an empty weight between forwards
    positions = learned_positions(model)
    # Few models can meet a row that they can't take; the others needn't read their rows.
    if len(tokenizer) <= embeddings and positions is None:
        return
    for name, dataset in datasets.items():
        if dataset is None or isinstance(dataset, IterableDataset):
            continue
        for number, row in enumerate(dataset):
            where = f"{name} dataset, row {row.get('row', number)}"
            ids = [row["prompt_ids"], *row["completion_ids"]]
            if (highest := max(max(part, default=0) for part in ids)) >= embeddings:
                raise ConfigError(
                    f"{where}: token {highest} ({tokenizer.convert_ids_to_tokens(highest)!r}) has no embedding; the "
                    f"tokenizer has {len(tokenizer)} tokens, the model {embeddings} embeddings. Load the model's own "
                    f"tokenizer, or call model.resize_token_embeddings({len(tokenizer)}) and train the new rows."
                )
            longest = len(row["prompt_ids"]) + max(map(len, row["completion_ids"]))
            if positions is not None and longest > positions:
                raise ConfigError(
                    f"{where}: {longest} tokens of prompt and response, but the model has {positions} positions. Set "
                    f"max_length={positions} or less."
                )
