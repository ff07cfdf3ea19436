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
from PIL.JpegImagePlugin import JpegImageFile

PNG = b"\x89PNG\r\n\x1a\n"


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
    with opened(data) as image:
        return to_rgb(image)


def opened(data: bytes) -> ImageFile.ImageFile:
    """Read an image's header; `to_rgb` decodes the rest.

    Raises:
        Exception: whatever Pillow raises.
    """
    if data[:8] == PNG:
        data = _without_text(data)
    return Image.open(io.BytesIO(data))


def decode_scaled(image: ImageFile.ImageFile, scale: int) -> int:
    """Let an opened JPEG be decoded at 1/scale of its size, rounded up; return the scale, 1 for other formats."""
    if scale == 1 or not isinstance(image, JpegImageFile):
        return 1
    image.draft(None, (max(image.width // scale, 1), max(image.height // scale, 1)))
    return scale


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


def png_head(file: IO[bytes], texts: bool = True) -> bytes:
    """Return of a PNG what tells its size, colours and orientation, in an order in which Pillow reads all of it.

    Metadata may lie behind the pixels, and Pillow would decode them to come there.

    Args:
        file: behind the signature; is left anywhere.
        texts: whether the texts that may hold an orientation are in it; Pillow refuses a PNG where one is too long.
    """
    head = [PNG]
    while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
        length, name = int.from_bytes(start[:4], "big"), start[4:]
        if name in _OF_THE_HEAD or (texts and name in _TEXTS):
            body = file.read(length + 4)
            if len(body) == length + 4 and (name in _OF_THE_HEAD or body.split(b"\0", 1)[0] in _ORIENTING):
                head.append(start + body)
        else:
            file.seek(length + 4, io.SEEK_CUR)
    return b"".join([*head, _EMPTY_IDAT])


_OF_THE_HEAD = (b"IHDR", b"PLTE", b"tRNS", b"eXIf")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_ORIENTING = (b"Raw profile type exif", b"XML:com.adobe.xmp")  # keywords
_EMPTY_IDAT = b"\0\0\0\0IDAT" + zlib.crc32(b"IDAT").to_bytes(4, "big")


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
