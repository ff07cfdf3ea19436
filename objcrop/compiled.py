"""Loops that numba compiles: without the GIL, and kept on disk where the package's folder can be written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba


def compiled(signature: Any = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator.

    Args:
        signature: numba's, for what is to be compiled once for all kinds of arrays; by default each kind has its own.
        **options: of `numba.jit`.
    """

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        how = {"nopython": True, "nogil": True, **options}
        try:
            return numba.jit(signature, cache=True, **how)(function)
        except RuntimeError:  # numba: no locator available, in a read-only installation
            return numba.jit(signature, **how)(function)

    return decorator
