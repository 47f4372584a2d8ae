"""The built-in converters, one file each. A new file here that registers a function is a new converter.

Each docstring says which columns and types the converter was written for, and where they were looked up; the public
files themselves were not at hand.
"""

from ...registry import import_all

import_all(__name__)
