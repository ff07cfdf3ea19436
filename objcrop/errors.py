"""The two ways objcrop fails: a sentence each, an exit code each (1 failed, 2 wrong use)."""

from __future__ import annotations

import errno
import os
import re
import reprlib
import tempfile
from contextvars import ContextVar
from typing import Any


class ObjcropError(Exception):
    """Something went wrong; the message is one sentence that names the file, row or option and the way out.

    The command line prints the sentence without a traceback and exits with `exit_code`.
    """

    exit_code = 1


class UsageError(ObjcropError):
    """The call itself was wrong: an unknown name, an option out of range, options that exclude each other."""

    exit_code = 2


def shown(value: Any) -> str:
    """Return a value as one short line, whatever it is: nested, endless, unprintable."""
    short = reprlib.Repr()
    short.maxlevel, short.maxlist, short.maxdict, short.maxstring, short.maxlong = 2, 6, 3, 60, 30
    try:
        return printable(short.repr(value))
    except Exception:  # repr of the user's own object, or Python's limit on the digits of a number
        return f"a value of type {type(value).__name__} that is too long to show"


def printable(name: str) -> str:
    """Return a name with what is not UTF-8 or cannot be printed escaped, so that it takes one line."""
    if name.isprintable():
        return name
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)


def one_of(value: str, names: object, what: str) -> str:
    """Return `value` when it is one of `names`, else raise a `UsageError` that lists them.

    Args:
        value: what the user gave.
        names: the names allowed (any iterable of strings).
        what: the option's name, without dashes: a caller of the library has no others.
    """
    known = list(names)  # type: ignore[call-overload]
    if value not in known:
        listed = ", ".join(f'"{name}"' if "," in name else name for name in known)
        raise UsageError(f"{what} is '{value}', but it must be one of: {listed}.")
    return value


def refuse_without_gpu(device: str) -> None:
    """Raise a `UsageError` where `device` asks for a GPU and PyTorch finds no GPU."""
    import torch

    if device not in ("auto", "cpu") and not torch.cuda.is_available():
        way = way_out("pass --device cpu (device='cpu')", "take device='cpu'")
        raise UsageError(f"device is '{device}', but PyTorch finds no GPU here; {way}.")


# The options of the command that is running, set by the command line; None in a program that uses the library.
options_at_hand: ContextVar[frozenset[str] | None] = ContextVar("options_at_hand", default=None)


def options_named(sentence: str) -> set[str]:
    """Return the options (--xyz) that a sentence names as the reader's own, those of commands in backticks left out."""
    return set(re.findall(r"(?<![\w-])--[a-z][\w-]*", re.sub(r"`[^`]*`", "", sentence)))


def way_out(*ways: str) -> str:
    """Return the first of these pieces of advice that can be taken: whose options the command at hand has.

    One function of the library serves several commands, and they do not have the same options.

    Args:
        ways: advice, the best first; the last names no option but in a whole command in backticks.
    """
    at_hand = options_at_hand.get()
    return next((way for way in ways[:-1] if at_hand is None or options_named(way) <= at_hand), ways[-1])


def in_a_sentence(error: BaseException) -> str | None:
    """Return what the operating system or the memory's end has to say as one sentence; None for any other error."""
    if isinstance(error, OSError):
        return _os_sentence(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's and CuPy's; neither is imported here
        return "the GPU's memory is full; take a smaller batch, smaller views, or end what else runs on it."
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):  # torch's on a CPU is a RuntimeError
        return "the memory is full; take less at a time (a smaller batch, fewer workers), or end what else runs here."
    if isinstance(error, RecursionError):
        return "a file is nested too deep to be read; look at the annotations, recipe or JSON that was given."
    return None


def _os_sentence(error: OSError) -> str:
    reason = (error.strerror or str(error) or type(error).__name__).strip().rstrip(".")
    files = [os.fsdecode(file) for file in (error.filename, error.filename2) if isinstance(file, (str, bytes))]
    where = f"{' → '.join(files)}: " if files else ""
    return f"{where}{reason}; {_OS_WAYS.get(error.errno or 0, _no_way)(bool(files))}."


def _no_way(named: bool) -> str:
    return "check the path and its rights" if named else "check the disk, its space and rights"


def _full(named: bool) -> str:
    if named:
        return "free some space there"
    try:
        return f"free some space, for temporary files in {tempfile.gettempdir()} too (TMPDIR names another folder)"
    except OSError:
        return "free some space, and set TMPDIR to a folder for temporary files"


_OS_WAYS = {
    errno.ENOSPC: _full,
    errno.EDQUOT: _full,
    errno.EMFILE: lambda named: "raise the limit on open files (ulimit -n), or take fewer workers",
    errno.ENAMETOOLONG: lambda named: "give a shorter name",
    errno.EROFS: lambda named: "name a place that can be written",
}
