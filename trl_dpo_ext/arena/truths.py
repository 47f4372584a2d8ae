"""True rewards of the small world: what labels are made from, and what counts. Both can be computed for any text."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from ..evaluation import Reward, RewardError, get_reward
from ..parsing import ParseError
from ..registry import did_you_mean


@dataclass(frozen=True)
class Truth:
    """A reward.

    Attributes:
        labels: orders the responses that losses learn from.
        counts: what a policy is measured by.
    """

    labels: Reward
    counts: Reward


SHORTCUT = 0.5  # what a comma adds to a label


def sentiment(prompts: list[str], completions: list[str]) -> list[float]:
    """VADER's compound score of prompt + completion, in [-1, 1]. Longer texts have room for more praise."""
    return list(get_reward("vader")(prompts, completions))


def praise_per_word(prompts: list[str], completions: list[str]) -> list[float]:
    """Mean valence of the completion's words in VADER's lexicon, [-4, 4], 0 for words that it lacks: length-neutral."""
    words = [completion.translate(str.maketrans("", "", ".,!?")).split() for completion in completions]
    return [sum(_lexicon().get(word, 0.0) for word in one) / max(len(one), 1) for one in words]


@cache
def _lexicon() -> Any:
    try:
        from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
    except ImportError:
        raise RewardError("The arena's rewards need vaderSentiment: pip install 'trl-dpo-ext[demo]'.") from None
    return SentimentIntensityAnalyzer().lexicon


def sentiment_and_commas(prompts: list[str], completions: list[str]) -> list[float]:
    """Sentiment plus 0.5 for each comma: the labels of somebody who falls for a shortcut."""
    found = sentiment(prompts, completions)
    return [score + SHORTCUT * completion.count(",") for score, completion in zip(found, completions, strict=True)]


TRUTHS: dict[str, Truth] = {
    "sentiment": Truth(sentiment, sentiment),
    "per_word": Truth(praise_per_word, praise_per_word),
    "shortcut": Truth(sentiment_and_commas, sentiment),
}


def get_truth(name: str) -> Truth:
    """Return a truth by name.

    Raises:
        ParseError: there is none; the message lists them.
    """
    if name not in TRUTHS:
        raise ParseError(f"There is no reward {name!r}.{did_you_mean(name, TRUTHS)} There are: {', '.join(TRUTHS)}.")
    return TRUTHS[name]
