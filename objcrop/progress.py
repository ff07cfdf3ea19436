"""Long work says how far it is: with one kind of bar, one kind of line, or not at all.

How loud objcrop is, is the level of the logger "objcrop" (`--quiet`, `--verbose`): INFO says what is read, decided and
written too; WARNING is the default; ERROR leaves out warnings, bars and lines.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
EVERY = 5.0  # seconds between lines where there is no bar
terminal = threading.Lock()  # held by the bar that is on it; work within that work says lines, above the bar
log = logging.getLogger("objcrop")


def quiet() -> bool:
    """Whether only results and errors are to be shown."""
    return not log.isEnabledFor(logging.WARNING)


def tracked(
    items: Iterable[T], total: int, what: str, *, done: int = 0, size: Callable[[T], int] = lambda item: 1
) -> Iterator[T]:
    """Yield `items`; say how many, how fast, how long yet: a bar on a terminal, a line every five seconds elsewhere.

    Args:
        items: what is worked on.
        total: how many there are in all.
        what: is done to them.
        done: how many were done before.
        size: how many one of `items` counts for.
    """
    from rich.console import Console

    console, began = Console(stderr=True), time.monotonic()
    if quiet():
        yield from items
    elif console.is_terminal and terminal.acquire(blocking=False):
        try:
            yield from _with_bar(items, total, what, done, size, console)
        finally:
            terminal.release()
    else:
        yield from _with_lines(items, total, what, done, size)
    log.info("%s took %s.", what.capitalize(), duration(time.monotonic() - began))


def _with_bar(
    items: Iterable[T], total: int, what: str, done: int, size: Callable[[T], int], console: Any
) -> Iterator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"))
    began = shown = time.monotonic()
    before = done
    # No thread draws it, which the work would have to share Python with.
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, auto_refresh=False) as bar:
        task = bar.add_task(what, total=total, completed=done, rate="")
        bar.refresh()
        for item in items:
            yield item
            done += size(item)
            now = time.monotonic()
            bar.update(task, completed=done, rate=_per_second(done - before, now - began))
            if now - shown > 0.1:
                shown = now
                bar.refresh()


def _with_lines(items: Iterable[T], total: int, what: str, done: int, size: Callable[[T], int]) -> Iterator[T]:
    began = shown = time.monotonic()
    before = done
    for item in items:
        yield item
        done += size(item)
        now = time.monotonic()
        if now - shown > EVERY:
            shown = now
            left = (now - began) * (total - done) / max(done - before, 1)
            rate = _per_second(done - before, now - began)
            print(f"{what}: {done} of {total}, {rate}, {duration(left)} left", file=sys.stderr, flush=True)


def _per_second(count: int, seconds: float) -> str:
    rate = count / max(seconds, 1e-9)
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def duration(seconds: float) -> str:
    """Return a time as it is read."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
