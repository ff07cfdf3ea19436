"""A cache of encoded images on a local disk, for what lies far away: filled as it is read, within a number of bytes.

Images are appended to segments, files of a thirty-second of the limit; where there would be too many, the one that was
not used for the longest time goes. An index beside them, a hash table in a file, says where an image lies. Neither is
trusted: an image is given only where its checksum holds, which begins with its name. So a process or a machine may stop
at any moment, and nothing is to be mended afterwards. Several processes may share a folder: who appends holds a lock,
who reads needs none.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import struct
import zlib
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

from objcrop.errors import ObjcropError
from objcrop.place import Place, StrPath
from objcrop.whole_file import refuse_unwritable_folder

SEGMENTS = 32  # as many fit into the limit
BUCKETS, SLOTS = 1 << 18, 16  # of the index: 4 million images in up to 128 MiB
SLOT = struct.Struct("<12sIIIq")  # an image's name, segment, checksum, length (0: no image) and where it begins
BUCKET = SLOTS * SLOT.size  # bytes


class DiskCache:
    """Images by where they lie.

    Args:
        folder: where the files are; made where it is not there.
        gigabytes: the most that the images may take, of 10**9 bytes.

    Raises:
        ObjcropError: the folder cannot be written.
    """

    def __init__(self, folder: StrPath, gigabytes: float) -> None:
        self.folder, self.limit = Path(os.path.abspath(folder)), int(gigabytes * 1e9)
        self._gigabytes, self._most = gigabytes, self.limit // SEGMENTS
        self._growing: tuple[int, FileIO] | None = None  # the segment that this process appends to
        self._full = False
        refuse_unwritable_folder(self.folder)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._index = FileIO(os.open(self.folder / "index", os.O_RDWR | os.O_CREAT, 0o644), "r+")
        except OSError as error:
            raise ObjcropError(f"disk_cache: {self.folder} cannot be made ({error.strerror}); name another.") from None

    def __reduce__(self) -> tuple[Any, ...]:
        return DiskCache, (self.folder, self._gigabytes)

    def get(self, place: Place) -> bytes | None:
        """Return an image's bytes, None where they are not here, or not what was written."""
        name, at = _name_of(place)
        try:
            return self._found(name, self._bucket(at))
        except OSError:
            return None

    def put(self, place: Place, data: bytes) -> None:
        """Keep an image's bytes; what others have kept makes room for it. A full disk is said once."""
        if not 0 < len(data) <= self._most or self._full:
            return
        name, at = _name_of(place)
        checksum = zlib.crc32(data, zlib.crc32(name))
        try:
            lock = os.open(f"{self.folder}/index", os.O_RDONLY | os.O_CLOEXEC)  # anew: threads lock each other out too
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                bucket = self._bucket(at)
                if self._found(name, bucket) is None:  # else another process was quicker
                    segment, begin = self._append(data)
                    slot = SLOT.pack(name, segment, checksum, len(data), begin)
                    os.pwrite(self._index.fileno(), slot, at + self._slot_for(name, bucket) * SLOT.size)
            finally:
                os.close(lock)
        except OSError as error:
            self._full = True
            logging.getLogger("objcrop").warning(
                "disk_cache: %s cannot be written (%s); this process keeps no more there.", self.folder, error.strerror
            )

    def _bucket(self, at: int) -> bytes:
        return os.pread(self._index.fileno(), BUCKET, at).ljust(BUCKET, b"\0")

    def _found(self, name: bytes, bucket: bytes) -> bytes | None:
        """Return the bytes of an image that a bucket knows, None where they are gone or not what was written."""
        at = bucket.find(name)
        if at < 0:
            return None
        _, segment, checksum, length, begin = SLOT.unpack_from(bucket, at - at % SLOT.size)
        try:
            file = os.open(self._segment(segment), os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = os.pread(file, length, begin)
                os.utime(file)  # it was used now
            finally:
                os.close(file)
        except (OSError, MemoryError):  # of a length that was never written
            return None
        return data if len(data) == length and zlib.crc32(data, zlib.crc32(name)) == checksum else None

    def _append(self, data: bytes) -> tuple[int, int]:
        """Append an image to a segment; return the segment's number and where the image begins."""
        number, file = self._growing or self._segment_with_room(len(data))
        facts = os.fstat(file.fileno())
        if not facts.st_nlink or facts.st_size + len(data) > self._most:  # another process removed it, or it is full
            number, file = self._segment_with_room(len(data))
            facts = os.fstat(file.fileno())
        self._growing = number, file
        if file.write(data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return number, facts.st_size

    def _segment_with_room(self, length: int) -> tuple[int, FileIO]:
        """Open the newest segment if so many bytes fit, else a new one, for which the longest unused ones go."""
        names = (re.fullmatch(r"(\d{1,9})\.images", name) for name in os.listdir(self.folder))
        found = {int(name[1]): os.stat(self._segment(int(name[1]))) for name in names if name}
        number = max(found, default=0)
        if not found or found[number].st_size + length > self._most:
            used = sum(max(facts.st_size, self._most) for facts in found.values())  # each may still grow
            for oldest in sorted(found, key=lambda number: (found[number].st_mtime_ns, number)):
                if used + self._most <= self.limit:
                    break
                os.unlink(self._segment(oldest))
                used -= max(found[oldest].st_size, self._most)
            number += 1
        return number, FileIO(self._segment(number), "a")

    def _slot_for(self, name: bytes, bucket: bytes) -> int:
        """Return where in a bucket an image is entered: its own slot, a free one, a lost segment's or the oldest's."""
        slots = list(SLOT.iter_unpack(bucket))

        def worth(i: int) -> tuple[bool, bool, int]:
            entered, segment, _, length, _ = slots[i]
            return entered != name, length > 0 and os.path.exists(self._segment(segment)), segment

        return min(range(SLOTS), key=worth)

    def _segment(self, number: int) -> str:
        return f"{self.folder}/{number}.images"


@lru_cache(1 << 10)  # who finds nothing will put it
def _name_of(place: Place) -> tuple[bytes, int]:
    """Return an image's name, and where its bucket begins in the index."""
    where = place.path if place.source is None else repr((place.path, tuple(place.source), place.offset, place.length))
    name = hashlib.blake2b(where.encode("utf-8", "surrogateescape"), digest_size=12).digest()
    return name, int.from_bytes(name[:4], "little") % BUCKETS * BUCKET
