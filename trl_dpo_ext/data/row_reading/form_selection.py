"""Choose the form of a dataset by its columns."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache

from ...registry import did_you_mean
from ..data_error import ColumnFault, DataError, FaultReason
from ..forms import FORMS
from .column_form import ColumnForm


def check_columns(columns: Iterable[str], *, name: str) -> ColumnForm:
    """Return the form of a dataset with these columns.

    Raises:
        DataError: they don't hold exactly one accepted form.
    """
    try:
        return choose_form(tuple(columns))
    except ColumnFault as fault:
        raise DataError(f"{name} dataset: {fault.detail}", fault.reason) from None


@lru_cache(maxsize=64)  # it is asked for each row
def choose_form(columns: tuple[str, ...]) -> ColumnForm:
    """Return the one form that the columns hold.

    Where the columns of several forms are there, the form that reads the most of them is taken.

    Raises:
        ColumnFault: the columns hold no form, or two.
    """
    for column in ("image", "images"):
        if column in columns:
            raise ColumnFault(
                column,
                FaultReason.IMAGES,
                f"images aren't supported; train on {column!r} with TRL's DPOTrainer, or remove the column.",
            )
    _refuse_two_forms(columns)
    forms = [form for form in FORMS if set(form.columns) <= set(columns)]
    if not forms:
        raise _no_form(columns)
    form = max(forms, key=lambda form: len({*form.columns, *form.optional_columns} & set(columns)))
    form.check_columns(columns)
    return form


def _refuse_two_forms(columns: tuple[str, ...]) -> None:
    kinds = sorted({form.response_columns for form in FORMS})
    found = [present for kind in kinds if (present := [column for column in kind if column in columns])]
    if len(found) > 1:
        first, *others = sorted(found, key=len)
        listed = " and ".join(repr(column) for some in others for column in some)
        raise ColumnFault(
            first[0],
            FaultReason.TWO_FORMS,
            f"found both {' and '.join(map(repr, first))} and {listed}; remove one form.",
        )


def _no_form(columns: tuple[str, ...]) -> ColumnFault:
    nearest = min(FORMS, key=lambda form: (len(set(form.columns) - set(columns)), -len(form.columns)))
    missing = [column for column in nearest.columns if column not in columns]
    hint = "".join(did_you_mean(column, columns) for column in missing)
    return ColumnFault(
        missing[0],
        FaultReason.MISSING_COLUMNS,
        f"found the columns {', '.join(columns)}. The nearest accepted form is {nearest}; missing: "
        f"{', '.join(missing)}.{hint} All forms: {'; '.join(map(str, FORMS))}.",
    )
