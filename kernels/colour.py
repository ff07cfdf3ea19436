"""Colour on whatever the views lie on: on CUDA tensors the fused kernel of colour.cu, elsewhere colour_torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from objcrop.kernels import nvrtc
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.colour_reference import blur_kernel_size
from objcrop.kernels.colour_torch import colour_torch

# Of colour.cu.
PARTS = 8
SIDES = (32, 16)  # of the tiles, pixels, the first where it fits well
BATCH = 4
MOST_TAPS = 64
FORMATS = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}

MEAN_THREADS = 256
THREADS = 192  # two a column of the larger tile's channels, as `finish` deals them out
ROWS = 128  # of pixels that a block works on, at most: fewer blocks look at the plan, but the last ones take longer
FEW = 3  # blocks a multiprocessor: fewer leave it waiting
MOST_VIEWS = 65535  # of a grid's third axis


def shared_bytes(size: int, tile: int) -> int:
    """Return the dynamic shared memory of a block, bytes.

    Args:
        size: side of the views, pixels.
        tile: side of the tiles, pixels.
    """
    half = blur_kernel_size(size) // 2
    side = tile + 2 * (half | 1) + 1 if half else tile
    return 4 * -(-side // BATCH) * BATCH * (3 * side | 1)


def tile_for(size: int, device: torch.device) -> int | None:
    """Return the side of the tiles for views of this side: the larger one unless shared memory is short.

    Args:
        size: side of the views, pixels.
        device: a GPU.

    Returns:
        The smaller one where a multiprocessor would hold few blocks of the larger (a T4 one, GeForce cards two) and
        holds twice as many of the smaller, or where a block with the larger has no room; None where neither has.
    """
    blocks = {}
    for side in SIDES:
        needed = shared_bytes(size, side) + 4 * MOST_TAPS
        has_room = needed <= nvrtc.most_shared_bytes(device)
        each = needed + nvrtc.RESERVED_BYTES
        blocks[side] = nvrtc.shared_bytes_of_multiprocessor(device) // each if has_room else 0
    large, small = SIDES
    if not any(blocks.values()):
        return None
    return small if blocks[large] < FEW and blocks[small] >= 2 * blocks[large] else large


def fits(views: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether the kernel can make a result of that type of these views (N, S, S, 3), CUDA tensors."""
    size = views.shape[1]
    taps = 2 * (blur_kernel_size(size) // 2 | 1) + 2
    return (
        nvrtc.available()
        and dtype in FORMATS
        and taps <= MOST_TAPS
        and tile_for(size, views.device) is not None
        and len(views) <= MOST_VIEWS
    )


@torch.no_grad()
def colour(
    views: torch.Tensor,
    decisions: Decisions,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Augment and normalise a batch of views.

    On CUDA tensors the kernel runs in torch's current stream; nothing is copied or waited for. Where it cannot (no
    CuPy, views of 640 pixels or more, less on GPUs whose blocks have less shared memory) and on other devices
    `colour_torch` runs.

    Args:
        views: uint8 (N, S, S, 3).
        decisions: of N views, tensors where they lie.
        mean: per channel.
        std: per channel.
        dtype: of the result.

    Returns:
        (N, 3, S, S), channels_last, on the device of `views`.
    """
    way = colour_by_kernel if views.is_cuda and fits(views, dtype) else colour_torch
    return way(views, decisions, mean, std, dtype)


def colour_by_kernel(
    views: torch.Tensor,
    decisions: Decisions,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
) -> torch.Tensor:
    """Launch the two kernels; arguments as `colour`, views that `fits` says yes to."""
    count, size = views.shape[:2]
    shape = (count, 3, size, size)
    out = torch.empty(shape, dtype=dtype, device=views.device, memory_format=torch.channels_last)
    if not out.numel():
        return out
    views, *each = (tensor.contiguous() for tensor in (views, *decisions))
    decided = Decisions(*each)
    means = torch.empty(count, PARTS, device=views.device)
    side, half = np.int32(size), np.int32(blur_kernel_size(size) // 2)
    of_jitter = (decided.jitter, decided.factors, decided.order)
    arguments: tuple[torch.Tensor | np.generic, ...] = (views, *of_jitter, side, means)
    nvrtc.launch("colour", "luma_means", (count * PARTS,), (MEAN_THREADS,), arguments)
    gain = [np.float32(1 / s) for s in std]
    bias = [np.float32(-m / s) for m, s in zip(mean, std)]
    arguments = (views, *decided, means, side, half, *gain, *bias, np.int32(FORMATS[dtype]), out)
    tile = tile_for(size, views.device)
    assert tile is not None
    tiles = -(-size // tile)
    grid = (tiles, -(-tiles * tile // ROWS), count)
    nvrtc.launch("colour", f"colour_{tile}", grid, (THREADS,), arguments, shared_bytes(size, tile))
    return out
