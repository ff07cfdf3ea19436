"""Colour on the CPU: the definition of colour_reference, in loops that the compiler vectorises.

A view lies in three float32 planes. It is worked on a few rows at a time, all steps in a row while they are in the
innermost cache: up to contrast, which needs the mean of the whole view, and from contrast to the finished pixels. A
blurred row is made of the planes on its way out. numba releases the GIL, so that threads colour side by side.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from objcrop.compiled import compiled
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.colour_reference import blur_kernel_size
from objcrop.kernels.crop_resize import Windows
from objcrop.kernels.crop_resize_cpu import addressed, level, resize_row, resized

BAND = 2048  # pixels worked on at a time, or a row: 24 KiB of float32
PAGE = 1024  # values of float32 in a memory page
BRIGHTNESS, CONTRAST, SATURATION = 0, 1, 2  # of `Decisions.order`; hue is 3

_KINDS = Decisions(np.bool_, np.bool_, np.float32, np.uint8, np.bool_, np.float32, np.bool_)

_scratch = threading.local()

_RELAXED = {"nsz", "arcp", "contract", "reassoc"}
_compiled = compiled(fastmath=_RELAXED)
# A part that is not inlined is there twice, on its own and within `_colour_all`, each rounded in its own way; which of
# the two is called depends on whether this process compiled them or found them on disk.
_part = compiled(fastmath=_RELAXED, forceinline=True)


@_part
def _clamp(v):
    return min(max(v, np.float32(0)), np.float32(1))


@_part
def _luma(r, g, b):
    return np.float32(0.2989) * r + np.float32(0.587) * g + np.float32(0.114) * b


@_part
def _take_apart(pixels, r, g, b):
    """Take a row of `resize_row` apart into planes of 0..1."""
    for i in range(r.size):
        r[i] = np.float32(level(pixels[4 * i])) * np.float32(1 / 255)
        g[i] = np.float32(level(pixels[4 * i + 1])) * np.float32(1 / 255)
        b[i] = np.float32(level(pixels[4 * i + 2])) * np.float32(1 / 255)


@_part
def _scale(r, g, b, factor, offset):
    """Brightness, or contrast: each value times a factor, plus what the factor leaves of the mean."""
    for i in range(r.size):
        r[i] = _clamp(r[i] * factor + offset)
        g[i] = _clamp(g[i] * factor + offset)
        b[i] = _clamp(b[i] * factor + offset)


@_part
def _saturation(r, g, b, factor):
    rest = np.float32(1) - factor
    for i in range(r.size):
        grey = _luma(r[i], g[i], b[i]) * rest
        r[i] = _clamp(r[i] * factor + grey)
        g[i] = _clamp(g[i] * factor + grey)
        b[i] = _clamp(b[i] * factor + grey)


@_part
def _hue(r, g, b, turns):
    """Turn the hue without HSV's six cases: each channel is a trapezium over the circle, six long, and clamped.

    All is multiplied by the chroma, so that nothing is divided by it. A place on the circle, counted on from where red
    is at -1 or at 5, and turned on by 0 to 6, is at most one round too far.
    """
    zero, two, three, four, six = np.float32(0), np.float32(2), np.float32(3), np.float32(4), np.float32(6)
    red_from = turns * six + six
    green_from, blue_from = (red_from - four, red_from - two) if turns >= zero else (red_from + two, red_from + four)
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        top = max(red, max(green, blue))
        bottom = min(red, min(green, blue))
        chroma = top - bottom
        of_red = green - blue + red_from * chroma
        of_green = blue - red + green_from * chroma
        of_blue = red - green + blue_from * chroma
        h = of_red if top == red else (of_green if top == green else of_blue)
        around = h - six * chroma
        h = around if around >= zero else h
        r[i] = bottom + min(max(abs(h - three * chroma) - chroma, zero), chroma)
        g[i] = bottom + min(max(two * chroma - abs(h - two * chroma), zero), chroma)
        b[i] = bottom + min(max(two * chroma - abs(h - four * chroma), zero), chroma)


@_part
def _jitter(r, g, b, steps, factors, mean):
    """Take these steps of the jitter; mean is that of the whole view's grey, for contrast."""
    for step in steps:
        factor = factors[step]
        if step == BRIGHTNESS:
            _scale(r, g, b, factor, np.float32(0))
        elif step == CONTRAST:
            _scale(r, g, b, factor, (np.float32(1) - factor) * mean)
        elif step == SATURATION:
            _saturation(r, g, b, factor)
        else:
            _hue(r, g, b, factor)


@_part
def _sum_of_luma(r, g, b):
    total = np.float32(0)
    for i in range(r.size):
        total += _luma(r[i], g[i], b[i])
    return total


