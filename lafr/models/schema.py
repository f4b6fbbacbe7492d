"""Checks of plain values against type annotations: what a saved model's JSON and an adapter's settings may hold."""

import inspect
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from lafr.errors import InputError
from lafr.storage import read_json

LONGEST = 4096  # characters of a text, entries of a list
LARGEST_FILE = 1 << 20  # bytes; ours have 2 kB


@dataclass(frozen=True)
class Range:
    """The least and the most that a number may be; both included."""

    least: float
    most: float

    def __str__(self) -> str:
        return f"from {self.least} to {self.most}"


Count = Annotated[int, Range(1, 65536)]
Blocks = Annotated[int, Range(0, 64)]
Fraction = Annotated[float, Range(0, 1)]
NotNegative = Annotated[float, Range(0, 1e6)]
Positive = Annotated[float, Range(1e-6, 1e6)]


def fits(value: object, hint: Any) -> bool:
    """Return whether a plain value, as JSON or YAML holds it, is of the annotated type and range.

    `hint` is None, bool, int, float, str, dict, list[...], Literal, a union of these, or `Annotated[number, Range]`.
    """
    origin, given = get_origin(hint), get_args(hint)
    if origin is Annotated:
        # Annotated[type, limits]
        limits = given[1]
        return fits(value, given[0]) and limits.least <= value <= limits.most  # NaN fails both comparisons
    if origin in (Union, types.UnionType):
        return any(fits(value, choice) for choice in given)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in given)
    if origin is list:
        return isinstance(value, list) and len(value) <= LONGEST and all(fits(item, given[0]) for item in value)
    if hint is inspect.Parameter.empty:  # an adapter of the user's, without annotations
        return True
    if hint in (None, types.NoneType):
        return value is None
    if hint in (int, float):  # a bool is an int in Python, and true is no number; an int will do for a float
        return isinstance(value, int if hint is int else int | float) and not isinstance(value, bool)
    if hint is str:
        # printable: a control character or a line break would forge lines of messages and logs
        return isinstance(value, str) and len(value) <= LONGEST and value.isprintable()
    return isinstance(value, hint)


def described(hint: Any) -> str:
    """Return an annotation in words: "an integer from 1 to 64", "one of none, empty_prompt"."""
    origin, given = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{described(given[0])} {given[1]}"
    if origin in (Union, types.UnionType):
        return " or ".join(map(described, given))
    if origin is Literal:
        return f"one of {', '.join(map(str, given))}"
    if origin is list:
        return f"a list, each {described(given[0])}"
    words = {int: "an integer", float: "a number", str: "a text", bool: "true or false", dict: "an object"}
    return words.get(hint, "null")


def require_fit(values: object, hints: Mapping[str, Any], where: str) -> None:
    """Raise InputError unless `values` is a dict with exactly the keys of `hints`, each of the annotated type."""
    if not isinstance(values, dict):
        raise InputError(f"{where} does not hold an object")
    missing, unknown = sorted(hints.keys() - values.keys()), sorted(values.keys() - hints.keys())
    if missing or unknown:
        parts = [
            f"{name} {', '.join(map(repr, keys))[:200]}"
            for name, keys in (("lacks", missing), ("has unknown", unknown))
            if keys
        ]
        raise InputError(f"{where} {' and '.join(parts)}; restore the file that LAFR saved")
    for name, hint in hints.items():
        if not fits(values[name], hint):
            raise InputError(
                f"{where} has {name}={values[name]!r:.80}, which must be {described(hint)}; "
                "restore the file that LAFR saved"
            )


def read_small_json(path: Path) -> Any:
    """Return what a JSON file holds; raises InputError when it is too large, no JSON or cannot be read."""
    try:
        # before reading: a huge file is refused without taking memory
        if path.stat().st_size > LARGEST_FILE:
            raise InputError(f"{str(path)!r} is larger than any that LAFR saves; restore the file that it saved")
        return read_json(path)
    except OSError as error:
        raise InputError(f"{str(path)!r} cannot be read: {error.strerror}") from None
    # deep nesting exceeds Python's stack; wrong UTF-8 is a ValueError, as wrong JSON is
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!r} is not JSON in UTF-8; restore the file that LAFR saved") from None


def read_object(path: Path) -> dict[str, Any]:
    """Return the object that a JSON file holds; raises InputError where `read_small_json` does."""
    record = read_small_json(path)
    if not isinstance(record, dict):
        raise InputError(f"{str(path)!r} does not hold an object; restore the file that LAFR saved")
    return record
