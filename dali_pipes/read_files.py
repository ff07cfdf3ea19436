"""Many files at once, or images inside tars, read and checked without Python: the training loop runs meanwhile.

Python opens, measures, reads and closes a file in six calls and gives its lock away and takes it again for each, beside
a training loop that waits for the same lock. Here three calls do it for 32 files. What cannot be read so is left to
those who know what to do about it (`objcrop.read_file`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from numba import types
from numpy.typing import NDArray

from objcrop.compiled import compiled
from objcrop.dali_pipes.plain_jpeg import MOST_PARTS, jpeg_parts
from objcrop.dali_pipes.reused_memory import ReusedMemory
from objcrop.errors import ObjcropError
from objcrop.image_bytes import open_source
from objcrop.place import Place

AT_ONCE = 32  # files open at a time, a thread
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # no pipe is waited for
_END = os.SEEK_END
_MOST = 1 << 24  # bytes of a file: memory that is kept is not for giants; and a folder says that it has 2^63

# Of the C library, by name: unlike addresses they can be kept on disk with what is compiled.
_open = types.ExternalFunction("open", types.int32(types.voidptr, types.int32))
_lseek = types.ExternalFunction("lseek", types.int64(types.int32, types.int64, types.int32))
_pread = types.ExternalFunction("pread", types.int64(types.int32, types.voidptr, types.int64, types.int64))
_close = types.ExternalFunction("close", types.int32(types.int32))


class FileRead(NamedTuple):
    """data uint8 (n,): the file, or a plain JPEG without metadata; size: of that one's pixels, None of what is none."""

    data: NDArray[np.uint8]
    size: tuple[int, int] | None


@compiled()
def _opened(paths, begins, files, lengths):
    """Open files and measure them, 0 for what has no length or too much; `paths` ends each with a 0."""
    for i in range(begins.size):
        files[i] = _open(paths[begins[i] :].ctypes, _FLAGS)
        length = _lseek(files[i], 0, _END) if files[i] >= 0 else 0
        lengths[i] = length if 0 <= length <= _MOST else 0


@compiled()
def _read(files, offsets, lengths, memory, begins, kept, sizes):
    """Read ranges of files, an offset of -1 standing for the whole file, into `memory` from `begins` on.

    kept int64 (n,): bytes of a plain JPEG left there, or of a file as it is, -1 where it could not be read; sizes int64
    (n, 2): width and height, 0 where it is no plain JPEG.
    """
    parts = np.empty((MOST_PARTS, 2), np.int64)
    for i in range(files.size):
        kept[i], sizes[i] = -1, 0
        first, length, done = max(offsets[i], 0), lengths[i], 0
        wanted = length + 1 if offsets[i] < 0 else length  # a byte more, which is there if the file is growing
        while 0 <= done < length and files[i] >= 0:
            got = _pread(files[i], memory[begins[i] + done :].ctypes, wanted - done, first + done)
            done = done + got if got > 0 else -1
        if length == 0 or done != length:
            continue
        data = memory[begins[i] : begins[i] + length]
        count, width, height = jpeg_parts(data, parts)
        kept[i] = length
        if count:
            sizes[i, 0], sizes[i, 1] = width, height
            at = parts[0, 1]  # the first part begins with the file
            for part in range(1, count):
                part_length = parts[part, 1] - parts[part, 0]
                data[at : at + part_length] = data[parts[part, 0] : parts[part, 1]]
                at += part_length
            kept[i] = at


@compiled()
def _closed(files):
    for file in files:
        if file >= 0:
            _close(file)


def file_memory(batch_size: int, threads: int, batches: int) -> ReusedMemory:
    """Return memory for the files of so many batches, each read by so many threads."""
    return ReusedMemory(kept=batches * (batch_size // AT_ONCE + threads))


def read_files(places: Sequence[Place], memory: ReusedMemory) -> list[FileRead | None]:
    """Read files and ranges of files.

    Args:
        places: on this machine.
        memory: where they are read to.

    Returns:
        None of those that are empty, growing, beyond 16 MiB, no regular file, Parquet's, or fail in whatever way.
    """
    found: list[FileRead | None] = []
    for first in range(0, len(places), AT_ONCE):
        found += _some(places[first : first + AT_ONCE], memory)
    return found


def _some(places: Sequence[Place], memory: ReusedMemory) -> list[FileRead | None]:
    n = len(places)
    offsets = np.array([-1 if place.source is None else place.offset for place in places], np.int64)
    lengths = np.array([place.length for place in places], np.int64)
    files = np.full(n, -1, np.int32)
    try:
        whole = np.flatnonzero(offsets < 0)
        files[whole], lengths[whole] = _open_files([places[i].path for i in whole.tolist()])
        sources = _open_sources(places)
        for i in np.flatnonzero(offsets >= 0).tolist():
            files[i] = sources.get(_file_of(places[i]), -1)
            lengths[i] = lengths[i] if files[i] >= 0 and lengths[i] <= _MOST else 0
        at = np.concatenate([[0], np.cumsum(lengths + 1)])
        room = memory.empty((1 << int(at[-1]).bit_length(),), np.uint8).numpy()  # a size that later files will have too
        kept, sizes = np.empty(n, np.int64), np.empty((n, 2), np.int64)
        _read(files, offsets, lengths, room, at[:-1], kept, sizes)
    finally:
        _closed(np.unique(files))
    return [
        None if length < 0 else FileRead(room[begin : begin + length], (width, height) if width else None)
        for begin, length, (width, height) in zip(at.tolist(), kept.tolist(), sizes.tolist())
    ]


def _open_files(paths: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    files, lengths = np.full(len(paths), -1, np.int32), np.zeros(len(paths), np.int64)
    names = np.frombuffer(os.fsencode("\0".join(paths)) + b"\0", np.uint8)
    begins = np.concatenate([[0], np.flatnonzero(names == 0)[:-1] + 1])
    if paths and len(begins) == len(paths):  # else there is a 0 within a name
        _opened(names, begins, files, lengths)
    return files, lengths


def _open_sources(places: Sequence[Place]) -> dict[Any, int]:
    """Open the files that hold several of the images, each once."""
    files: dict[Any, int] = {}
    for place in places:
        if place.source is not None and not place.source.column and _file_of(place) not in files:
            with suppress(OSError, ObjcropError):
                files[_file_of(place)] = open_source(place.path, place.source)
    return files


def _file_of(place: Place) -> Any:
    return place.path, place.source
