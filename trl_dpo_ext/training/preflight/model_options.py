"""`model_init_kwargs`: names that the model's class doesn't know."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from typing import Any

from ..errors import ConfigError


@contextlib.contextmanager
def unknown_options_named(options: dict[str, Any] | str | None) -> Iterator[None]:
    """Say which option a model's class refused. transformers hands unknown ones on to its constructor.

    Args:
        options: `model_init_kwargs`, parsed by the configuration.

    Raises:
        ConfigError: in place of the constructor's TypeError.
    """
    try:
        yield
    except TypeError as error:
        found = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
        if found is None or found[2] not in (options or {}):
            raise
        raise ConfigError(
            f"model_init_kwargs: {found[1]} has no option {found[2]!r}, neither for loading nor in its config. Remove "
            "it, or correct its spelling."
        ) from error
