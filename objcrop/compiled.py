"""Loops that numba compiles: without the GIL, and kept on disk where the package's folder can be written."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numba
from numba.core import event


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


class _SayOnce(event.Listener):
    """Says what there is to wait for when the first loop is compiled that was not found on disk."""

    said = False

    def on_start(self, event: event.Event) -> None:
        if not self.said and event.data["dispatcher"].py_func.__module__.startswith("objcrop."):
            self.said = True
            logging.getLogger("objcrop").warning("Compiling loops for this processor, once: some twenty seconds.")

    def on_end(self, event: event.Event) -> None:
        pass


event.register("numba:compile", _SayOnce())
