"""Which JPEGs DALI may see (`plain_image` says why), in loops that no other thread's Python waits for.

A loader reads thousands of photos a second beside a training loop that is Python too, and of the two only one runs at a
time: each microsecond of Python on a photo is one that the loop begins its next kernel later.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from objcrop.compiled import compiled

MOST_PARTS = 32  # that metadata may cut an image into; encoders leave two or three
_DATA = types.Array(types.uint8, 1, "C", readonly=True)  # what can be written is taken too


@compiled()
def _begins(body, text):
    same = 0
    for i in range(len(text)):
        same += body[i] == text[i]
    return same == len(text)


@compiled()
def _bare_jfif(body):
    """Return whether this says YCbCr, as is taken for granted, and a resolution; nearly every image begins with it.

    To leave it out would copy them all.
    """
    return body.size == 14 and _begins(body, b"JFIF\0\1") and body[12] == 0 and body[13] == 0


@compiled()
def _plain_frame(body):
    """Return whether a frame header is of 8 bits with one or three components, sampled plainly."""
    if (body.size != 9 and body.size != 15) or body[0] != 8 or body[5] != (body.size - 6) // 3:
        return False
    for i in range(6, body.size, 3):
        across, down = body[i + 1] >> 4, body[i + 1] & 15
        if not (1 <= across <= 4 and 1 <= down <= 4) or body[i + 2] > 3:
            return False
        for j in range(6, i, 3):
            if body[j] == body[i]:
                return False
    names = body[6::3]
    return names.size == 1 or not (_begins(names, b"RGB") or _begins(names, b"rgb"))


@compiled()
def _ends_behind(data, at):
    """Return whether the two bytes that end an image lie at `at` or later."""
    i = data.size - 2
    while i >= at and not (data[i] == 0xFF and data[i + 1] == 0xD9):
        i -= 1
    return i >= at


@compiled(types.UniTuple(types.int64, 3)(_DATA, types.int64[:, ::1]))
def jpeg_parts(data, parts):
    """Walk the segments to the first scan (ITU-T T.81, annex B).

    Args:
        data: uint8 (n,), the file.
        parts: int64 (MOST_PARTS, 2), filled with where what is kept begins and ends: all but metadata.

    Returns:
        How many parts there are, 0 for what is not plain; width and height of the pixels as stored.
    """
    end, at, count, kept_from, width, height = data.size, 2, 0, 0, 0, 0
    if end < 2 or data[0] != 0xFF or data[1] != 0xD8:
        return 0, 0, 0
    while True:
        if at + 4 > end:
            return 0, 0, 0
        marker, length = data[at + 1], (np.int64(data[at + 2]) << 8) | data[at + 3]
        following = at + 2 + length
        if data[at] != 0xFF or length < 2 or following > end:  # no fill bytes, nothing between segments
            return 0, 0, 0
        body = data[at + 4 : following]
        if marker == 0xDA:
            break
        if marker == 0xC4 or marker == 0xDB or marker == 0xDD:  # DHT, DQT, DRI
            if length < 4:
                return 0, 0, 0
        elif 0xC0 <= marker <= 0xC2:  # baseline, extended, progressive; all Huffman
            if width or not _plain_frame(body):
                return 0, 0, 0
            width, height = (np.int64(body[3]) << 8) | body[4], (np.int64(body[1]) << 8) | body[2]
            if width == 0 or height == 0:
                return 0, 0, 0
        elif 0xE0 <= marker <= 0xEF or marker == 0xFE:
            adobe = marker == 0xEE and body.size == 12 and _begins(body, b"Adobe")
            if adobe and body[11] != 1:  # not YCbCr
                return 0, 0, 0
            if not adobe and not (marker == 0xE0 and _bare_jfif(body)):
                # What is left out: metadata, previews, comments.
                if at > kept_from:
                    if count == MOST_PARTS - 1:
                        return 0, 0, 0
                    parts[count] = kept_from, at
                    count += 1
                kept_from = following
        else:
            return 0, 0, 0
        at = following
    if width == 0 or not _ends_behind(data, at):
        return 0, 0, 0
    parts[count] = kept_from, end
    return count + 1, width, height


def plain_jpeg(data: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int]] | None:
    """Return a JPEG without its metadata, which shares memory where it has none, and its size; None if not plain."""
    parts = np.empty((MOST_PARTS, 2), np.int64)
    count, width, height = jpeg_parts(data, parts)
    if not count:
        return None
    kept = [data[begin:end] for begin, end in parts[:count].tolist()]
    return (kept[0] if count == 1 else np.concatenate(kept)), (width, height)
