"""Numbers, sizes, yes and no, and ids as tools and their users write them: as numbers, as text, as null.

Every function takes any value that JSON, XML or a CSV may hold and raises no error but `BadValue`. Digits are ASCII
ones: Python also reads "٣" and, in places, "²".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from objcrop.errors import printable, shown

T = TypeVar("T", bound=Hashable)
Id = int | str

ONE_CLASS = "object"  # of data sets whose annotations name none

_WHOLE = re.compile(r"(-?[0-9]{1,18})(?:\.0)?", re.ASCII)
_NO = ("", "0", "false", "no", "n", "f", "none", "null", "unspecified", "0.0")
_YES = ("1", "true", "yes", "y", "t", "1.0")


class BadValue(ValueError):
    """A value that has no plain meaning where it stands; the message says why, in a few words."""


def number(value: Any) -> float:
    """Return a value as a float: NaN for null and "nan", infinite for what no float holds.

    Raises:
        BadValue: no number.
    """
    if type(value) is float:
        return value
    if value is None:
        return math.nan
    if isinstance(value, (int, float, str)) and not isinstance(value, bool):
        try:
            if not isinstance(value, str) or (value.isascii() and "_" not in value):
                return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf  # type: ignore[operator]
        except ValueError:
            pass
    raise BadValue(f"{shown(value)} is no number")


def pixels(value: Any) -> int:
    """Return a side that an annotation states, in pixels; 0 where it states none or none that an image can have.

    Raises:
        BadValue: no number.
    """
    if type(value) is int and 0 < value < 2**31:
        return value
    side = number(value if value != "" else None)
    return int(side) if 0 < side < 2**31 and side == int(side) else 0


def yes_or_no(value: Any) -> bool:
    """Return a flag: null, "0" and "false" are no.

    Raises:
        BadValue: neither yes nor no.
    """
    if value is None or (isinstance(value, (int, float)) and value in (0, 1)):
        return bool(value)
    word = value.strip().lower() if isinstance(value, str) else None
    if word not in _YES + _NO:
        raise BadValue(f"{shown(value)} is neither yes nor no")
    return word in _YES


def plain_id(value: Any) -> Id:
    """Return an id such that ids of the same meaning are equal: 1, "1", " 01" and 1.0 are.

    Raises:
        BadValue: no id.
    """
    if type(value) is int:
        return value
    if isinstance(value, float) and math.isfinite(value) and value == int(value):
        return int(value)
    if isinstance(value, str) and value.strip():
        text = value.strip()
        whole = _WHOLE.fullmatch(text)
        return int(whole.group(1)) if whole else text
    raise BadValue(f"{shown(value)} is no id")


def text_id(value: Any) -> Id:
    """Return an id as text, so that "01" and "1" differ; else as `plain_id`."""
    read = plain_id(value)
    return value.strip() if isinstance(value, str) else str(read)


def class_name(value: Any) -> str:
    """Return a class as text: the name that it is, or its number.

    Raises:
        BadValue: neither.
    """
    try:
        return printable(value.strip() if isinstance(value, str) and value.strip() else str(plain_id(value)))
    except BadValue:
        raise BadValue(f"the label {shown(value)} is no class") from None


class AmbiguousId(BadValue):
    """Ids that belong to two things whichever way they are read."""


def id_table(pairs: Iterable[tuple[Any, T]]) -> tuple[dict[Id, T], Callable[[Any], Id]]:
    """Return a dictionary from ids to what they stand for, and the function that makes a key of an id.

    Ids are compared as numbers where that keeps them apart, else as text.

    Args:
        pairs: (id, what it stands for); the same pair may come twice.

    Raises:
        AmbiguousId: an id stands for two things; both are named.
        BadValue: no id.
    """
    pairs = list(pairs)
    for key_of in (plain_id, text_id):
        table: dict[Id, T] = {}
        clash = None
        for raw, thing in pairs:
            known = table.setdefault(key_of(raw), thing)
            if known != thing:
                clash = AmbiguousId(f"the id {shown(raw)} is that of {shown(known)} and of {shown(thing)}")
                break
        if clash is None:
            return table, key_of
    assert clash is not None
    raise clash
