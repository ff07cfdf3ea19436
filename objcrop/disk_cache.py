"""A cache of encoded images on a local disk, for what lies far away: filled as it is read, within a number of bytes.

An image is a file, which appears whole (by a rename) and is read only where its checksum holds; so a process or a
machine may stop at any moment. A ledger, locked while it is changed, says how much there is; when that would be too
much, the images that were not read for the longest time go. Several processes may share a folder. What is being written
lies there beside the limit until it is whole.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
import zlib
from contextlib import suppress
from pathlib import Path

from objcrop.errors import ObjcropError
from objcrop.place import Place, StrPath
from objcrop.whole_file import refuse_unwritable_folder

HEAD = 4  # bytes of the checksum before an image
ROOM = 0.1  # share of the limit that is made free at once
FORGOTTEN = 3600.0  # seconds after which a file that was never finished is taken for a crash's


class DiskCache:
    """Images by where they lie.

    Args:
        folder: where the files are; made where it is not there.
        gigabytes: the most that they may take, of 10**9 bytes.

    Raises:
        ObjcropError: the folder cannot be written.
    """

    def __init__(self, folder: StrPath, gigabytes: float) -> None:
        self.folder, self.limit = Path(os.path.abspath(folder)), int(gigabytes * 1e9)
        refuse_unwritable_folder(self.folder)
        self._ledger = self.folder / "bytes-used"
        self._full = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ObjcropError(f"disk_cache: {self.folder} cannot be made ({error.strerror}); name another.") from None

    def get(self, place: Place) -> bytes | None:
        """Return an image's bytes, None where they are not here, or not what was written."""
        path = self._path(place)
        try:
            with open(path, "rb", buffering=0) as file:
                held = file.read()
                os.utime(file.fileno())  # it was used now
        except OSError:
            return None
        data = held[HEAD:]
        if len(held) < HEAD or zlib.crc32(data).to_bytes(HEAD, "little") != held[:HEAD]:
            path.unlink(missing_ok=True)
            return None
        return data

    def put(self, place: Place, data: bytes) -> None:
        """Keep an image's bytes; what others have kept makes room for it. A full disk is said once."""
        size = HEAD + len(data)
        if size > self.limit * ROOM or self._full:
            return
        path = self._path(place)
        if path.exists():
            return
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            path.parent.mkdir(exist_ok=True)
            unfinished.write_bytes(zlib.crc32(data).to_bytes(HEAD, "little") + data)
            self._reserve(size, unfinished)
            unfinished.replace(path)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            self._full = True
            logging.getLogger("objcrop").warning(
                "disk_cache: %s cannot be written (%s); this process keeps no more there.", self.folder, error.strerror
            )

    def _path(self, place: Place) -> Path:
        where = repr((place.path, place.source and tuple(place.source), place.offset, place.length))
        name = hashlib.sha256(where.encode("utf-8", "surrogateescape")).hexdigest()[:40]
        return self.folder / name[:2] / name[2:]

    def _reserve(self, size: int, unfinished: Path) -> None:
        """Enter the bytes of an unfinished file into the ledger, images removed where they are too many.

        The file is there before: whoever counts meanwhile counts it.
        """
        ledger = os.open(self._ledger, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(ledger, fcntl.LOCK_EX)
            said = os.pread(ledger, 8, 0)
            used = int.from_bytes(said, "little") if len(said) == 8 else self.limit  # none yet: count them
            if used + size > self.limit:
                used = self._make_room(int(self.limit * (1 - ROOM)), str(unfinished))
            os.pwrite(ledger, (used + size).to_bytes(8, "little"), 0)
        finally:
            os.close(ledger)

    def _make_room(self, most: int, but: str) -> int:
        """Remove images, the longest unread first, until all but one file take at most so many bytes; return these."""
        found, being_written, now = [], 0, time.time()
        for group in os.scandir(self.folder):
            for entry in os.scandir(group.path) if group.is_dir() else ():
                try:
                    facts = entry.stat()
                    unfinished = entry.name.startswith(".")
                    if unfinished and now - facts.st_mtime > FORGOTTEN:
                        os.unlink(entry.path)
                    elif unfinished:
                        being_written += facts.st_size if entry.path != but else 0
                    else:
                        found.append((facts.st_mtime_ns, facts.st_size, entry.path))
                except FileNotFoundError:
                    continue
        used = being_written + sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= most:
                break
            Path(path).unlink(missing_ok=True)
            used -= size
        return used
