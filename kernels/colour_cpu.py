"""Colour on the CPU: the definition of colour_reference, fused into a few loops that the compiler vectorises.

Pixels lie in three float32 planes; the four jitter steps run in place, the blur is OpenCV's separable filter without
the taps too small to matter, and the last loop solarises, flips, normalises and interleaves. numba and OpenCV release
the GIL, so a thread pool runs one view a thread.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import cv2
import numba
import numpy as np
from numpy.typing import NDArray

from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.colour_reference import blur_kernel_size

_scratch = threading.local()


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile without the GIL; keep the result on disk where the package's folder can be written."""
    options = {"nopython": True, "nogil": True, "fastmath": {"nsz", "arcp", "contract", "reassoc"}}
    try:
        return numba.jit(cache=True, **options)(function)
    except RuntimeError:  # numba: no locator available, in a read-only installation
        return numba.jit(**options)(function)


@_compiled
def _clamp(v):
    return min(max(v, np.float32(0)), np.float32(1))


@_compiled
def _luma(r, g, b):
    return np.float32(0.2989) * r + np.float32(0.587) * g + np.float32(0.114) * b


@_compiled
def _brightness(planes, factor):
    flat = planes.reshape(-1)
    for i in range(flat.size):
        flat[i] = _clamp(flat[i] * factor)


@_compiled
def _mean(plane):
    """Sum in short float32 runs: one run over all would lose digits, float64 would run at half the speed."""
    total = np.float32(0)
    for start in range(0, plane.size, 512):
        part = np.float32(0)
        for v in plane[start : start + 512]:
            part += v
        total += part
    return total / np.float32(plane.size)


@_compiled
def _contrast(planes, factor):
    r, g, b = planes[0], planes[1], planes[2]
    mean = np.float32(0.2989) * _mean(r) + np.float32(0.587) * _mean(g) + np.float32(0.114) * _mean(b)
    offset = (np.float32(1) - factor) * mean
    flat = planes.reshape(-1)
    for i in range(flat.size):
        flat[i] = _clamp(flat[i] * factor + offset)


@_compiled
def _saturation(planes, factor):
    r, g, b = planes[0], planes[1], planes[2]
    rest = np.float32(1) - factor
    for i in range(r.size):
        grey = _luma(r[i], g[i], b[i]) * rest
        r[i] = _clamp(r[i] * factor + grey)
        g[i] = _clamp(g[i] * factor + grey)
        b[i] = _clamp(b[i] * factor + grey)


@_compiled
def _hue(planes, shift):
    """Rotate the hue without leaving RGB for HSV's six cases: f(n) = v - c * clamp(min(k, 4 - k), 0, 1)."""
    one, zero, six = np.float32(1), np.float32(0), np.float32(6)
    r, g, b = planes[0], planes[1], planes[2]
    turn = shift * six
    for i in range(r.size):
        red, green, blue = r[i], g[i], b[i]
        top = max(red, max(green, blue))
        chroma = top - min(red, min(green, blue))
        scale = one / (chroma if chroma > zero else one)
        if top == red:
            sector = (green - blue) * scale
        elif top == green:
            sector = (blue - red) * scale + np.float32(2)
        else:
            sector = (red - green) * scale + np.float32(4)
        h = sector + turn + np.float32(12)  # shift is at least -0.5 turns and sector at least -1: positive
        for c in range(3):
            k = h + np.float32(5 - 2 * c)
            k = k - six * np.floor(k * (one / six))
            value = top - chroma * _clamp(min(k, np.float32(4) - k))
            if c == 0:
                r[i] = value
            elif c == 1:
                g[i] = value
            else:
                b[i] = value


@_compiled
def _grey(planes):
    r, g, b = planes[0], planes[1], planes[2]
    for i in range(r.size):
        value = _luma(r[i], g[i], b[i])
        r[i] = value
        g[i] = value
        b[i] = value


@_compiled
def _solarise(planes):
    flat = planes.reshape(-1)
    for i in range(flat.size):
        v = flat[i]
        flat[i] = np.float32(1) - v if v >= np.float32(0.5) else v


@_compiled
def _before_blur(pixels, jitter, factors, order, grey, planes):
    """Spread uint8 (H, W, 3) into planes float32 (3, H * W), then jitter and grey."""
    flat = pixels.reshape(-1)
    for c in range(3):
        plane = planes[c]
        for i in range(plane.size):
            plane[i] = flat[3 * i + c] * np.float32(1 / 255)
    if jitter:
        for k in range(4):
            step = order[k]
            if step == 0:
                _brightness(planes, factors[0])
            elif step == 1:
                _contrast(planes, factors[1])
            elif step == 2:
                _saturation(planes, factors[2])
            else:
                _hue(planes, factors[3])
    if grey:
        _grey(planes)


@_compiled
def _after_blur(planes, solarise, flip, gain, bias, out):
    """Solarise, normalise and interleave planes into out (H, W, 3), mirrored if asked."""
    if solarise:
        _solarise(planes)
    height, width = out.shape[:2]
    for y in range(height):
        for c in range(3):
            row = planes[c, y * width : (y + 1) * width]
            target = out[y, :, c]
            if flip:
                for x in range(width):
                    target[x] = row[width - 1 - x] * gain[c] + bias[c]
            else:
                for x in range(width):
                    target[x] = row[x] * gain[c] + bias[c]


def _blur(planes: NDArray[np.float32], size: int, sigma: float) -> None:
    """Blur planes of a square view in place with OpenCV's separable filter; its border 101 is torch's "reflect"."""
    half = blur_kernel_size(size) // 2
    taps = np.exp(-0.5 * (np.arange(-half, half + 1) / sigma) ** 2)
    taps = taps / taps.sum()
    # Taps below a hundred-thousandth cannot move a pixel by a hundredth of a level: most blurs need few.
    reach = int((taps[half:] > 1e-5).sum()) - 1
    kernel = taps[half - reach : half + reach + 1].astype(np.float32)
    for plane in planes.reshape(3, size, size):
        cv2.sepFilter2D(plane, cv2.CV_32F, kernel, kernel, dst=plane, borderType=cv2.BORDER_REFLECT_101)


def _planes_for(pixels: int) -> NDArray[np.float32]:
    """Return this thread's planes, float32 (3, pixels), a part of the largest that it had."""
    room: NDArray[np.float32] | None = getattr(_scratch, "room", None)
    if room is None or room.size < 3 * pixels:
        room = _scratch.room = np.empty(3 * pixels, np.float32)
    return room[: 3 * pixels].reshape(3, pixels)


def colour_one(
    view: NDArray[np.uint8],
    decisions: Decisions,
    mean: Sequence[float],
    std: Sequence[float],
    out: NDArray[np.float32],
) -> None:
    """Augment and normalise one view; arguments as `colour_reference`, with the GIL released.

    Args:
        view: uint8 (H, W, 3), contiguous; square where it is blurred.
        decisions: of this view.
        mean: per channel.
        std: per channel.
        out: float32 (H, W, 3), contiguous; filled.
    """
    height, width = view.shape[:2]
    planes = _planes_for(height * width)
    gain = (1 / np.asarray(std)).astype(np.float32)
    flip, jitter, factors, order, grey, sigma, solarise = decisions
    _before_blur(view, bool(jitter), factors, order, bool(grey), planes)
    if sigma > 0:
        _blur(planes, width, float(sigma))
    _after_blur(planes, bool(solarise), bool(flip), gain, (-np.asarray(mean) * gain).astype(np.float32), out)
