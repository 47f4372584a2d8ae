"""The time that the attack may take: each test that asks for it gets an equal share."""

import os
import random

import pytest

# `make test` runs a minute of the attack, `make attack` ten.
TOTAL = float(os.environ.get("ATTACK_SECONDS", "60"))


@pytest.fixture(scope="session")
def seconds(request) -> float:
    """Seconds that one test may try for. It makes at least one try, and prints how many it made."""
    return TOTAL / max(1, sum("seconds" in getattr(item, "fixturenames", ()) for item in request.session.items))


@pytest.fixture
def seed() -> int:
    """A new seed for each `make attack`; `make test` tries the same things first every time."""
    return random.randrange(10**6) if "ATTACK_SECONDS" in os.environ else 0
