"""The true reward of the controlled sentiment experiment: how sure a classifier is that a text is positive.

A recipe names it with `reward: recipes.sentiment:positive`, started from the repository's root.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

MODEL = "siebert/sentiment-roberta-large-english"  # the classifier of arXiv 2305.18290, appendix C.1
BATCH_SIZE = 64


@cache
def classifier(model: str) -> tuple[Any, Any]:
    """Return tokenizer and model, on the GPU where there is one."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    loaded = AutoModelForSequenceClassification.from_pretrained(model).eval()
    return AutoTokenizer.from_pretrained(model), loaded.to("cuda" if torch.cuda.is_available() else "cpu")


@torch.no_grad()
def positive(prompts: list[str], completions: list[str]) -> list[float]:
    """Return the probability of the class POSITIVE of each prompt + completion, in [0, 1]."""
    tokenizer, model = classifier(MODEL)
    label = {name.upper(): index for index, name in model.config.id2label.items()}["POSITIVE"]
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    scores: list[float] = []
    for start in range(0, len(texts), BATCH_SIZE):
        batch = tokenizer(texts[start : start + BATCH_SIZE], padding=True, truncation=True, return_tensors="pt")
        logits = model(**batch.to(model.device)).logits.float()
        scores += logits.softmax(dim=-1)[:, label].tolist()
    return scores
