"""What an option's value may be: read from YAML, a flag or a call, and made the type and range that its option states.

A *kind* is a function from what was given to the value; it raises `Unfit` with what the value must be. Kinds are made
by the functions below; `value_of` turns an `Unfit` into the sentence that the user reads.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

from objcrop.errors import UsageError, shown

Kind = Callable[[Any], Any]

_DIGITS = re.compile(r"[+-]?[0-9]{1,400}")
_DECIMAL = re.compile(r"[+-]?([0-9]{1,400}(\.[0-9]{0,400})?|\.[0-9]{1,400})([eE][+-]?[0-9]{1,9})?")


class Unfit(Exception):
    """A value is not of its kind; the message says what it must be."""


def value_of(name: str, value: Any, kind: Kind) -> Any:
    """Return an option's value as its kind has it.

    Raises:
        UsageError: the value is not of that kind; the sentence names the option and what it must be.
    """
    try:
        return kind(value)
    except Unfit as must:
        raise UsageError(f"{name} is {shown(value)}, but it must be {must}.") from None


def whole(low: int, high: int) -> Kind:
    """Return the kind of whole numbers from `low` to `high`, exact: no number passes through a float."""
    must = f"a whole number from {_power(low)} to {_power(high)}"

    def read(value: Any) -> int:
        number: int | None = None
        if isinstance(value, bool):
            pass
        elif isinstance(value, Integral):
            number = int(value)
        elif isinstance(value, Real):
            size = float(value)
            if size.is_integer() and abs(size) <= 2**53:  # larger ones have lost digits on their way
                number = int(size)
        elif isinstance(value, str) and _DIGITS.fullmatch(value):
            number = int(value)
        if number is None or not low <= number <= high:
            raise Unfit(must)
        return number

    return read


def number(low: float, high: float, *, above: bool = False, below: bool = False) -> Kind:
    """Return the kind of finite numbers from `low` to `high`; YAML reads 1e-2 as text, and it is a number too.

    Args:
        low: smallest.
        high: largest.
        above: whether `low` itself is too small.
        below: whether `high` itself is too large.
    """
    ends = f"{'above' if above else 'from'} {low:g} {'and below' if below else 'to'} {high:g}"

    def read(value: Any) -> float:
        try:
            is_number = isinstance(value, Real) and not isinstance(value, bool)
            is_number |= isinstance(value, str) and bool(_DECIMAL.fullmatch(value))
            found = float(value) if is_number else math.nan
        except OverflowError:
            found = math.inf
        inside = low <= found <= high and not (above and found == low) and not (below and found == high)
        if not inside:  # not a number compares to nothing
            raise Unfit(f"a number {ends}")
        return found

    return read


def pair(of: Kind) -> Kind:
    """Return the kind of two values, the smaller first; the text "a,b" is two values as well."""

    def read(value: Any) -> tuple[Any, Any]:
        parts = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, (list, tuple)) or len(parts) != 2:
            raise Unfit("two numbers, the smaller first")
        try:
            low, high = (of(part.strip() if isinstance(part, str) else part) for part in parts)
        except Unfit as must:
            raise Unfit(f"two numbers, the smaller first, each {must}") from None
        if low > high:
            raise Unfit("two numbers, the smaller first")
        return low, high

    return read


def or_auto(of: Kind) -> Kind:
    """Return the kind of `of`'s values and the word "auto"."""

    def read(value: Any) -> Any:
        try:
            return "auto" if isinstance(value, str) and value == "auto" else of(value)
        except Unfit as must:
            raise Unfit(f"'auto' or {must}") from None

    return read


def word(*names: str) -> Kind:
    """Return the kind of these words."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or value not in names:
            raise Unfit(f"one of: {', '.join(names)}")
        return value

    return offering(*names)(read)


def offering(*words: str) -> Callable[[Kind], Kind]:
    """Note words of a kind that a shell may offer; `offered` returns them."""

    def noted(kind: Kind) -> Kind:
        kind.offers = words  # type: ignore[attr-defined]
        return kind

    return noted


def offered(kind: Kind) -> tuple[str, ...]:
    """Return words of a kind, none of one whose values are no words."""
    return getattr(kind, "offers", ())


def text(like: str = ".+", must: str = "a word, a name or a path in one line") -> Kind:
    """Return the kind of printable texts that match a pattern as a whole."""
    pattern = re.compile(like)

    def read(value: Any) -> str:
        if not isinstance(value, str) or not value.isprintable() or not pattern.fullmatch(value):
            raise Unfit(must)
        return value

    return read


def flag(value: Any) -> bool:
    """The kind of true and false."""
    of_numpy = type(value).__module__ == "numpy" and type(value).__name__ in ("bool", "bool_")
    if not (isinstance(value, bool) or of_numpy):
        raise Unfit("true or false")
    return bool(value)


def _power(n: int) -> str:
    """Return a bound as people write it."""
    return "2**64 - 1" if n == 2**64 - 1 else f"2**{n.bit_length() - 1}" if n >= 2**20 and n & (n - 1) == 0 else str(n)


SEED = whole(0, 2**64 - 1)  # of every generator in objcrop: a Philox key of two 32-bit words


def seed_of(value: Any) -> int:
    """Return a seed as a Python int.

    Raises:
        UsageError: it is no whole number from 0 to 2**64 - 1.
    """
    return int(value_of("seed", value, SEED))
