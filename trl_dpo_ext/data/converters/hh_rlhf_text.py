"""Anthropic/hh-rlhf as plain text."""

from __future__ import annotations

from ..conversation_rows import split_transcripts
from ..converter_registry import Row, register_converter


@register_converter("hh_rlhf_text", columns=["chosen", "rejected"], dataset="Anthropic/hh-rlhf")
def hh_rlhf_text(row: Row) -> Row:
    """Anthropic/hh-rlhf as plain text, for models without a chat template; split as the DPO paper's own loader does.

    The prompt ends with "\\n\\nAssistant:", and an answer begins with its space. The columns are those of `hh_rlhf`.
    Where the transcripts differ earlier, that loader cuts the answer at the prompt's length; here the row is refused.
    """
    prompt, chosen, rejected = split_transcripts(row)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}
