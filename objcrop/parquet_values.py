"""Images in a column of a Parquet file: a value lies in a group of rows that is compressed as a whole.

So the last groups are kept, within `MEMORY`, and threads that want one that is being unpacked wait for it.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import OrderedDict
from concurrent.futures import Future
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import pyarrow as pa

from objcrop.errors import ObjcropError
from objcrop.image_bytes import open_source
from objcrop.place import Place, SourceFile
from objcrop.read_file import patiently

MEMORY = 256 << 20  # bytes of unpacked groups that a process keeps


class Group(NamedTuple):
    """Unpacked images: those of rows `first`, `first` + 1, … of the file."""

    first: int
    values: pa.ChunkedArray


_groups: OrderedDict[tuple[str, SourceFile, int], Future[Group]] = OrderedDict()
_lock = Lock()


def read_value(place: Place) -> bytes:
    """Return the bytes of an image in a Parquet file; errors as of `ImageBytes`."""
    group = group_of(place)
    value = group.values[place.offset - group.first]
    if not value.is_valid:
        raise OSError("it is null now")
    return bytes(value.as_py())


def group_of(place: Place) -> Group:
    """Return the group that an image lies in, unpacked: whoever reads on finds the neighbours in it.

    Raises:
        OSError: the group is damaged.
        ObjcropError: it is not the file that was indexed, or the file system fails for long.
    """
    assert place.source is not None
    os.close(open_source(place.path, place.source))
    ends = _ends(place.path, place.source)
    number = bisect_right(ends, place.offset)
    if number == len(ends):
        raise OSError("the file has no such row")
    key = (place.path, place.source, number)
    with _lock:
        known = _groups.get(key)
        coming: Future[Group] = known or Future()
        _groups[key] = coming
        _groups.move_to_end(key)
    if known is not None:
        return known.result()
    try:
        first = ends[number - 1] if number else 0
        coming.set_result(Group(first, _values(place.path, place.source.column, number)))
    except BaseException as error:
        with _lock:
            _groups.pop(key, None)
        coming.set_exception(error)
        raise
    _keep_within_memory()
    return coming.result()


def release() -> None:
    """Let go of all groups."""
    with _lock:
        _groups.clear()


def _keep_within_memory() -> None:
    with _lock:
        done = [(key, coming.result().values.nbytes) for key, coming in _groups.items() if coming.done()]
        too_much = sum(size for _, size in done) - MEMORY
        for key, size in done[:-1]:
            if too_much <= 0:
                break
            del _groups[key]
            too_much -= size


@lru_cache(maxsize=256)
def _ends(path: str, source: SourceFile) -> list[int]:
    """Return the row at which each group of a file ends."""
    import pyarrow.parquet as pq

    ends: list[int] = []
    facts = _read(path, lambda: pq.read_metadata(path))
    for number in range(facts.num_row_groups):
        ends.append((ends[-1] if ends else 0) + facts.row_group(number).num_rows)
    return ends


def _values(path: str, column: str, number: int) -> pa.ChunkedArray:
    import pyarrow.parquet as pq

    def unpacked() -> pa.ChunkedArray:
        with pq.ParquetFile(path) as file:
            return values_of(file.read_row_group(number, columns=[column], use_threads=False), column)

    return _read(path, unpacked)


def values_of(table: pa.Table | pa.RecordBatch, column: str) -> Any:
    """Return a column of bytes, by its path in the file ("image.bytes" is the field of a struct)."""
    import pyarrow.compute as pc

    if column in table.schema.names:
        return table.column(column)
    name, _, inner = column.rpartition(".")
    return pc.struct_field(table.column(name), inner)


def _read(path: str, work: Any) -> Any:
    """Return what `work` returns; damage is an error of the image, not of the disk."""
    try:
        return patiently(path, work)
    except (FileNotFoundError, ObjcropError):
        raise
    except (pa.ArrowException, OSError, MemoryError) as error:
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(f"its group of rows in the file is damaged: {cause}") from None


def _in_a_fork() -> None:
    global _lock
    _lock = Lock()  # another thread may have held it
    _groups.clear()


os.register_at_fork(after_in_child=_in_a_fork)
