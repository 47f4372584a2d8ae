"""The names under which files hold the scores of responses."""

from __future__ import annotations

from collections.abc import Collection

from ..data_error import ColumnFault, FaultReason

_LISTS = ("scores", "ratings", "rating", "rewards", "reward", "score")
_SINGLE = ("score", "rating", "reward")
_PAIRS = (
    *((f"{what}_chosen", f"{what}_rejected") for what in ("score", "rating", "reward")),
    *((f"chosen_{what}", f"rejected_{what}") for what in ("score", "rating", "reward")),
)


def standard_names(columns: Collection[str]) -> dict[str, str]:
    """Return the columns that hold scores under another name than the forms have, with the forms' name.

    Raises:
        ColumnFault: two columns hold scores.

    Example:
        >>> standard_names(["prompt", "completions", "ratings"])
        {'ratings': 'scores'}
    """
    if "completions" in columns:
        return _one_of([(name,) for name in _LISTS], ("scores",), columns)
    if "completion" in columns:
        return _one_of([(name,) for name in _SINGLE], ("score",), columns)
    if "chosen" in columns and "rejected" in columns:
        return _one_of(_PAIRS, _PAIRS[0], columns)
    return {}


def _one_of(kinds: Collection[tuple[str, ...]], standard: tuple[str, ...], columns: Collection[str]) -> dict[str, str]:
    found = [names for names in kinds if set(names) <= set(columns)]
    if len(found) > 1:
        listed = " and ".join(" + ".join(map(repr, names)) for names in found)
        raise ColumnFault(
            found[1][0],
            FaultReason.TWO_FORMS,
            f"found scores in {listed}. Leave out one of them, in the file or with columns: {{{found[1][0]}: null}}.",
        )
    return {} if not found or found[0] == standard else dict(zip(found[0], standard, strict=True))
