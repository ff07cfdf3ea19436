"""Windows resized on a CPU, antialiased, in loops that the compiler vectorises: the filter of crop_resize.cu.

A row of the view is made at a time, so that it stays in the innermost cache: rows of the window are weighed byte by
byte as they lie, then the pixels of that one row, four floats at a time, of which the fourth is nobody's. Both axes are
summed in floats and rounded once. No multiplication is fused with an addition and no sum is put into another order, so
that a view is the same to the bit on every machine. numba releases the GIL.
"""

from __future__ import annotations

import math

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from objcrop.compiled import compiled
from objcrop.kernels.crop_resize import Windows

ROWS = 64  # of a window that is turned upright at a time


@intrinsic
def _bytes_at(typing_context, address):
    """Return the pointer that an int64 is."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.uint8)(types.int64), generate


def _weigher(add):
    """Return what makes out[o : o + 4] of near * row[i : i + 4] + far * row[i + 3 : i + 7], or adds it; all float32.

    A loop over the four would be taken apart before the compiler looks for what it can do at once.
    """
    four = ir.VectorType(ir.FloatType(), 4)
    undefined, first = ir.Constant(four, ir.Undefined), ir.Constant(ir.IntType(32), 0)
    everywhere = ir.Constant(ir.VectorType(ir.IntType(32), 4), [0] * 4)

    @intrinsic
    def weigh(typing_context, row, i, near, far, out, o):
        def generate(context, builder, signature, arguments):
            row, i, near, far, out, o = arguments

            def at(kind, array, place):
                data = context.make_array(kind)(context, builder, array).data
                return builder.bitcast(builder.gep(data, [place]), ir.PointerType(four))

            def weighed(weight, place):
                weights = builder.insert_element(undefined, weight, first)
                weights = builder.shuffle_vector(weights, undefined, everywhere)
                return builder.fmul(weights, builder.load(at(signature.args[0], row, place), align=4))

            there = at(signature.args[4], out, o)
            sides = builder.fadd(weighed(near, i), weighed(far, builder.add(i, ir.Constant(i.type, 3))))
            builder.store(builder.fadd(builder.load(there, align=4), sides) if add else sides, there, align=4)
            return context.get_dummy_value()

        return types.void(row, types.intp, types.float32, types.float32, out, types.intp), generate

    return weigh


_weigh, _weigh_more = _weigher(add=False), _weigher(add=True)


@compiled()
def _weight(distance, cubic):
    """Return the triangle's or, for cubic, that of Keys' cubic with a = -1/2, both as wide as one pixel."""
    x = abs(distance)
    if not cubic:
        return max(1 - x, 0.0)
    if x < 1:
        return (1.5 * x - 2.5) * x * x + 1
    return ((-0.5 * x + 2.5) * x - 4) * x + 2 if x < 2 else 0.0


@compiled()
def _weights(length, size, cubic):
    """Return how `length` pixels make `size`: the first of each, and its weights from there on, (even, size).

    They are stretched by the scale where the window shrinks, and sum to 1 inside the window. Those behind it are 0.
    """
    scale = length / size
    stretch = max(scale, 1.0)
    support = (2 if cubic else 1) * stretch
    most = math.ceil(2 * support)
    first, weights = np.empty(size, np.int64), np.zeros((most + most % 2, size), np.float32)
    for x in range(size):
        centre = scale * (x + 0.5)
        begin, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        total = 0.0
        for i in range(begin, end):
            total += _weight((i - centre + 0.5) / stretch, cubic)
        for i in range(begin, min(end, begin + most)):
            weights[i - begin, x] = _weight((i - centre + 0.5) / stretch, cubic) / total
        first[x] = begin
    return first, weights


@compiled()
def _upright(corner, right, down, width, height):
    """Return a window's bytes from its corner on, of a copy where it is stored turned, and the step to the next row."""
    if right == 3 and down > 0:
        return carray(_bytes_at(corner), ((height - 1) * down + 3 * width,)), down
    copy = np.empty(3 * width * height, np.uint8)
    rows = 1 if abs(right) == 3 else ROWS  # of an image on its side, pixels below one another lie together
    for begin in range(0, height, rows):
        for x in range(width):
            for y in range(begin, min(begin + rows, height)):
                pixel = carray(_bytes_at(corner + y * down + x * right), (3,))
                for c in range(3):
                    copy[3 * (y * width + x) + c] = pixel[c]
    return copy, 3 * width


