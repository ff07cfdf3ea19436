"""Files written whole or not at all, places tried before the work begins, and only regular files opened.

Whoever reads a file meets the old content or the new, never a part.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from objcrop.errors import ObjcropError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

StrPath = str | os.PathLike[str]
UNFINISHED = ".objcrop."  # how the names of parts begin; a kill leaves them


@contextmanager
def whole_file(path: StrPath) -> Iterator[Path]:
    """Give an empty file beside `path` to write to; it becomes `path` when the block ends, and is removed if it fails.

    Args:
        path: the file to make or replace; where it is a link, the file that it leads to.

    Raises:
        OSError: it cannot be made or renamed; what was there stays. The error names `path`.
    """
    target = Path(os.path.realpath(path))
    part = None
    try:
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=UNFINISHED)
        part = Path(name)
        os.close(handle)
        yield part
        part.chmod(0o644)  # mkstemp's files are for their owner alone
        size = part.stat().st_size
        os.replace(part, target)
        logging.getLogger("objcrop").info("Wrote %s: %s bytes.", path, f"{size:,}")
    except OSError as error:
        if error.filename is None or part is None or Path(os.fsdecode(error.filename)) == part:
            error.filename, error.filename2 = os.fspath(path), None
        raise
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def save_picture(figure: Figure, path: StrPath, dpi: int = 150) -> None:
    """Write a matplotlib figure whole or not at all; the suffix says the format (.png, .pdf, .svg).

    Raises:
        ObjcropError: the suffix is none that matplotlib knows, or the file cannot be written.
    """
    form = Path(path).suffix.removeprefix(".") or "png"
    try:
        with whole_file(path) as part:
            figure.savefig(part, dpi=dpi, format=form)
    except (OSError, ValueError) as error:
        raise ObjcropError(f"the picture {path} cannot be written ({_reason(error)}); name another place.") from None


def refuse_unwritable(path: StrPath, suffixes: Sequence[str] = ()) -> None:
    """Raise unless a file can be written at `path`, found out by writing a block beside it: called before the work.

    Args:
        path: the file that will be written.
        suffixes: those it may have; none for any.

    Raises:
        UsageError: another suffix.
        ObjcropError: its folder is missing or cannot be written, or something that is no file has its name.
    """
    target = Path(path)
    if suffixes and target.suffix not in suffixes:
        raise UsageError(f"the output '{target}' must end in {' or '.join(suffixes)}.")
    try:
        mode = _mode(target)
        if mode is not None and not stat.S_ISREG(mode):
            raise ObjcropError(f"the output {target} is {_kind(mode)}, not a file; name another.")
        folder = Path(os.path.realpath(target)).parent
        if _mode(folder) is None:
            raise ObjcropError(f"the folder {folder} for the output {target.name} is not there; make it first.")
        _write_a_block(folder)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise ObjcropError(f"the output {target} cannot be written ({_reason(error)}); name another place.") from None


def refuse_unwritable_folder(path: StrPath) -> None:
    """Raise unless a folder is at `path`, or can be made there, and files can be written in it; makes nothing.

    Raises:
        ObjcropError: it cannot, or something that is no folder has its name.
    """
    folder = Path(path)
    try:
        mode = _mode(folder)
        if mode is not None and not stat.S_ISDIR(mode):
            raise ObjcropError(f"the output {folder} is {_kind(mode)}, not a folder; name another.")
        there = Path(os.path.abspath(folder))
        while _mode(there) is None:
            there = there.parent
        _write_a_block(there)
    except (OSError, ValueError) as error:
        raise ObjcropError(f"the folder {folder} cannot be written ({_reason(error)}); name another place.") from None


def refuse_overwriting(output: StrPath, source: StrPath) -> None:
    """Raise a `UsageError` where an output is the file that the work reads."""
    if os.path.exists(output) and os.path.exists(source) and os.path.samefile(output, source):
        raise UsageError(f"the output {output} is what is read; name another file, lest it be lost.")


def regular_file(path: StrPath, what: str, way: str) -> Path:
    """Return `path` where it is a regular file: opening anything else may wait for ever (a named pipe, a terminal).

    Args:
        path: the file to read.
        what: names it in the error.
        way: the way out where it is not there.

    Raises:
        ObjcropError: it is missing, cannot be looked at, or is no file.
    """
    file = Path(path)
    try:
        mode = _mode(file)
    except (OSError, ValueError) as error:
        raise ObjcropError(f"the {what} {file} cannot be read ({_reason(error)}); check the path.") from None
    if mode is None:
        raise ObjcropError(f"the {what} {file} is not there; {way}.")
    if not stat.S_ISREG(mode):
        raise ObjcropError(f"the {what} {file} is {_kind(mode)}, not a file; {way}.")
    return file


def read_text(path: StrPath, what: str, way: str) -> str:
    """Return the UTF-8 text of a regular file; see `regular_file`.

    Raises:
        ObjcropError: it is missing, no file, cannot be read, or is not UTF-8.
    """
    file = regular_file(path, what, way)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ObjcropError(f"the {what} {file} cannot be read ({_reason(error)}); {way}.") from None


def _mode(path: Path) -> int | None:
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return None


def _kind(mode: int) -> str:
    kinds = ((stat.S_ISDIR, "a folder"), (stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((name for holds, name in kinds if holds(mode)), "a file" if stat.S_ISREG(mode) else "a device")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return "not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)


def _write_a_block(folder: Path) -> None:
    """Make a small file in `folder` and remove it: rights, mounts, quotas and full disks all have their say."""
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    handle, name = tempfile.mkstemp(dir=folder, prefix=UNFINISHED)
    try:
        os.write(handle, bytes(4096))
    finally:
        os.close(handle)
        os.unlink(name)
