"""The encoded bytes of images, wherever they lie: one reader for loaders, cache, proposals, pictures and the index.

A file is read whole, an image inside a tar, zip or Arrow file as a range of bytes, a value in Parquet with the group
that it is compressed in, an object by one request. What lies far away is fetched ahead, many at a time.
"""

from __future__ import annotations

import io
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, TYPE_CHECKING, Any, TypeVar, cast

from objcrop.errors import ObjcropError, way_out
from objcrop.place import Place, SourceFile, is_address, under
from objcrop.read_file import open_file, patiently, read_file

if TYPE_CHECKING:
    from objcrop.catalog import Catalog

IN_FLIGHT = 64  # requests at a time: at 30 ms each some 2,000 images a second
AHEAD = 2 * IN_FLIGHT  # images asked for before they are wanted
T = TypeVar("T")
HEADER = 1 << 14  # bytes of an image read at a time for its header


class ImageBytes:
    """The bytes of a catalog's images.

    Args:
        catalog: the images.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        # Whether some lie on other machines. A forked child cannot fetch from there: obstore's threads are not forked.
        self.far = is_address(catalog.root) or any(is_address(source.name) for source in catalog.sources)
        self._coming: dict[int, Future[bytes]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def __call__(self, row: int) -> bytes:
        """Return the bytes of the image in `row`.

        Raises:
            FileNotFoundError: the file or object is not there.
            OSError: what is about this file itself.
            ObjcropError: the file system or the network fails for long, or a file of many images is not the one that
                was indexed.
        """
        coming = self._coming.pop(row, None)
        return self._read(row) if coming is None else coming.result()

    def near(self, rows: Sequence[int]) -> list[Place] | None:
        """Return where images lie, None where that is not on this machine or a cache is asked first."""
        catalog = self._catalog
        if self.far or catalog.disk_cache is not None:
            return None
        if catalog.all_are_files:
            return [Place(under(catalog.root, key), key) for key in catalog.keys(rows)]
        return [catalog.place(row) for row in rows]

    def ahead(self, rows: Iterable[int]) -> None:
        """Begin to fetch images that will be asked for soon, once each; nothing for those that lie on this machine."""
        if not self.far:
            return
        self._pool = self._pool or ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="objcrop-fetch")
        for row in rows:
            if row not in self._coming:
                self._coming[row] = self._pool.submit(self._read, row)

    def ahead_of(self, items: Iterable[T], rows_of: Callable[[T], Sequence[int]]) -> Iterator[T]:
        """Yield items in turn, the images of those that follow being fetched meanwhile.

        Args:
            items: batches or parts of the catalog.
            rows_of: the rows that an item will ask for.
        """
        waiting: deque[tuple[T, int]] = deque()
        count = 0
        try:
            for item in items:
                rows = rows_of(item)
                self.ahead(rows)
                waiting.append((item, len(rows)))
                count += len(rows)
                while waiting and (not self.far or count - waiting[0][1] >= AHEAD):
                    first, size = waiting.popleft()
                    count -= size
                    yield first
            for item, _ in waiting:
                yield item
        finally:
            self._forget()

    def _read(self, row: int) -> bytes:
        place, disk = self._catalog.place(row), self._catalog.disk_cache
        data = None if disk is None else disk.get(place)
        if data is None:
            data = read_place(place)
            if disk is not None:
                for at, found in _with_neighbours(place, data):
                    disk.put(at, found)
        return data

    def _forget(self) -> None:
        """Let go of what was asked for ahead and is not wanted any more."""
        for coming in list(self._coming.values()):
            coming.cancel()
        self._coming.clear()


def _with_neighbours(place: Place, data: bytes) -> Iterator[tuple[Place, bytes]]:
    """Yield an image that was read and where it lies, in Parquet all that were unpacked to come to it."""
    if place.source is None or not place.source.column:
        yield place, data
        return
    from objcrop.parquet_values import group_of

    group = group_of(place)
    for i, value in enumerate(group.values):
        if value.is_valid:
            yield place._replace(offset=group.first + i), bytes(value.as_py())


def read_place(place: Place) -> bytes:
    """Return an image's bytes; errors as of `ImageBytes`."""
    if is_address(place.path):
        from objcrop.object_storage import fetch

        return fetch(place)
    source = place.source
    if source is None:
        return read_file(place.path)
    if source.column:
        from objcrop.parquet_values import read_value

        return read_value(place)

    def read() -> bytes:
        descriptor = open_source(place.path, source)
        try:
            data = os.pread(descriptor, place.length, place.offset)
        finally:
            os.close(descriptor)
        if len(data) < place.length:
            raise another_file(place.path)
        return data

    return patiently(place.path, read)


