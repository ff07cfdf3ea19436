"""One definition of a file's pixels: what Pillow decodes, as RGB of 8 bits, in the frame that is stored.

Colours go to RGB as Pillow converts them, alpha is dropped, of an animation the first picture is taken. What has more
than 8 bits is scaled by the range of its kind, not cut off at 255:

- 16 bits: 65535 is white.
- 32-bit whole numbers and floats have no range of their own: white is the first of 1 (floats), 255 and 65535 that no
  value exceeds, where none is below 0; else black and white are the smallest and the largest value. What is no number
  is black.
- Lab becomes sRGB.
"""

from __future__ import annotations

import io
import zlib
from typing import IO, Any

import numpy as np
from PIL import Image, ImageCms, ImageFile

PNG = b"\x89PNG\r\n\x1a\n"
_LONG_TEXT = 1 << 20  # bytes; Pillow refuses a PNG for longer text


def can_be_decoded(image: Image.Image) -> bool:
    """Whether Pillow has more than a name for the format of an opened image, as it has of MPEG or HDF5."""
    if isinstance(image, ImageFile.StubImageFile):
        return False
    return bool(getattr(image, "tile", True)) or type(image).load is not ImageFile.ImageFile.load


def decoded(data: bytes) -> Image.Image:
    """Decode an image to RGB, in its stored frame (TIFF: upright, as Pillow has it).

    Raises:
        Exception: whatever Pillow raises.
    """
    if data[:8] == PNG:
        data = _without_text(data)
    with Image.open(io.BytesIO(data)) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return the first picture as RGB of 8 bits; see the head of this file."""
    image.load()
    if image.mode.startswith("I;16"):
        return _grey(np.asarray(image).astype(np.uint16), 65535.0)
    if image.mode in ("I", "F"):
        values = np.nan_to_num(np.asarray(image, np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        white = 65535.0 if image.format == "PPM" else None  # Pillow has scaled its maximum to that
        return _grey(values, white)
    if image.mode == "LAB":
        image = _srgb(image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(values: np.ndarray[Any, Any], white: float | None) -> Image.Image:
    low, high = 0.0, white
    if high is None:
        low, high = float(values.min()), float(values.max())
        if low >= 0:
            ranges = (1.0, 255.0, 65535.0)
            low, high = 0.0, next((top for top in ranges if high <= top), high)
    share = (values - low) / max(high - low, 1e-300)
    return Image.fromarray(np.rint(share * 255).astype(np.uint8)).convert("RGB")


def _srgb(image: Image.Image) -> Image.Image:
    turned = ImageCms.profileToProfile(
        image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert turned is not None
    return turned


def png_head(file: IO[bytes]) -> bytes:
    """Return a PNG's header and metadata without its pixels, in an order in which Pillow reads all of it.

    Metadata may lie behind the pixels, and Pillow would decode them to come there; text too long for it is left out.

    Args:
        file: behind the signature; is left anywhere.
    """
    head = [PNG]
    while len(start := file.read(8)) == 8:
        length, name = int.from_bytes(start[:4], "big"), start[4:]
        if name == b"IEND":
            break
        if name in (b"IDAT", b"fdAT") or (length > _LONG_TEXT and name != b"iCCP"):
            file.seek(length + 4, io.SEEK_CUR)
            continue
        body = file.read(length + 4)
        if len(body) == length + 4 and not (name in _TEXTS and _is_long(name, body[:-4])):
            head.append(start + body)
    return b"".join([*head, _EMPTY_IDAT])


_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_EMPTY_IDAT = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")


def _is_long(name: bytes, body: bytes) -> bool:
    """Whether a text chunk unpacks to more than Pillow takes, which then refuses the whole image."""
    if name == b"tEXt":
        return False
    unpacking = zlib.decompressobj()
    at = body.find(b"\0") + 2  # behind the keyword's end: the method, for iTXt the flag and the method
    if name == b"iTXt":
        if body[at - 1 : at] != b"\1":
            return False
        at = body.find(b"\0", body.find(b"\0", at + 1) + 1) + 1  # behind the language and the translated keyword
    try:
        unpacking.decompress(body[at:], _LONG_TEXT)
    except zlib.error:
        return False
    return bool(unpacking.unconsumed_tail)


def _without_text(data: bytes) -> bytes:
    """Return a PNG less its text chunks; what is no whole chunk stays for Pillow to judge."""
    parts, kept_from, at = [], 0, 8
    while at + 12 <= len(data):
        following = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] in _TEXTS:
            parts.append(data[kept_from:at])
            kept_from = following
        at = following
    return b"".join([*parts, data[kept_from:]]) if parts else data
