"""The reward `vader`: sentiment by a lexicon."""

from __future__ import annotations

from functools import cache
from typing import Any

from ..registration import register_reward


@register_reward("vader", requires=("vaderSentiment", "trl-dpo-ext[demo]"))
def vader(prompts: list[str], completions: list[str]) -> list[float]:
    """VADER's compound sentiment score of prompt + completion, in [-1, 1].

    The whole text is scored, so that a negation or an intensifier at the end of the prompt affects the words that
    follow it.

    Args:
        prompts: [N] text.
        completions: [N] text.

    Returns:
        [N] scores.

    Example:
        >>> vader(["The film is not", "The film is"], [" good", " good"])
        [-0.3412, 0.4404]

    Reference:
        Hutto & Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media Text,
        ICWSM 2014. The lexicon and rules are those of the vaderSentiment package.
    """
    score = _analyzer().polarity_scores
    return [score(prompt + completion)["compound"] for prompt, completion in zip(prompts, completions, strict=True)]


@cache
def _analyzer() -> Any:
    from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer

    return SentimentIntensityAnalyzer()
