"""The accepted forms of columns, one file each. A new file here with a `FORM` is a new form."""

from ...registry import import_all
from ..row_reading.column_form import ColumnForm

FORMS: tuple[ColumnForm, ...] = tuple(module.FORM for module in import_all(__name__))
