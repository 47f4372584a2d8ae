"""Checks that every preference loss should pass, for the tests of whoever registers one.

    from trl_dpo_ext.testing import check_loss

    def test_my_loss():
        check_loss("my_loss")

Nothing here depends on a test framework: a failed check is an `AssertionError` that names the loss and says what is
wrong. `CHECKS` holds the single checks, for tests that want to run them one by one.
"""

from __future__ import annotations

from .data import example, inputs
from .loss_checks import CHECKS, check_direction, check_loss

__all__ = ["CHECKS", "check_direction", "check_loss", "example", "inputs"]
