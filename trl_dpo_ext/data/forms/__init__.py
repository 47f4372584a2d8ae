"""The accepted forms of columns, one file each, and the exports of other tools in `exports`.

A new file here with a `FORM` is a new form; a new file in `exports` with a function `recognise` is a new export.
"""

from ...registry import import_all
from ..row_reading.column_form import ColumnForm

FORMS: tuple[ColumnForm, ...] = tuple(
    module.FORM for module in import_all(__name__) if not module.__name__.endswith(".exports")
)
