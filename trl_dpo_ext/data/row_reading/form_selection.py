"""Recognise the form of a dataset by its columns, and by its first rows where names alone don't tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

from ...registry import did_you_mean
from ..data_error import ColumnFault, DataError, FaultReason
from ..forms import FORMS
from ..forms.exports import recognise_export
from .column_form import ColumnForm, ExportForm, Row
from .score_names import standard_names

# Columns that stand beside any form.
PASSED_ON = ("tools", "chat_template_kwargs")
COMMON = (*PASSED_ON, "system", "reference_scores", "weight")
# What files call a prompt. Only a hint: the user says which column it is.
_PROMPT_NAMES = ("question", "instruction", "query", "input", "context", "text", "user")


@dataclass(frozen=True)
class Reading:
    """How the rows of a dataset are read.

    Attributes:
        form: the accepted form.
        export: what brings a row into that form, or None if it has it.
        names: the columns that have another name than the form's, with the form's name.
    """

    form: ColumnForm
    export: ExportForm | None = None
    names: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The form in words, with the columns that are read."""
        if self.export is not None:
            return f"{self.export.name} ({', '.join(self.export.columns)})"
        given = {standard: name for name, standard in self.names.items()}
        return f"{self.form.name} ({', '.join(given.get(column, column) for column in self.form.columns)})"

    @property
    def read(self) -> set[str]:
        """The columns that are read."""
        if self.export is not None:
            return {*self.export.columns, *COMMON}
        return {*self.form.columns, *self.form.optional_columns, *self.names, *COMMON}

    def columns(self, columns: Collection[str]) -> set[str]:
        """Return the columns of the accepted form that rows with these columns have."""
        if self.export is not None:
            return {*self.export.gives, *(set(COMMON) & set(columns))}
        return {self.names.get(column, column) for column in columns}


def read_columns(columns: Iterable[str], sample: Sequence[Row], *, name: str) -> Reading:
    """Return how a dataset with these columns and first rows is read.

    Raises:
        DataError: the columns don't hold exactly one known form, or the rows could be read in two ways.
    """
    try:
        return recognise(tuple(columns), sample)
    except ColumnFault as fault:
        raise DataError(f"{name} dataset: {fault.detail}", fault.reason) from None


def recognise(columns: tuple[str, ...], sample: Sequence[Row]) -> Reading:
    """Return how rows with these columns are read.

    Args:
        columns: of the dataset.
        sample: its first rows; they decide what an export's values mean.

    Raises:
        ColumnFault: see `read_columns`.
    """
    for column in ("image", "images"):
        if column in columns:
            raise ColumnFault(
                column,
                FaultReason.IMAGES,
                f"images aren't supported; train on {column!r} with TRL's DPOTrainer, or remove the column.",
            )
    export = recognise_export(columns, sample)
    if export is not None:
        _refuse_second_form(columns, export)
        return Reading(_choose_form(tuple(export.gives)), export)
    names = standard_names(columns)
    return Reading(_choose_form(tuple(names.get(column, column) for column in columns)), names=names)


def _refuse_second_form(columns: tuple[str, ...], export: ExportForm) -> None:
    for form in FORMS:
        other = [column for column in form.response_columns if column in columns and column not in export.columns]
        if other:
            raise ColumnFault(
                other[0],
                FaultReason.TWO_FORMS,
                f"found both the columns of {export.name} ({', '.join(export.columns)}) and "
                f"{' and '.join(map(repr, other))}; remove one form, in the file or with columns: {{NAME: null}}.",
            )


@lru_cache(maxsize=64)
def _choose_form(columns: tuple[str, ...]) -> ColumnForm:
    """Return the one form that the columns hold: of several, the one that reads the most of them.

    Raises:
        ColumnFault: the columns hold no form, or two.
    """
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
    prompts = [column for column in columns if column.lower() in _PROMPT_NAMES]
    if missing == ["prompt"] and prompts:
        hint = f" If {prompts[0]!r} holds the prompt, say so: columns: {{{prompts[0]}: prompt}}."
    return ColumnFault(
        missing[0],
        FaultReason.MISSING_COLUMNS,
        f"found the columns {', '.join(columns)}. The nearest accepted form is {nearest}; missing: "
        f"{', '.join(missing)}.{hint} All forms: {'; '.join(map(str, FORMS))}. Other names are mapped with `columns`.",
    )
