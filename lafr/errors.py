"""The one exception that means: the user can fix this; and the commonest case of it, a missing package."""

import importlib
from types import ModuleType


class InputError(ValueError):
    """Wrong input, missing file or impossible setting; its one-line message says what and how to fix it.

    The scripts print it without a traceback and exit with code 1.
    """


def need(module: str, install: str) -> ModuleType:
    """Return a module of an optional package; raises InputError with `pip install {install}` when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise InputError(f"{module} cannot be imported ({missing}): pip install {install}") from None