@compiled()
def _weigh_rows(pixels, down, height, first, weights, y, row):
    """Weigh rows of bytes from the first on; of those behind the window, whose weight is 0, the last is taken."""
    n = row.size
    for t in range(0, len(weights), 2):
        near, far = min(first + t, height - 1) * down, min(first + t + 1, height - 1) * down
        a, b = weights[t, y], weights[t + 1, y]
        upper, lower = pixels[near : near + n], pixels[far : far + n]
        if t == 0:
            for i in range(n):
                row[i] = a * np.float32(upper[i]) + b * np.float32(lower[i])
        else:
            for i in range(n):
                row[i] += a * np.float32(upper[i]) + b * np.float32(lower[i])


@compiled()
def level(v):
    """Round to a level of 0..255."""
    return np.int32(min(max(v + np.float32(0.5), np.float32(0)), np.float32(255)))


@compiled()
def resized(corner, step, window, cubic, shape):
    """Return what `resize_row` wants to know of a window: its bytes, the weights, and room for a row of it.

    Args:
        corner: address of its first pixel.
        step: bytes from a pixel to its right neighbour, and to the one below.
        window: its width and height.
        cubic: whether the filter is the cubic, or else the triangle.
        shape: height and width of the view.
    """
    pixels, down = _upright(corner, step[0], step[1], window[0], window[1])
    left, across = _weights(window[0], shape[1], cubic)
    top, below = _weights(window[1], shape[0], cubic)
    row = np.zeros(3 * (window[0] + len(across)) + 1, np.float32)  # what lies behind the window is read, times 0
    return pixels, down, window[0], window[1], left, across, top, below, row


@compiled()
def resize_row(of_window, y, pixel):
    """Make row y of a view, not rounded yet: four floats a pixel (size * 4,), the fourth nobody's."""
    pixels, down, width, height, left, across, top, below, row = of_window
    _weigh_rows(pixels, down, height, top[y], below, y, row[: 3 * width])
    for t in range(0, len(across), 2):
        near, far = across[t], across[t + 1]
        if t == 0:
            for x in range(left.size):
                _weigh(row, 3 * left[x], near[x], far[x], pixel, 4 * x)
        else:
            for x in range(left.size):
                _weigh_more(row, 3 * (left[x] + t), near[x], far[x], pixel, 4 * x)


@compiled()
def _crop_resize_all(windows, cubic, out):
    corners, steps, sizes = windows
    height, width = out.shape[1:3]
    pixel = np.empty(4 * width, np.float32)
    for i in range(len(out)):
        of_window = resized(corners[i], steps[i], sizes[i], cubic, (height, width))
        for y in range(height):
            resize_row(of_window, y, pixel)
            line = out[i, y].reshape(-1)
            for x in range(width):
                line[3 * x] = level(pixel[4 * x])
                line[3 * x + 1] = level(pixel[4 * x + 1])
                line[3 * x + 2] = level(pixel[4 * x + 2])


def crop_resize_into(out: NDArray[np.uint8], windows: Windows, interpolation: str) -> None:
    """Crop and resize with the GIL released.

    Args:
        out: uint8 (N, H, W, 3), contiguous; filled.
        windows: N, their images in the CPU's memory.
        interpolation: "bilinear" or "bicubic".
    """
    _crop_resize_all(addressed(windows), interpolation == "bicubic", out)


def addressed(windows: Windows) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return corners, steps and sizes as the loops take them."""
    corners, steps, sizes = (np.ascontiguousarray(part, np.int64) for part in windows)
    return corners, steps, sizes
