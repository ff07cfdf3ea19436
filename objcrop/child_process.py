"""A function in a process of its own: a crash or a hang there ends as a sentence here.

GPU libraries die by signals, and take their process along. What may die that way is called through a `Child`: it works
call after call in one process, and after a death the next call starts another.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, TypeVar

from objcrop.errors import printable

# Seconds without a word after which a child is taken to hang. Those at work say so after every batch, and what may take
# longest between two words is the start: torch, CUDA and DALI, from a slow disk.
QUIET = 120.0
ENDS = 10.0  # seconds that one has to end

Item = TypeVar("Item")


class ChildDied(Exception):
    """A child crashed, raised, or was ended because it hung; the message says which, in a few words."""


class Child:
    """Calls a function in a process of its own; use it in a `with`.

    Args:
        function: of a module's top level. It may hand what it walks to `alive`.
        quiet: seconds without a word after which the child is ended.
    """

    def __init__(self, function: Callable[..., Any], quiet: float = QUIET) -> None:
        self.function, self.quiet = function, quiet
        self._process: Any = None
        self._said = tempfile.NamedTemporaryFile(prefix="objcrop-child-")  # noqa: SIM115, closed by __exit__

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if self._process is not None and error is None:  # it ends as other processes do, unless even that hangs
            self._pipe.close()
            self._process.join(ENDS)
        self._end()
        self._said.close()

    def __call__(self, *arguments: Any) -> Any:
        """Return what the function returns.

        Raises:
            ChildDied: the child did not live to return it, or the function raised; the next call starts anew.
        """
        if self._process is None:
            self._start()
        try:
            self._pipe.send(arguments)
            while self._pipe.poll(self.quiet):
                kind, value = self._pipe.recv()
                if kind == "returned":
                    return value
                if kind == "raised":
                    self._end()
                    raise ChildDied(value)
            trouble = f"no word for {self.quiet:.0f} s"
            os.kill(self._process.pid, signal.SIGABRT)  # it says where it is
            self._process.join(ENDS)
        except (EOFError, ConnectionError):
            self._process.join()
            trouble = end_of(self._process.exitcode)
        except BaseException:
            self._end()
            raise
        self._end()
        raise ChildDied(trouble)

    def said(self) -> str:
        """Return what the children printed: their libraries' words, and where they were when they died."""
        self._said.seek(0)
        return self._said.read().decode(errors="replace")

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")  # a forked child has no use of CUDA
        self._pipe, theirs = context.Pipe()
        chosen = multiprocessing.get_start_method(allow_none=True)
        self._process = context.Process(target=_serve, args=(theirs, self.function, self._said.name, chosen))
        self._process.start()
        theirs.close()  # so that its end is seen here

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._pipe.close()
            self._process = None


def alive(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items, telling the parent between them that this child is at work; in no child it only yields them."""
    told = time.monotonic()
    for item in items:
        yield item
        if _to_parent is not None and time.monotonic() - told > 1:  # seldom: benches measure through this
            _to_parent.send(("alive", None))
            told = time.monotonic()


_to_parent: Connection | None = None


def _serve(pipe: Connection, function: Callable[..., Any], said: str, start_method: str | None) -> None:
    """Be the child: answer calls until the parent is gone."""
    global _to_parent
    _to_parent = pipe
    multiprocessing.set_start_method(start_method, force=True)  # else children of a spawned process are spawned too
    said_there = os.open(said, os.O_WRONLY | os.O_APPEND)
    for standard in (1, 2):
        os.dup2(said_there, standard)
    faulthandler.enable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent's to answer
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            arguments = pipe.recv()
            try:
                pipe.send(("returned", function(*arguments)))
            except Exception as error:
                pipe.send(("raised", in_a_line(error)))


def in_a_line(error: BaseException, typed: bool = False) -> str:
    """Return an error's first line, behind its type where that is wanted or there are no words."""
    # DALI begins with the operator and where the graph was written; its reason comes behind that.
    lines = str(error).rpartition("encountered:")[2].strip().splitlines()
    words = [type(error).__name__] if typed or not lines else []
    return ": ".join([*words, *(printable(line)[:300] for line in lines[:1])])


def end_of(code: int) -> str:
    """Return how a process ended, by its exit code as `subprocess` gives it."""
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
