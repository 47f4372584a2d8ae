"""The report of `trl-dpo-ext memory`, as text with bars and as JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from ..record import versions
from .largest_that_fits import Change
from .peak_estimate import (
    CONTEXT_PART,
    CUBLAS_WORKSPACE,
    CUDA_CONTEXT,
    DRIVER,
    GIB,
    MIB,
    SLACK,
    SLACK_PART,
    WORKSPACE_PART,
    Estimate,
    usable,
)
from .step import Setup

_BAR = 40  # columns
# First the parts that stay for the whole run, then those that come and go, then the assumed ones.
_ORDER = (
    "4-bit weights",
    "constants of the 4-bit weights",
    "weights",
    "reference model",
    "adapters",
    "gradients",
    "optimizer state",
    "optimizer step",
    "activations",
    "backward pass",
    "reference pass",
    "LM head and loss",
    "attention mask",
    "batch",
    WORKSPACE_PART,
    SLACK_PART,
    CONTEXT_PART,
)


@dataclass(frozen=True)
class Report:
    """Everything that the command reports about a recipe.

    Attributes:
        recipe, model: their names.
        setup: the run.
        estimate: estimate of the recipe as it is.
        other_checkpointing: estimate with gradient checkpointing switched, on if the recipe has it off or vice versa.
        card_gib: size of the card; None without one.
        largest: the largest `per_device_train_batch_size` that fits the card; then the largest `max_length` and
            `responses`, each with the recipe's micro-batch or the largest that fits, whichever is smaller.
        changes, then_fits: see `advise`.
    """

    recipe: str
    model: str
    setup: Setup
    estimate: Estimate
    other_checkpointing: Estimate
    card_gib: float | None = None
    largest: dict[str, int] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    then_fits: bool = True

    @property
    def fits(self) -> bool | None:
        """Whether the recipe fits the card."""
        return None if self.card_gib is None else self.estimate.total <= usable(self.card_gib)

    def as_dict(self) -> dict[str, Any]:
        """Return the report in plain types, sizes in bytes."""
        shape = self.setup.shape
        return {
            "recipe": self.recipe,
            "model": self.model,
            "measured": False,
            "micro_batch": {
                "prompts": shape.prompts,
                "responses": shape.responses,
                "prompt_tokens": shape.prompt_tokens,
                "response_tokens": shape.response_tokens,
            },
            "total_bytes": self.estimate.total,
            "allocated_bytes": self.estimate.allocated,
            "parts": {part: self.estimate.parts[part] for part in self._parts()},
            "phases": self.estimate.phases,
            "peak_phase": self.estimate.peak_phase,
            f"total_bytes_{self._other()}_checkpointing": self.other_checkpointing.total,
            "card_gib": self.card_gib,
            "usable_bytes": None if self.card_gib is None else usable(self.card_gib),
            "fits": self.fits,
            "largest": self.largest,
            "changes": [vars(change) for change in self.changes],
            "fits_with_changes": None if self.card_gib is None else self.then_fits,
            "assumed": {
                "cuda_context_bytes": CUDA_CONTEXT,
                "cublas_workspace_bytes": CUBLAS_WORKSPACE,
                "allocator_slack": SLACK,
                "share_of_the_card_for_the_driver": DRIVER,
            },
            "versions": versions(),
        }

    def _parts(self) -> list[str]:
        parts = self.estimate.parts
        known = [part for part in _ORDER if parts[part] > 0]
        return known + sorted(part for part in parts if part not in _ORDER and parts[part] > 0)

    def _other(self) -> str:
        return "without" if self.setup.args.gradient_checkpointing else "with"

    def __rich__(self) -> Group:
        return Group(self.estimate_text(), self.card_text())

    def estimate_text(self) -> Group:
        """Return the part about the recipe alone."""
        shape, total = self.setup.shape, self.estimate.total
        length = shape.prompt_tokens + shape.response_tokens
        lines: list[Any] = [
            Text(f"{self.recipe}: {self.model}", style="bold"),
            Text(
                f"Micro-batch of {shape.prompts} x (prompt {shape.prompt_tokens} + {shape.responses} responses of "
                f"{shape.response_tokens} tokens); max_length {length}."
            ),
            Text(),
        ]
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("part")
        table.add_column("GiB", justify="right")
        table.add_column("")
        room = max(total, usable(self.card_gib) if self.card_gib else 0)
        for part in self._parts():
            size = self.estimate.parts[part]
            table.add_row(part, f"{size / GIB:.2f}", Text("█" * round(_BAR * size / room) or "▏", style="cyan"))
        table.add_row(Text("sum", style="bold"), Text(f"{total / GIB:.2f}", style="bold"), self._sum_bar(room))
        lines += [
            table,
            Text(),
            Text(
                f"Estimated, not measured. The peak is in this phase: {self.estimate.peak_phase}. "
                f"{self._other().capitalize()} gradient checkpointing: {self.other_checkpointing.total / GIB:.2f} GiB."
            ),
            Text(
                f"Assumed: CUDA context {CUDA_CONTEXT / MIB:.0f} MiB, cuBLAS {CUBLAS_WORKSPACE / MIB:.0f} MiB, "
                f"allocator slack {100 * SLACK:.0f} % of what each step allocates."
            ),
        ]
        return Group(*lines)

    def card_text(self) -> Group:
        """Return the part about the card; empty without one."""
        return Group() if self.card_gib is None else Group(Text(), *self._card(self.card_gib))

    def _sum_bar(self, room: int) -> Text:
        used = round(_BAR * self.estimate.total / room)
        if self.card_gib is None:
            return Text("█" * used)
        end = round(_BAR * usable(self.card_gib) / room)
        fits = self.estimate.total <= usable(self.card_gib)
        bar = Text("█" * min(used, end), style="green" if fits else "red")
        return bar + Text("░" * max(end - used, 0) + "|") + Text("█" * max(used - end, 0), style="red")

    def _card(self, card: float) -> list[Text]:
        limit = usable(card) / GIB
        total = self.estimate.total / GIB
        verdict = f"fits, with {limit - total:.2f} GiB left" if self.fits else f"{total - limit:.2f} GiB over"
        lines = [Text(f"On a {card:g} GB card a program gets about {limit:.2f} GiB: {verdict}.", style="bold")]
        if self.largest:
            batch, length, responses = self.largest.values()
            lines.append(
                Text(
                    f"Largest that fits (0: even the smallest does not fit): micro-batch {batch}; with a micro-batch "
                    f"of {max(1, min(batch, self.setup.shape.prompts))}, max_length {length} or K = {responses}."
                )
            )
        if self.changes:
            lines.append(Text("Changes, cheapest first; each includes those before it:"))
            lines += [
                Text(f"  {change.settings}: {change.peak / GIB:.2f} GiB; cost: {change.cost}")
                for change in self.changes
            ]
        if not self.fits and not self.then_fits:
            lines.append(
                Text("Even then it doesn't fit. Use a smaller model or a larger card, or shard it (FSDP2, ZeRO-3).")
            )
        return lines
