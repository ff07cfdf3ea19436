"""The members of a tar by their headers alone: a tar that is not compressed is a file of files.

POSIX ustar and pax (IEEE Std 1003.1, pax interchange format) and GNU's long names, as Python's `tarfile` reads them;
headers of the plain kind, nearly all there are, are read here, several times faster.
"""

from __future__ import annotations

import tarfile
from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_LONG_NAME, _PAX, _PAX_OF_ALL, _LONG_LINK = b"L", b"x", b"g", b"K"
_NO_FILES = (tarfile.DIRTYPE, _LONG_LINK)


class BadTar(ValueError):
    """Why a tar cannot be read on; the message is the reason alone."""


class Member(NamedTuple):
    """A file in a tar: its name, where its bytes begin and how many they are; why it cannot be used, or ""."""

    name: str
    offset: int
    length: int
    reason: str = ""


def tar_members(read: Callable[[int, int], bytes], size: int) -> Iterator[Member]:
    """Yield the files in a tar, in their order; folders are passed over.

    Args:
        read: returns so many bytes from a place on, fewer at the end.
        size: of the tar, bytes.

    Raises:
        BadTar: it is compressed, no tar, damaged, or ends in the middle of a member.
    """
    at, long_name = 0, ""
    pax_of_all: dict[str, str] = {}
    pax: dict[str, str] = {}
    while at < size:
        head = read(at, BLOCK)
        plain = None if pax or pax_of_all or long_name else _plain(head)
        if plain is not None:
            name, length, kind = *plain, tarfile.REGTYPE
        elif not head.strip(b"\0"):
            return
        else:
            info = _header(head, at)
            name, length, kind = info.name, info.size, info.type
        data = at + BLOCK
        facts = {} if kind in (_PAX, _PAX_OF_ALL, _LONG_NAME) else {**pax_of_all, **pax}
        try:
            length = int(facts.get("size", length))
        except ValueError:
            raise BadTar(f"the pax header before byte {at} is damaged") from None
        name = facts.get("path") or long_name or name
        if head[156:157] == tarfile.AREGTYPE and not name.endswith("/"):
            kind = tarfile.REGTYPE  # no folder, though the hundred bytes that the header has of its name end so
        if data + length > size:
            raise BadTar(f"it ends in the middle of {name}, {data + length - size} bytes are missing; copy it again")
        if kind == _LONG_NAME:
            long_name = read(data, length).split(b"\0", 1)[0].decode("utf-8", "surrogateescape")
        elif kind == _PAX:
            pax = _records(read(data, length), at)
        elif kind == _PAX_OF_ALL:
            pax_of_all |= _records(read(data, length), at)
        elif kind not in _NO_FILES:
            sparse = kind == tarfile.GNUTYPE_SPARSE or any(word.startswith("GNU.sparse") for word in facts)
            yield Member(name, data, length, _reason(kind, sparse))
        if kind not in (_LONG_NAME, _PAX, _PAX_OF_ALL, _LONG_LINK):
            pax, long_name = {}, ""
        at = data + -(-length // BLOCK) * BLOCK


def _plain(head: bytes) -> tuple[str, int] | None:
    """Return name and size of a file whose header is of the plain kind, None where `tarfile` must look."""
    if head[257:262] != b"ustar" or head[156:157] != b"0" or head[345:346] != b"\0":
        return None
    digits, check = head[124:135], head[148:156].strip(b" \0")
    if not (digits.isdigit() and check.isdigit() and head[135:136] in b" \0"):
        return None
    try:
        if sum(head) - sum(head[148:156]) + 8 * 32 != int(check, 8):
            return None
        return head[:100].split(b"\0", 1)[0].decode(), int(digits, 8)
    except ValueError:
        return None


def _header(head: bytes, at: int) -> tarfile.TarInfo:
    for magic, (kind, undo) in _COMPRESSED.items():
        if at == 0 and head.startswith(magic):
            raise BadTar(f"it is compressed ({kind}), and no image in it can be read by itself; take `{undo}` to it")
    try:
        return tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        if at == 0 and head.lstrip()[:1] == b"<":
            raise BadTar("it is a web page and no tar; check the address") from None
        raise BadTar("it is no tar" if at == 0 else f"its header at byte {at} is damaged; copy it again") from None


def _records(text: bytes, at: int) -> dict[str, str]:
    """Return what a pax header says: lines "LENGTH KEY=VALUE", the length that of the whole line."""
    found, rest = {}, text
    while rest.strip(b"\0"):
        digits, _, _ = rest.partition(b" ")
        record = rest[: int(digits)] if digits.isdigit() else b""
        key, equals, value = record[len(digits) + 1 :].partition(b"=")
        if not equals or record[-1:] != b"\n":
            raise BadTar(f"the pax header at byte {at} is damaged")
        found[key.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        rest = rest[len(record) :]
    return found


def _reason(kind: bytes, sparse: bool) -> str:
    if sparse:
        return "is a sparse file, of which a tar holds parts"
    return "" if kind in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE) else "is a link or device and no file"
