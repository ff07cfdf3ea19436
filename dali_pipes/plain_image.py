"""Which encoded images DALI may see: the plain ones, checked strictly, stripped to what their pixels are made of.

One file that DALI's parsers refuse can end the process: the parse of one sample throws while those of the others run on
in a frame that is gone (DALI 2.2 to 2.4; with 64 samples in half of the runs). So no parse may fail inside a batch.
What is let through here is a narrow part of each format, narrower than any parser's; all else is decoded by PIL. What
is let through loses its metadata, so that no decoder has an opinion on orientation, colour profiles or resolution.

A part of the check is a help only: a file may pass and still fail to decode, which raises cleanly.
"""

from __future__ import annotations

import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from objcrop.pixels import PNG


class PlainImage(NamedTuple):
    """data uint8 (n,): the encoded image without metadata; size: width and height of its pixels as stored."""

    data: NDArray[np.uint8]
    size: tuple[int, int]


def plain_image(data: bytes) -> PlainImage | None:
    """Return the image as DALI may see it, or None where it is of a rarer kind, damaged or no image.

    Plain are: JPEG of 8 bits, baseline or progressive, grey or YCbCr; PNG of 8 bits a channel, without animation; WebP
    of one picture without alpha.
    """
    if data[:2] == b"\xff\xd8":
        from objcrop.dali_pipes.plain_jpeg import plain_jpeg  # numba takes a second to come

        found = plain_jpeg(np.frombuffer(data, np.uint8))
        return None if found is None else PlainImage(*found)
    if data[:8] == PNG:
        return _png(data)
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return _webp(data)
    return None


# ---- PNG (third edition)

_OF_THE_PIXELS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _png(data: bytes) -> PlainImage | None:
    """Walk the chunks to IEND, keep those that the pixels are made of."""
    end, at, body = len(data), 8, memoryview(data)
    size, kind, seen, parts = None, -1, [], [(0, 8)]
    while True:
        if at + 12 > end:
            return None
        length, name = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        following = at + 12 + length
        if following > end or not (name.isalpha() and name.isascii()) or (name == b"IHDR") != (at == 8):
            return None
        if name == b"IHDR":
            width, height = (int.from_bytes(data[at + 8 + 4 * i : at + 12 + 4 * i], "big") for i in (0, 1))
            depth, kind, compression, filtering, interlace = data[at + 16 : at + 21] if length == 13 else (0,) * 5
            plain = depth == 8 and kind in _CHANNELS and not compression and not filtering and interlace < 2
            if not plain or not 0 < width < 1 << 24 or not 0 < height < 1 << 24:
                return None
            size = width, height
        elif name == b"PLTE" and (length % 3 or not 0 < length <= 768 or name in seen or b"IDAT" in seen):
            return None
        if name == b"acTL" or (name[:1].isupper() and name not in _OF_THE_PIXELS):
            return None
        if name in _OF_THE_PIXELS:
            if zlib.crc32(body[at + 4 : following - 4]) != int.from_bytes(data[following - 4 : following], "big"):
                return None  # found here it costs a fiftieth of decoding; found by DALI, the batch
            seen.append(name)
            if parts[-1][1] == at:
                parts[-1] = parts[-1][0], following
            else:
                parts.append((at, following))
        at = following
        if name == b"IEND":
            break
    if size is None or b"IDAT" not in seen or (kind == 3 and b"PLTE" not in seen):
        return None
    whole = np.frombuffer(data, np.uint8)
    return PlainImage(whole if parts == [(0, end)] else np.concatenate([whole[a:b] for a, b in parts]), size)


# ---- WebP (RFC 9649)


def _webp(data: bytes) -> PlainImage | None:
    """Find the one picture and wrap it anew, as the simple file format has it."""
    at, end = 12, 8 + int.from_bytes(data[4:8], "little")
    if end > len(data):
        return None
    while at + 8 <= end:
        name, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        following = at + 8 + length + length % 2
        if at + 8 + length > end or name in (b"ALPH", b"ANIM", b"ANMF"):
            return None
        if name in (b"VP8 ", b"VP8L"):
            size = _lossy(data, at + 8, length) if name == b"VP8 " else _lossless(data, at + 8, length)
            if size is None:
                return None
            picture = data[at : at + 8 + length] + b"\0" * (length % 2)
            head = b"RIFF" + (4 + len(picture)).to_bytes(4, "little") + b"WEBP"
            return PlainImage(np.frombuffer(head + picture, np.uint8), size)
        at = following
    return None


def _lossy(data: bytes, at: int, length: int) -> tuple[int, int] | None:
    """Return width and height of a VP8 key frame (RFC 6386, 9.1)."""
    if length < 10 or data[at] & 1 or data[at + 3 : at + 6] != b"\x9d\x01\x2a":
        return None
    width, height = (int.from_bytes(data[at + i : at + i + 2], "little") & 0x3FFF for i in (6, 8))
    return (width, height) if width and height else None


def _lossless(data: bytes, at: int, length: int) -> tuple[int, int] | None:
    """Return width and height of a VP8L picture without alpha (RFC 9649, 3.4)."""
    bits = int.from_bytes(data[at + 1 : at + 5], "little")
    if length < 6 or data[at] != 0x2F or bits >> 28:  # alpha's bit and the version's three
        return None
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
