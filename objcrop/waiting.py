"""Waiting for others: said after ten seconds, and given up when nothing has moved for long."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from objcrop.errors import ObjcropError

SAY_AFTER = 10.0  # seconds until a wait is said; again whenever it has lasted twice as long
GIVE_UP_AFTER = 3600.0  # seconds without anything new
PAUSE = 0.1  # seconds between two looks


def wait_until_none_missing(missing: Callable[[], Sequence[int]], said: Callable[[Sequence[int]], str]) -> None:
    """Return when nothing is missing.

    Args:
        missing: looks what is; that it is another set than before is progress.
        said: names what is missing and where, to go after "waiting for" and "gave up waiting for".

    Raises:
        ObjcropError: nothing moved for `GIVE_UP_AFTER` seconds.
    """
    began = moved = time.monotonic()
    say_at, before = began + SAY_AFTER, None
    while left := list(missing()):
        now = time.monotonic()
        if left != before:
            moved, before = now, left
        if now - moved > GIVE_UP_AFTER:
            raise ObjcropError(
                f"gave up waiting for {said(left)}: nothing new came for {GIVE_UP_AFTER / 60:.0f} minutes."
            )
        if now > say_at:
            logging.getLogger("objcrop").warning("Waiting for %s, %.0f s so far.", said(left), now - began)
            say_at = now + (now - began)
        time.sleep(PAUSE)


def listed(numbers: Sequence[int], most: int = 8) -> str:
    """Return "rank 3" or "ranks 1, 2 and 5", long lists cut."""
    some = [str(number) for number in numbers[:most]]
    if len(numbers) == 1:
        return f"rank {some[0]}"
    if len(numbers) > most:
        return f"ranks {', '.join(some)} and {len(numbers) - most} more"
    return f"ranks {', '.join(some[:-1])} and {some[-1]}"
