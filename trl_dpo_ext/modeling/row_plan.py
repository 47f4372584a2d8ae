"""Which rows a run uses: each prompt once, only packed, or padded; decided once, and for each batch by its cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn
from transformers import PreTrainedConfig

from .._compat.transformers import attention_of
from .layout import PromptGroup, padded_layout, shared_layout
from .masks import follows_masks, takes_masks
from .self_check import check_rows


@dataclass(frozen=True)
class RowLayout:
    """Lays out batches; the collator calls it. `plan_rows` makes it.

    Attributes:
        share: compute each prompt once for all its responses.
        pack: put several sequences in a row.
        choose: share a batch only where that costs less.
        pair_cost: what one query-key pair costs, in tokens; 0 where masked pairs cost nothing.
        one_row: the attention needs all sequences in one row (FlashAttention's variable-length path).
        last_tokens: lay out the last token of each response too, for a loss that counts all tokens.
        note: what was decided, and why, for the log.
    """

    share: bool = False
    pack: bool = False
    choose: bool = False
    pair_cost: float = 0.0
    one_row: bool = False
    last_tokens: bool = False
    note: str = "One padded row per response."

    def __call__(self, groups: Sequence[PromptGroup], width: int) -> dict[str, Tensor]:
        """Lay out B groups for a result of K = `width`; see `padded_layout` and `shared_layout` for what comes back."""
        if not self.share:
            return self._plain(groups, width)
        shared = shared_layout(groups, width, None if self.pack else 0, last_tokens=self.last_tokens)
        if not self.choose or self.pair_cost == 0:
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
    """Decide how a run lays out its rows, and check that the model computes the same in them.

    Args:
        model, config, full_precision: see `check_rows`. The model needs the fused head.
        groups: a few groups of the data; the longest is tried.
        prefix_sharing: "auto" shares where the model can, and where a batch becomes cheaper by it; True insists;
            False doesn't.
        packing: put several groups (or, unshared, several responses) in a row, as far as that fills padding.
        last_tokens: see `RowLayout`; needed with a load-balancing loss.

    Raises:
        ValueError: `prefix_sharing=True`, and the model can't.
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
    # A group of single tokens would show nothing.
    group = max(groups, key=lambda group: min(len(group.prompt_ids), *map(len, group.completion_ids)))
    check = check_rows(model, config, group, share=layout.share, full_precision=full_precision)
    if check.failure is not None:
        if prefix_sharing is True:
            raise ValueError(f"prefix_sharing=True, but this model can't share prompts. {check.failure}")
        return RowLayout(note=f"Prompts are not shared and rows not packed. {check.failure} {RowLayout.note}")
    if layout.share:
        note = "Each prompt is computed once for all its responses" + (", rows are packed" if packing else "")
    else:
        note += "Each response has its own prompt, rows are packed"
    return replace(layout, note=f"{note} (checked: log-probs differ by {check.error:.1g} nats a token).")


def layout_without_check(
    config: PreTrainedConfig, *, prefix_sharing: str = "auto", packing: bool = True, last_tokens: bool = False
) -> RowLayout:
    """Return the layout `plan_rows` decides for where the model passes the check, without a model to check.

    Args:
        config: the model's config, with its attention chosen.
        prefix_sharing: "auto", "true" or "false", as in the configuration.
        packing, last_tokens: see `plan_rows`.
    """
    if takes_masks(config) and not follows_masks(config):
        return RowLayout()
    return _layout(config, prefix_sharing != "false", prefix_sharing == "auto", packing, last_tokens)


def _layout(config: PreTrainedConfig, share: bool, choose: bool, packing: bool, last_tokens: bool) -> RowLayout:
    """Return the layout that was asked for, as far as the attention allows it."""
    flash = not takes_masks(config)
    share = share and not flash
    if not (share or packing):
        return RowLayout()
    return RowLayout(
        share=share,
        pack=packing,
        choose=choose,
        pair_cost=_pair_cost(config),
        one_row=flash,
        last_tokens=last_tokens,
    )


def _pair_cost(config: PreTrainedConfig) -> float:
    """Return the time of one query-key pair in that of one token.

    A decoder layer of width h has about 12 h^2 weights: 24 h^2 operations a token, 4 h a pair, that is 1 / (6 h);
    attention runs at about two thirds of the speed of the matrix products (SmolLM2-135M on a CPU: 1 / (4.3 h)).
    FlexAttention skips the masked blocks.
    """
    if attention_of(config) == "flex_attention":
        return 0.0
    return 1 / (4 * config.get_text_config().hidden_size)
