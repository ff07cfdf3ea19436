"""Files from disks and shares that fail now and then: what passes is waited for, and never taken for a bad file.

Only what a file holds, or that it is not there, makes an image bad. An error of the file system is tried again with
growing pauses, in all some twelve seconds, and then ends the work in a sentence.
"""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from typing import TypeVar

from objcrop.errors import ObjcropError

T = TypeVar("T")

# Errors of a disk, a share, a network or a limit; what else the system says (ENOENT, EACCES, …) is about the file.
_NAMES = """EIO ESTALE EMFILE ENFILE ENOMEM EINTR EAGAIN EBUSY ETIMEDOUT ENOBUFS EREMOTEIO ECONNRESET ECONNABORTED
ECONNREFUSED ENOTCONN ENETDOWN ENETUNREACH ENETRESET EHOSTDOWN EHOSTUNREACH ENOLINK ECOMM EPROTO ESHUTDOWN ENOLCK"""
PASSING = frozenset(getattr(errno, name) for name in _NAMES.split() if hasattr(errno, name))
BLOCK = 1 << 20  # bytes
PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4)  # seconds between tries


def patiently(path: str, work: Callable[[], T]) -> T:
    """Return what `work` returns, tried again where the file system fails in passing.

    Args:
        path: what it reads, for the sentence.
        work: may be called several times.

    Raises:
        ObjcropError: the same kind of error at every try.
        OSError: what is about the file itself.
    """
    for pause in (*PAUSES, None):
        try:
            return work()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            reason = os.strerror(error.errno or 0).lower()
            if pause is None:
                tries = len(PAUSES) + 1
                raise ObjcropError(f"{path} cannot be read in {tries} tries ({reason}): {_way_out(error)}.") from None
            if pause == PAUSES[-2]:
                logging.getLogger("objcrop").warning("%s: %s; trying again", path, reason)
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _way_out(error: OSError) -> str:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "raise the limit of open files (ulimit -n), or use fewer workers and threads"
    if error.errno in (errno.ENOMEM, errno.ENOBUFS):
        return "free some memory, or use fewer workers and threads"
    return "mend the disk or share it lies on, then run the same command again"


def open_file(path: str) -> int:
    """Open a regular file for reading and return its descriptor; a pipe, socket or device is refused, not waited for.

    Raises:
        OSError: it cannot be opened, or is no regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return descriptor


def read_file(path: str) -> bytes:
    """Return all bytes of a regular file.

    Raises:
        ObjcropError: the file system fails for long.
        OSError: it is missing, may not be read, or is no regular file.
    """

    def read() -> bytes:
        descriptor = open_file(path)
        try:
            data = os.read(descriptor, os.fstat(descriptor).st_size + 1)
            # One call gives 2 GiB at most, and a size may be none or an old one: on some shares, and of what grows.
            while more := os.read(descriptor, BLOCK):
                data += more
            return data
        finally:
            os.close(descriptor)

    return patiently(path, read)
