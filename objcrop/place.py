"""Where the encoded bytes of an image lie: in a file, in an object of a bucket, or in a part of either.

A root and a source are a path or an address (`s3://bucket/photos`, `https://…`); an address is never made a path of.
"""

from __future__ import annotations

import os
import re
from typing import Any, NamedTuple

StrPath = str | os.PathLike[str]


class SourceFile(NamedTuple):
    """A file that holds many images: a tar, a zip, an Arrow or Parquet file.

    Attributes:
        name: path relative to the catalog's root, or an address.
        size: bytes.
        changed: what tells that it is another one now: of a file the second of its last change, of an object its ETag.
        column: of Parquet, the column that holds the bytes ("image.bytes"); "" where images are plain ranges of bytes.
    """

    name: str
    size: int
    changed: str
    column: str = ""


class Place(NamedTuple):
    """Where an image's bytes lie.

    Attributes:
        path: of the file, or the object's address.
        key: the image's.
        source: the file as it was indexed, where it holds many images; None where the image is the file.
        offset: where the image begins in it, bytes; in Parquet, the row.
        length: of the image, bytes; in Parquet -1.
    """

    path: str
    key: str
    source: SourceFile | None = None
    offset: int = 0
    length: int = -1

    def __str__(self) -> str:
        return self.path if self.source is None else f"{self.path}:{self.key}"


def is_address(text: StrPath) -> bool:
    """Whether this names something that is not in the file system: an address with a scheme other than file."""
    return bool(re.match(r"(?!file:)[a-z][a-z0-9+.-]*://", os.fspath(text)))


def root_of(root: StrPath) -> str:
    """Return an address without a slash at its end, or a path made absolute."""
    text = os.fspath(root)
    return text.rstrip("/") if is_address(text) else os.path.abspath(re.sub(r"^file:(//)?(?=/)", "", text))


def under(root: str, name: str) -> str:
    """Return where `name` lies: itself where it is an address or an absolute path, else under the root."""
    return name if is_address(name) or name.startswith("/") else f"{root}/{name}"


def source_of(facts: Any) -> SourceFile | None:
    """Return what a catalog's metadata says of a source, None where it is no such thing."""
    kinds = SourceFile.__annotations__
    if not isinstance(facts, dict) or set(facts) != set(kinds):
        return None
    source = SourceFile(**facts)
    sound = all(isinstance(text, str) for text in (source.name, source.changed, source.column))
    return source if sound and type(source.size) is int and source.size >= 0 and source.name else None
