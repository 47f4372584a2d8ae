"""Decide how a run lays out rows: shared prompts, packed, or padded. Sharing can also depend on each batch's cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig

from .._compat.transformers import attention_of
from .layout import PromptGroup, padded_layout, shared_layout
from .masks import layers_follow_masks, takes_masks
from .self_check import check_rows


@dataclass(frozen=True)
class RowLayout:
    """Lays out the batches of a run. `plan_rows` creates it, the collator calls it.

    Attributes:
        share: compute each prompt once for all its responses.
        pack: put several sequences in a row.
        if_cheaper: share only the batches for which sharing costs less.
        pair_cost: cost of one query-key pair relative to one token; 0 if masked pairs cost nothing.
        one_row: put all sequences in one row, as FlashAttention's variable-length path requires.
        last_tokens: keep the last token of each response, for a loss that counts all tokens.
        note: the decision and the reason, for the log.
    """

    share: bool = False
    pack: bool = False
    if_cheaper: bool = False
    pair_cost: float = 0.0
    one_row: bool = False
    last_tokens: bool = False
    note: str = "One padded row per response."

    def __call__(self, groups: Sequence[PromptGroup], width: int) -> dict[str, Tensor]:
        """Lay out B groups with K = `width`; see `padded_layout` and `shared_layout` for the tensors returned."""
        if not self.share:
            return self._plain(groups, width)
        shared = shared_layout(groups, width, None if self.pack else 0, last_tokens=self.last_tokens)
        if not self.if_cheaper or self.pair_cost == 0:
            return shared
        return min(shared, self._plain(groups, width), key=self._cost)

    def _plain(self, groups: Sequence[PromptGroup], width: int) -> dict[str, Tensor]:
        if not self.pack:
            return padded_layout(groups, width)
        budget = 10**9 if self.one_row else None
        return shared_layout(groups, width, budget, share=False, last_tokens=self.last_tokens)

    def _cost(self, batch: dict[str, Tensor]) -> float:
        rows, length = batch["input_ids"].shape
        return rows * (length + self.pair_cost * length**2)


def plan_rows(
    model: nn.Module,
    config: PreTrainedConfig,
    groups: Sequence[PromptGroup],
    *,
    prefix_sharing: bool | Literal["auto"] = "auto",
    packing: bool = True,
    last_tokens: bool = False,
    full_precision: bool = True,
) -> RowLayout:
    """Decide how a run lays out its rows, and check that the model computes the same log-probs in them.

    Args:
        model, config, full_precision: see `check_rows`. The model needs the fused head.
        groups: a few groups of the data; the longest is used for the check.
        prefix_sharing: "auto" shares prompts if the model supports it, in the batches that become cheaper. True always
            shares, False never.
        packing: fill padding with further groups (or responses, if prompts aren't shared).
        last_tokens: see `RowLayout`; needed with a load-balancing loss.

    Raises:
        ValueError: `prefix_sharing=True`, but the model doesn't support it.
    """
    layout = _layout(config, bool(prefix_sharing), prefix_sharing == "auto", packing, last_tokens)
    note = ""
    if prefix_sharing and not layout.share:
        implementation = attention_of(config)
        note = f"Prompts are not shared: attn_implementation={implementation!r} takes no custom mask. "
        if prefix_sharing is True:
            raise ValueError(
                f"prefix_sharing=True, but attn_implementation={implementation!r} takes no custom mask. Load the model "
                "with attn_implementation='sdpa' or, on a GPU, 'flex_attention', or set prefix_sharing='auto'."
            )
    if not (layout.share or layout.pack):
        return replace(layout, note=note + layout.note)
    # A group of single tokens can't reveal a leak.
    group = max(groups, key=lambda group: min(len(group.prompt_ids), *map(len, group.completion_ids)))
    check = check_rows(model, config, group, share=layout.share, full_precision=full_precision)
    if check.failure is not None:
        if prefix_sharing is True:
            raise ValueError(
                f"prefix_sharing=True, but this model can't share prompts. {check.failure} Set prefix_sharing='auto'."
            )
        return RowLayout(note=f"Prompts are not shared and rows are not packed. {check.failure} {RowLayout.note}")
    if layout.share:
        note = "Each prompt is computed once for all its responses" + (", rows are packed" if packing else "")
    else:
        note += "Each response has its own prompt, rows are packed"
    return replace(layout, note=f"{note} (checked: log-probs differ by {check.error:.1g} nats per token).")


def layout_without_check(
    config: PreTrainedConfig, *, prefix_sharing: str = "auto", packing: bool = True, last_tokens: bool = False
) -> RowLayout:
    """Return the layout that `plan_rows` chooses if the model passes the check, without running a model.

    Args:
        config: the model's config, with its attention implementation set.
        prefix_sharing: "auto", "true" or "false", as in the configuration.
        packing, last_tokens: see `plan_rows`.
    """
    if takes_masks(config) and not layers_follow_masks(config):
        return RowLayout()
    return _layout(config, prefix_sharing != "false", prefix_sharing == "auto", packing, last_tokens)


def _layout(config: PreTrainedConfig, share: bool, if_cheaper: bool, packing: bool, last_tokens: bool) -> RowLayout:
    """Return the requested layout, reduced to what the attention implementation supports."""
    flash = not takes_masks(config)
    share = share and not flash
    if not (share or packing):
        return RowLayout()
    return RowLayout(
        share=share,
        pack=packing,
        if_cheaper=if_cheaper,
        pair_cost=_pair_cost(config),
        one_row=flash,
        last_tokens=last_tokens,
    )


def _pair_cost(config: PreTrainedConfig) -> float:
    """Return the time of one query-key pair relative to that of one token.

    A decoder layer of width h has about 12 h^2 weights: 24 h^2 operations per token and 4 h per pair, a ratio of
    1 / (6 h). Attention runs at about two thirds of the speed of the matrix products, which gives 1 / (4 h) (measured:
    1 / (4.3 h) for SmolLM2-135M on a CPU). FlexAttention skips masked blocks.
    """
    if attention_of(config) == "flex_attention":
        return 0.0
    return 1 / (4 * config.get_text_config().hidden_size)
