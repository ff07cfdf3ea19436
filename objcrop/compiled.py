"""Loops that numba compiles: without the GIL, and kept on disk where the package's folder can be written."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import event

from objcrop.launcher import launched


def compiled(signature: Any = None, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator.

    Args:
        signature: numba's, for what is to be compiled once for all kinds of arrays; by default each kind has its own.
        **options: of `numba.jit`.
    """

    def decorator(function: Callable[..., Any]) -> Callable[..., Any]:
        # Said outright, for what is first called by a loop that may be inexact would be compiled inexact too.
        how = {"nopython": True, "nogil": True, "fastmath": False, **options}
        try:
            kept = numba.jit(cache=True, **how)(function)
        except RuntimeError:  # numba: no locator available, in a read-only installation
            return numba.jit(signature, **how)(function)
        _forget_what_is_older(kept)
        return numba.jit(signature, cache=True, **how)(function) if signature else kept

    return decorator


_newest = 0.0  # when one of the files was changed whose loops were looked at so far


def _forget_what_is_older(kept: Any) -> None:
    """Forget what was compiled before a loop that it is made of was changed, which numba looks for in its file alone.

    What a loop is made of has been decorated before it.
    """
    global _newest
    code = kept.py_func.__code__
    changed = os.stat(code.co_filename).st_mtime
    if changed <= time.time():  # by a clock that is ahead it would be compiled each time
        _newest = max(_newest, changed)
    names = f"{Path(code.co_filename).stem}.{kept.py_func.__qualname__}-*.nbi"
    for index in Path(kept.stats.cache_path).glob(names):
        with suppress(OSError):  # another process was first, or it may not be changed
            if index.stat().st_mtime < _newest:
                index.unlink()


class _SayOnce(event.Listener):
    """Says what there is to wait for when the first loop is compiled that was not found on disk."""

    said = False

    def on_start(self, begun: event.Event) -> None:
        place = launched()
        ours = begun.data["dispatcher"].py_func.__module__.startswith("objcrop.")
        if ours and not self.said and (place is None or place.rank == 0):
            self.said = True
            logging.getLogger("objcrop").warning("Compiling loops for this processor: up to half a minute, once.")

    def on_end(self, ended: event.Event) -> None:
        pass


event.register("numba:compile", _SayOnce())