def open_place(place: Place, whole: bool = False) -> IO[bytes]:
    """Open an image for reading a part of it; errors as of `ImageBytes`.

    Args:
        place: where it lies.
        whole: all of it will be read, so that one request for all is the fastest.
    """
    if is_address(place.path):
        from objcrop.object_storage import open_object

        return io.BytesIO(read_place(place)) if whole else open_object(place)
    if place.source is None:
        return open(open_file(place.path), "rb")
    if whole or place.source.column:
        return io.BytesIO(read_place(place))
    file = open_source(place.path, place.source)

    def read(at: int, length: int) -> bytes:
        return patiently(place.path, lambda: os.pread(file, length, place.offset + at))

    return cast(IO[bytes], io.BufferedReader(RangeFile(place.length, read, lambda: os.close(file)), HEADER))


class RangeFile(io.RawIOBase):
    """A range of bytes as a file of its own.

    Args:
        length: bytes.
        read: returns so many bytes from a place in it on, fewer or none at its end.
        done: called once, when it is closed.
    """

    def __init__(self, length: int, read: Callable[[int, int], bytes], done: Callable[[], None] = lambda: None) -> None:
        self._length, self._read, self._done, self._at = length, read, done, 0

    def readable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place, as of any file."""
        self._at = max(offset + (0, self._at, self._length)[whence], 0)
        return self._at

    def readinto(self, buffer: Any) -> int:
        """Fill the buffer as far as there are bytes, and return how many."""
        data = self._read(self._at, max(min(len(buffer), self._length - self._at), 0))
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def close(self) -> None:
        """Let go of what is read from."""
        if not self.closed:
            self._done()
        super().close()


def open_source(path: str, source: SourceFile) -> int:
    """Open a file of many images, which must be the one that was indexed, and return its descriptor."""
    try:
        descriptor = open_file(path)
    except FileNotFoundError:
        way = way_out("say with --root where it is now", "move it back, or index it where it is now")
        raise ObjcropError(f"{path}, which holds images of the catalog, is not there; {way}.") from None
    found = os.fstat(descriptor)
    if (found.st_size, changed(found)) != (source.size, source.changed):
        os.close(descriptor)
        raise another_file(path)
    return descriptor


def source_at(root: str, name: str) -> SourceFile:
    """Return a file of many images as it is now; `name` is relative to the root, errors as of `ImageBytes`."""
    path = under(root, name)
    try:
        if is_address(path):
            from objcrop.object_storage import facts_of

            return SourceFile(name, *facts_of(path))
        found = patiently(path, lambda: os.stat(path))
        return SourceFile(name, found.st_size, changed(found))
    except OSError as error:
        said = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
        raise ObjcropError(f"{path} {said}; check the path or address.") from None


def changed(found: os.stat_result) -> str:
    """Return when a file was last changed, as `SourceFile` holds it."""
    return str(int(found.st_mtime))


def another_file(path: str) -> ObjcropError:
    """Return the error of a file of many images that is not what it was when it was indexed."""
    return ObjcropError(
        f"{path} was changed after it was indexed (its size or time is another); make the catalog again with "
        "`objcrop index`, boxes stay good if the images are the same."
    )
