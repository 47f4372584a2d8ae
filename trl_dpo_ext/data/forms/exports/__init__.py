"""What other tools export, one file each: a function `recognise(columns, sample)` that knows it and reads its rows.

Each file names the documentation or source of its tool, where the names and shapes come from.
"""

from collections.abc import Sequence

from ....registry import import_all
from ...data_error import ColumnFault, FaultReason
from ...row_reading.column_form import ExportForm, Row

_MODULES = import_all(__name__)


def recognise_export(columns: Sequence[str], sample: Sequence[Row]) -> ExportForm | None:
    """Return the export that a dataset with these columns and first rows is, or None.

    Raises:
        ColumnFault: it could be two, its values could be read in two ways, or something is missing.
    """
    found, faults = [], []
    for module in _MODULES:
        try:
            form = module.recognise(columns, sample)
        except ColumnFault as fault:
            faults.append(fault)
        else:
            found += [] if form is None else [form]
    # What one export lacks may be another's whole form.
    if faults and not found:
        raise faults[0]
    if len(found) > 1:
        listed = " and ".join(f"{form.name} ({', '.join(form.columns)})" for form in found)
        raise ColumnFault(
            found[0].columns[0],
            FaultReason.TWO_FORMS,
            f"the columns are those of {listed}; remove one, in the file or with columns: {{NAME: null}}.",
        )
    return found[0] if found else None
