"""The built-in rewards and judges, one file each. A new file in this folder registers itself."""

from ....registry import import_all

import_all(__name__)