@_part
def _turn_grey(r, g, b):
    """Leave the grey values in r."""
    for i in range(r.size):
        r[i] = _luma(r[i], g[i], b[i])


@_part
def _half_gaussian(half, sigma):
    """Return the Gaussian's taps from the middle on, for sigma 0 one: without those below a hundred-thousandth.

    Those cannot move a pixel by a hundredth of a level. The last tap may be 0, for sides are weighed in twos.
    """
    taps = np.zeros(half + 2, np.float32)
    taps[0] = 1
    if sigma == 0:
        return taps[:1]
    whole = 1.0
    for t in range(1, half + 1):
        whole += 2 * math.exp(-0.5 * (t / sigma) ** 2)
    reach = 0
    for t in range(half + 1):
        tap = math.exp(-0.5 * (t / sigma) ** 2) / whole
        if tap > 1e-5:
            taps[t], reach = tap, t
    return taps[: 1 + reach + reach % 2]


@_part
def _convolve(source, begin, step, taps, out):
    """Weigh values with their neighbours `step`, 2 · `step` … before and behind: the first is source at `begin`."""
    n = out.size
    for t in range(1, taps.size, 2):  # in twos: fewer ways to memory and back
        tap, far_tap, near, far = taps[t], taps[t + 1], t * step, (t + 1) * step
        before, far_before = source[begin - near : begin - near + n], source[begin - far : begin - far + n]
        behind, far_behind = source[begin + near : begin + near + n], source[begin + far : begin + far + n]
        if t == 1:
            middle, values = taps[0], source[begin : begin + n]
            for i in range(n):
                sides = tap * (before[i] + behind[i]) + far_tap * (far_before[i] + far_behind[i])
                out[i] = middle * values[i] + sides
        else:
            for i in range(n):
                out[i] += tap * (before[i] + behind[i]) + far_tap * (far_before[i] + far_behind[i])


@_part
def _mirror_rows(plane, height, width, reach):
    """Mirror a plane's rows into the `reach` rows before the first and behind the last."""
    last = reach + height - 1
    for t in range(1, reach + 1):
        from_first, from_last = plane[(reach + t) * width :], plane[(last - t) * width :]
        to_first, to_last = plane[(reach - t) * width :], plane[(last + t) * width :]
        for x in range(width):
            to_first[x] = from_first[x]
            to_last[x] = from_last[x]


