"""Thin trainers: `PreferenceTrainer` with a different default loss."""

from __future__ import annotations

from typing import Any, ClassVar

from .config import PreferenceConfig, UnsetLosses
from .engine import PreferenceTrainer
from .errors import ConfigError


class _DefaultLossTrainer(PreferenceTrainer):
    default_loss: ClassVar[str]

    def __init__(self, model: Any, ref_model: Any = None, args: PreferenceConfig | None = None, **kwargs: Any) -> None:
        args = args or PreferenceConfig("trl-dpo-ext-output")
        if isinstance(args.loss_type, UnsetLosses):
            args.loss_type = [self.default_loss]
        self.check_losses(args)
        super().__init__(model, ref_model, args, **kwargs)

    def check_losses(self, args: PreferenceConfig) -> None:
        """Raise `ConfigError` if this trainer doesn't support the configured losses."""


def _names(args: PreferenceConfig) -> list[str]:
    return [term.spec.name for term in args.objective().terms]


class ReferenceFreeTrainer(_DefaultLossTrainer):
    """Train without a reference model. The default loss is SimPO; any reference-free loss works."""

    default_loss = "simpo"

    def check_losses(self, args: PreferenceConfig) -> None:
        """Reject losses that read the reference."""
        if args.objective().reads_reference:
            raise ConfigError(
                f"ReferenceFreeTrainer trains without a reference, but {args.loss_type} reads it. Choose a loss from "
                "`trl-dpo-ext losses --reference-free`, or use PreferenceTrainer."
            )


class MinorDPOTrainer(_DefaultLossTrainer):
    """Train with MinorDPO (arXiv 2408.09834). Logs the fraction of rejected responses that are no longer penalized."""

    default_loss = "minor_dpo"

    def check_losses(self, args: PreferenceConfig) -> None:
        """Reject a configuration without `minor_dpo`."""
        if "minor_dpo" not in _names(args):
            raise ConfigError(f"MinorDPOTrainer needs loss_type='minor_dpo', but got {args.loss_type}.")


class PlackettLuceTrainer(_DefaultLossTrainer):
    """Train with DPO over whole rankings (arXiv 2305.18290, appendix A.3). Logs top-1 accuracy and Kendall's tau."""

    default_loss = "plackett_luce"

    def check_losses(self, args: PreferenceConfig) -> None:
        """Reject a configuration without a listwise loss."""
        if not any(term.spec.listwise for term in args.objective().terms):
            raise ConfigError(
                f"PlackettLuceTrainer needs a listwise loss such as 'plackett_luce', but got {args.loss_type}."
            )
