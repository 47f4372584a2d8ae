"""berkeley-nest/Nectar as rankings."""

from __future__ import annotations

from ..conversation_rows import ASSISTANT, answer_messages, parse_transcript
from ..converter_registry import Row, register_converter


@register_converter("nectar", columns=["prompt", "answers"], dataset="berkeley-nest/Nectar")
def nectar(row: Row) -> Row:
    """berkeley-nest/Nectar: seven answers to a conversation, ranked by GPT-4.

    Written for: `prompt`, a transcript that ends with "\\n\\nAssistant: "; `answers`, a list of {answer, model, rank}
    with 1 for the best. Looked up in the dataset's card, which has the rank as int; other loaders compare it with 1.0,
    so any whole number is accepted.
    """
    messages = parse_transcript(row["prompt"])
    if messages[-1] != {"role": "assistant", "content": ""}:
        raise ValueError(f"a prompt ends with {ASSISTANT!r}, this one with {row['prompt'][-30:]!r}")
    answers = row["answers"]
    return {
        "prompt": messages[:-1],
        "completions": [answer_messages(answer["answer"].strip()) for answer in answers],
        "ranks": [_zero_based(answer["rank"]) for answer in answers],
    }


def _zero_based(rank: float) -> int:
    if rank != int(rank) or rank < 1:
        raise ValueError(f"a rank is 1 or more, found {rank}")
    return int(rank) - 1