@_part
def _pad_rows(rows, width, reach, out):
    """Copy rows that lie one behind the other into longer ones, each mirrored at both ends."""
    long = width + 2 * reach
    for i in range(rows.size // width):
        row, padded = rows[i * width : (i + 1) * width], out[i * long : (i + 1) * long]
        middle = padded[reach : reach + width]
        for x in range(width):
            middle[x] = row[x]
        for t in range(1, reach + 1):
            padded[reach - t] = row[t]
            padded[reach + width - 1 + t] = row[width - 1 - t]


@_part
def _finished(v, inverted_from, gain, bias):
    return (np.float32(1) - v if v >= inverted_from else v) * gain + bias


@_part
def _finish(r, g, b, solarise, flip, gain, bias, out):
    """Solarise, normalise and interleave a row into out (W * 3,), mirrored if asked."""
    inverted_from = np.float32(0.5 if solarise else 2)
    last = r.size - 1
    if flip:
        for x in range(r.size):
            i = np.uintp(last - x)  # unsigned, or the compiler looks out for negative indices and leaves it a loop
            out[3 * x] = _finished(r[i], inverted_from, gain[0], bias[0])
            out[3 * x + 1] = _finished(g[i], inverted_from, gain[1], bias[1])
            out[3 * x + 2] = _finished(b[i], inverted_from, gain[2], bias[2])
    else:
        for x in range(r.size):
            out[3 * x] = _finished(r[x], inverted_from, gain[0], bias[0])
            out[3 * x + 1] = _finished(g[x], inverted_from, gain[1], bias[1])
            out[3 * x + 2] = _finished(b[x], inverted_from, gain[2], bias[2])


@_part
def _of_planes(planes, begin, end):
    return planes[0, begin:end], planes[1, begin:end], planes[2, begin:end]


@_part
def _colour(of_window, flip, jitter, factors, order, grey, taps, solarise, gain, bias, planes, out):
    """Resize a window, as `resized` tells of it, and colour it into out (H, W, 3).

    The planes (3, more than H * W) have room for `taps.size - 1` rows before the first row and behind the last.
    """
    height, width = out.shape[:2]
    lines, pixels = out.reshape(height, -1), np.empty(4 * width, np.float32)
    reach = taps.size - 1
    first = reach * width
    rows = max(1, BAND // width)

    before_contrast = 0
    while jitter and order[before_contrast] != CONTRAST:
        before_contrast += 1
    total = 0.0
    for y in range(0, height, rows):
        begin, end = y * width, min(y + rows, height) * width
        r, g, b = _of_planes(planes, first + begin, first + end)
        for line in range(y, min(y + rows, height)):
            resize_row(of_window, line, pixels)
            _take_apart(pixels, *_of_planes(planes, first + line * width, first + (line + 1) * width))
        if jitter:
            _jitter(r, g, b, order[:before_contrast], factors, np.float32(0))
            total += _sum_of_luma(r, g, b)
    mean = np.float32(total / (height * width))

    for y in range(0, height, rows):
        stop = min(y + rows, height)
        r, g, b = _of_planes(planes, first + y * width, first + stop * width)
        if jitter:
            _jitter(r, g, b, order[before_contrast:], factors, mean)
        if grey:
            _turn_grey(r, g, b)
        if not reach:
            for line in range(y, stop):
                r, g, b = _of_planes(planes, line * width, (line + 1) * width)
                _finish(r, r if grey else g, r if grey else b, solarise, flip, gain, bias, lines[line])
    if not reach:
        return

    channels = 1 if grey else 3
    for c in range(channels):
        _mirror_rows(planes[c], height, width, reach)
    long = width + 2 * reach
    column, padded = np.empty(rows * width, np.float32), np.empty(rows * long, np.float32)
    blurred = np.empty((3, rows * long), np.float32)
    for y in range(0, height, rows):
        stop = min(y + rows, height)
        for c in range(channels):
            part = column[: (stop - y) * width]
            _convolve(planes[c], first + y * width, width, taps, part)
            _pad_rows(part, width, reach, padded)
            _convolve(padded, reach, 1, taps, blurred[c, : (stop - y) * long - 2 * reach])
        for line in range(y, stop):
            r, g, b = _of_planes(blurred, (line - y) * long, (line - y) * long + width)
            _finish(r, r if grey else g, r if grey else b, solarise, flip, gain, bias, lines[line])


@_compiled
def _colour_all(windows, cubic, decisions, half, gain, bias, planes, out):
    corners, steps, sizes = windows
    flip, jitter, factors, order, grey, sigma, solarise = decisions
    for i in range(len(out)):
        of_window = resized(corners[i], steps[i], sizes[i], cubic, out.shape[1:3])
        taps = _half_gaussian(half, np.float64(sigma[i]))
        how = flip[i], jitter[i], factors[i], order[i], grey[i], taps, solarise[i], gain, bias
        _colour(of_window, *how, planes, out[i])


def _planes_for(height: int, width: int, reach: int) -> NDArray[np.float32]:
    """Return this thread's planes, a part of the largest room that it had.

    They begin a third of a memory page apart: what lies whole pages apart is slow to read and write by turns.
    """
    plane = -(-(height + 2 * reach) * width // PAGE) * PAGE + PAGE // 3
    room: NDArray[np.float32] | None = getattr(_scratch, "room", None)
    if room is None or room.size < 3 * plane:
        room = _scratch.room = np.empty(3 * plane, np.float32)
    return room[: 3 * plane].reshape(3, plane)


def crop_colour_into(
    out: NDArray[np.float32],
    windows: Windows,
    interpolation: str,
    decisions: Decisions,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Resize windows to levels, as `crop_resize`, augment and normalise them, as `colour_reference`, without the GIL.

    Args:
        out: float32 (N, H, W, 3), contiguous; filled.
        windows: N, their images in the CPU's memory.
        interpolation: "bilinear" or "bicubic".
        decisions: of these views, arrays of N.
        mean: per channel.
        std: per channel.
    """
    height, width = out.shape[1:3]
    half = blur_kernel_size(width) // 2
    planes = _planes_for(height, width, half + 1)
    decided = tuple(np.ascontiguousarray(d, kind) for d, kind in zip(decisions, _KINDS))
    gain = tuple(np.float32(1 / s) for s in std)
    bias = tuple(np.float32(-m / s) for m, s in zip(mean, std))
    _colour_all(addressed(windows), interpolation == "bicubic", decided, half, gain, bias, planes, out)


def colour_views(
    views: NDArray[np.uint8],
    decisions: Decisions,
    mean: Sequence[float],
    std: Sequence[float],
    out: NDArray[np.float32],
) -> None:
    """Augment and normalise views, uint8 (N, H, W, 3), contiguous; the rest as of `crop_colour_into`."""
    count, height, width, _ = views.shape
    corners = views.ctypes.data + 3 * height * width * np.arange(count)
    whole = Windows(corners, np.full((count, 2), (3, 3 * width)), np.full((count, 2), (width, height)))
    crop_colour_into(out, whole, "bilinear", decisions, mean, std)
