"""The members of a zip by its central directory: one that is not compressed is a file of files."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator

from objcrop.formats.tar_members import Member
from objcrop.image_bytes import RangeFile

_LOCAL = 30  # bytes of a member's own header before its name (APPNOTE 4.3.7)


class BadZip(ValueError):
    """Why a zip cannot be read; the message is the reason alone."""


def zip_members(read: Callable[[int, int], bytes], size: int) -> Iterator[Member]:
    """Yield the files in a zip, in the order of their bytes; folders are passed over.

    Args:
        read: returns so many bytes from a place on, fewer at the end.
        size: of the zip, bytes.

    Raises:
        BadZip: it is no zip, damaged or cut off.
    """
    try:
        with zipfile.ZipFile(io.BufferedReader(RangeFile(size, read))) as file:
            members = sorted(file.infolist(), key=lambda member: member.header_offset)
    except Exception as error:  # a damaged directory can raise anything in zipfile
        raise BadZip(f"it is no zip, or it is damaged or cut off ({error}); copy it again") from None
    for member in members:
        if member.filename.endswith("/"):
            continue
        head = read(member.header_offset, _LOCAL) if 0 <= member.header_offset < size else b""
        names = int.from_bytes(head[26:28], "little") + int.from_bytes(head[28:30], "little")
        offset = member.header_offset + _LOCAL + names
        if head[:4] != b"PK\3\4" or offset + member.compress_size > size:
            yield Member(member.filename, 0, 0, "does not lie in the zip, which is damaged or cut off")
        else:
            yield Member(member.filename, offset, member.compress_size, _reason(member))


def _reason(member: zipfile.ZipInfo) -> str:
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type != zipfile.ZIP_STORED:
        return "is compressed, so that it cannot be read by itself; make the zip with `zip -0`"
    return "" if member.compress_size == member.file_size else "has two sizes, so that the zip is damaged"
