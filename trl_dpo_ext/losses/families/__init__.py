"""The built-in losses, one file per family. Every file in this folder is imported; a new one needs no other edit."""

from importlib import import_module
from pkgutil import iter_modules

for _module in iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")
