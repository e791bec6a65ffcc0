"""One file per method, its signature its schema (lab.merging.registry); every file here is imported, so that METHODS has it."""

import importlib
import pkgutil

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
