"""Anthropic/hh-rlhf as conversations."""

from __future__ import annotations

from ..conversation_rows import answer_messages, parse_transcript, split_transcripts
from ..converter_registry import Row, register_converter


@register_converter("hh_rlhf", columns=["chosen", "rejected"], dataset="Anthropic/hh-rlhf")
def hh_rlhf(row: Row) -> Row:
    """Anthropic/hh-rlhf as conversations, for models with a chat template.

    Written for: `chosen` and `rejected`, each a transcript "\\n\\nHuman: ... \\n\\nAssistant: ..." that ends with an
    answer, and the same up to that answer. Looked up in TRL's script for trl-lib/hh-rlhf-helpful-base and the DPO
    authors' loader. Rows whose transcripts differ earlier are refused: their answers belong to different prompts.
    """
    prompt, chosen, rejected = split_transcripts(row)
    return {
        "prompt": parse_transcript(prompt)[:-1],
        "chosen": answer_messages(chosen.strip()),
        "rejected": answer_messages(rejected.strip()),
    }
