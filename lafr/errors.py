"""`InputError`: something that the user can mend. Each door (Python, command line, Hydra, web page) words it its way.

A message never spells a parameter as one door does. It names it, `setting("force", True)`, and the door that prints
the message spells it: `force=True` in Python, `--force` on the command line, a Hydra key where a command has one.
"""

import importlib
import re
from collections.abc import Callable
from types import ModuleType

Spell = Callable[[str, str | None], str]  # (parameter, value as Python writes it or None) -> the door's words

_ABSENT = object()
_OPEN, _VALUE, _CLOSE = "\x02", "\x1f", "\x03"  # control characters: no path or number of a user's is taken for a mark
_MARK = re.compile(f"{_OPEN}([^{_CLOSE}{_VALUE}]*)(?:{_VALUE}([^{_CLOSE}]*))?{_CLOSE}")


def setting(parameter: str, value: object = _ABSENT) -> str:
    """Return a mark for a parameter, with a value if given, that `InputError.spelled` spells as its door does."""
    return f"{_OPEN}{parameter}{'' if value is _ABSENT else f'{_VALUE}{value!r}'}{_CLOSE}"


def as_python(parameter: str, value: str | None = None) -> str:
    """Spell a parameter as in Python: `force`, `force=True`; "Restorer.folder", qualified by its owner, is `folder`."""
    name = parameter.rpartition(".")[2]
    return name if value is None else f"{name}={value}"


def reason_of(error: BaseException, longest: int = 200) -> str:
    """Return another library's error in one line, its kind where it says nothing."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


class InputError(ValueError):
    """Wrong input, a missing file or an impossible setting; its one-line message says what and how to mend it.

    >>> from lafr import InputError
    >>> raise InputError("fidelity", 2, "a number from 0 to 1", "0 restores as trained")
    Traceback (most recent call last):
    lafr.errors.InputError: fidelity must be a number from 0 to 1, got 2; 0 restores as trained

    The commands print it without a traceback and exit with code 1. `str(error)` is worded for Python.

    Args:
        parameter: name of the parameter that is wrong. Alone: the whole message, about something that is no
            parameter (a file, a folder, the machine).
        value: what it was.
        allowed: what it must be, to follow "must be": "a number from 0 to 1", "one of yunet, dlib".
        remedy: what to do instead; it may name other parameters by `setting`.
    """

    def __init__(self, parameter: str, value: object = _ABSENT, allowed: str = "", remedy: str = ""):
        if value is _ABSENT:
            message = "; ".join(part for part in (parameter, remedy) if part)
        else:
            message = f"{setting(parameter)} must be {allowed}, got {value!r}{f'; {remedy}' if remedy else ''}"
        super().__init__(message)
        self.parameter = None if value is _ABSENT else parameter

    def spelled(self, spell: Spell = as_python) -> str:
        """Return the message on one line, its parameters in a door's words."""
        message = _MARK.sub(lambda mark: spell(mark[1], mark[2]), self.args[0])
        return " ".join(message.split())

    def __str__(self) -> str:
        return self.spelled()


class Stopped(KeyboardInterrupt):
    """A signal has ended a run; what it had done is saved, and the same command continues it.

    The commands print the message and exit with `CODE`, EX_TEMPFAIL of sysexits.h: try again.
    """

    CODE = 75


class UnwritableError(InputError):
    """A file or folder cannot be written, as on a full disk: nothing is wrong with the input, and work done is kept."""


def require_whole(least: int, **given: object) -> None:
    """Raise InputError unless each value, given by the name of its parameter, is a whole number of at least `least`."""
    for parameter, value in given.items():
        # True would pass as the number 1
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(parameter, value, f"a whole number, {least} or more")


def require_seed(seed: object) -> None:
    """Raise InputError unless `seed` is one that every generator takes: NumPy's own takes 32 bits."""
    require_whole(0, seed=seed)
    if isinstance(seed, int) and seed >= 2**32:
        raise InputError("seed", seed, f"below 2^32, {2**32}")


def need(module: str, install: str) -> ModuleType:
    """Return a module of an optional package; raises InputError with `pip install {install}` when it is missing."""
    try:
        return importlib.import_module(module)
    except ImportError as missing:
        raise InputError(f"{module} cannot be imported ({missing}): pip install {install}") from None
