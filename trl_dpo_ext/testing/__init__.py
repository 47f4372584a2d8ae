"""Checks that every preference loss should pass, for the tests of whoever registers one.

    from trl_dpo_ext.testing import check_loss

    def test_my_loss():
        check_loss("my_loss")

Nothing here depends on a test framework. A failed check is an `AssertionError` that names the loss and says what is
wrong. `CHECKS` holds the single checks, for tests that run them one by one. A test that registers losses of its own
does so inside `temporary_losses()`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager

from ..losses import LOSSES
from .loss_checks import CHECKS, check_direction, check_loss
from .loss_data import loss_input, random_rankings

__all__ = ["CHECKS", "check_direction", "check_loss", "loss_input", "random_rankings", "temporary_losses"]


def temporary_losses() -> AbstractContextManager[None]:
    """Return a context manager that forgets, when its block ends, the losses registered in it.

    >>> from trl_dpo_ext import PreferencePairs, list_losses, register_loss
    >>> with temporary_losses():
    ...     def mine(pairs: PreferencePairs): ...
    ...     _ = register_loss("mine")(mine)
    >>> "mine" in [spec.name for spec in list_losses()]
    False
    """
    return LOSSES.temporary()
