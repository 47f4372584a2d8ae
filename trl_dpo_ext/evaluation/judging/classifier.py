"""Rewards from sequence classification models: classifiers and reward models, by Hub id or folder."""

from __future__ import annotations

from typing import Any

import torch

from ...data.prompts import one_bos
from .contracts import Reward, RewardError

POSITIVE = "POSITIVE"


def classifier(model: str, *, label: str | None = None, batch_size: int = 32) -> Reward:
    """Return a reward that scores prompt + completion with a sequence classification model.

    If the model has one output, it is a reward model and the reward is that output, unchanged. If it has several
    labels, the reward is the probability of one of them, in [0, 1]: POSITIVE by default, as in the DPO paper
    (arXiv 2305.18290, section 6.1 and appendix C.1, with "siebert/sentiment-roberta-large-english").

    The model sees the plain text: a reward model trained on chats needs prompts in its own chat format. Texts that are
    too long for the model lose their beginning, never the completion.

    Args:
        model: Hub id or folder. It is loaded immediately, on the GPU if there is one.
        label: one of the model's labels, in upper or lower case.
        batch_size: texts per forward pass.

    Returns:
        the reward.

    Raises:
        RewardError: the model can't be loaded, has no trained classification head, or lacks the label.
    """
    tokenizer, network = _load(model)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    network.config.pad_token_id = tokenizer.pad_token_id
    column = _column(model, network.config, label)
    limit = min(tokenizer.model_max_length, getattr(network.config, "max_position_embeddings", 10**9))

    def score(texts: list[str]) -> list[float]:
        # A chat template has already written the BOS into its prompts.
        rows = [one_bos(ids, tokenizer) for ids in tokenizer(texts, truncation=True, max_length=limit)["input_ids"]]
        batch = tokenizer.pad({"input_ids": rows}, return_tensors="pt").to(network.device)
        with torch.no_grad():
            logits = network(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits.float()
        values = logits[:, 0] if column is None else logits.softmax(dim=-1)[:, column]
        scores: list[float] = values.tolist()
        return scores

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        # Similar lengths share a batch, which keeps padding small.
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))
        values = [0.0] * len(texts)
        for start in range(0, len(order), batch_size):
            rows = order[start : start + batch_size]
            for row, value in zip(rows, score([texts[row] for row in rows]), strict=True):
                values[row] = value
        return values

    return reward


def _load(model: str) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, truncation_side="left")
        network, found = AutoModelForSequenceClassification.from_pretrained(model, output_loading_info=True)
    except (OSError, ValueError, KeyError) as error:
        raise RewardError(f"The reward model {model!r} can't be loaded: {error}") from error
    if missing := sorted(found["missing_keys"]):
        raise RewardError(
            f"{model!r} is not a reward model: it has no trained weights for {', '.join(missing)}, so its rewards "
            "would be random. Use a sequence classification model."
        )
    return tokenizer, network.eval().to("cuda" if torch.cuda.is_available() else "cpu")


def _column(model: str, config: Any, label: str | None) -> int | None:
    """Return the index of the output to use, or None for a model with a single output."""
    if config.num_labels == 1 and label is None:
        return None
    labels = {str(name).upper(): int(index) for index, name in config.id2label.items()}
    wanted = (label or POSITIVE).upper()
    if wanted not in labels:
        raise RewardError(
            f"The reward model {model!r} has no label {wanted!r}, only {', '.join(config.id2label.values())}. To "
            "choose a label, write a reward of your own (package.module:function) that calls "
            "trl_dpo_ext.evaluation.classifier(model, label=...)."
        )
    return labels[wanted]
