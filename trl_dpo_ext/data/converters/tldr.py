"""openai/summarize_from_feedback as preference pairs."""

from __future__ import annotations

from ..converter_registry import Row, register_converter


@register_converter("tldr", columns=["info", "summaries", "choice"], dataset="openai/summarize_from_feedback")
def tldr(row: Row) -> Row:
    """openai/summarize_from_feedback, config `comparisons`: two summaries of a Reddit post (or a news article).

    Written for: `info` {id, post, title, subreddit, site, article}, where a news article has no `post`; `summaries`,
    two of {text, policy, note}; `choice`, the index of the better one. Looked up in the card of a copy that keeps all
    columns (vwxyzjn/tldr-preference-trl-style). The prompt is that of TRL's script for trl-lib/tldr-preference, which
    needs no converter and, unlike this dataset, is stored in a format that `datasets` 4 can load.
    """
    info, summaries, choice = row["info"], row["summaries"], row["choice"]
    if len(summaries) != 2 or choice not in (0, 1):
        raise ValueError(f"expected two summaries and a choice of 0 or 1, found {len(summaries)} and {choice!r}")
    if info["post"] is not None:
        post = info["post"].replace("\n\n", "\n")
        prompt = f"SUBREDDIT: r/{info['subreddit']}\n\nTITLE: {info['title']}\n\nPOST: {post}\n\nTL;DR:"
    elif info["article"] is not None:
        article = info["article"].replace("\n\n", "\n")
        prompt = f"TITLE: {info['title']}\n\n{article}\n\nTL;DR:"
    else:
        raise ValueError("info has neither a post nor an article")
    better, worse = (" " + summaries[index]["text"].strip() for index in (choice, 1 - choice))
    return {"prompt": prompt, "chosen": better, "rejected": worse}
