"""Anchors and their scores for a whole batch of score maps (Coarse Is Better, CIB, section 3.3).

Every cell of a map holds anchors of several shapes around its centre. An anchor's score is the mean, inside it, of the
map after min-max normalisation and bilinear upsampling to the image. Both steps are linear and separable, so the score
is wyᵀ A wx with constant weights: no pixel map is ever made. On a GPU the kernel of anchor_score.cu does it.

Scores decide an order, so they are exact: map and weights are integers whose sums of products float64 holds without
rounding, in any order. The same map gives the same scores on every processor and beside any other maps.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy as np
import torch

from objcrop.errors import UsageError
from objcrop.kernels import nvrtc

GRID = 1 << 24  # steps from 0 to 1 that scores are summed in, what float32 tells apart; as in the .cu
# Steps of a map that a network made. The fewer, the seldomer its rounding errors decide which step a value belongs to;
# an anchor's mean over many cells is finer.
STEPS = 32


def anchor_shapes(
    sizes: Sequence[float] = (32, 64, 128, 256), ratios: Sequence[float] = (0.5, 1.0, 2.0)
) -> torch.Tensor:
    """Return the shapes of the anchors.

    Args:
        sizes: the square root of the area, pixels.
        ratios: height over width.

    Returns:
        float32 (sizes × ratios, 2): width and height in pixels, the ratios of the first size first.

    Raises:
        UsageError: a side is shorter than a pixel.
    """
    if not all(s > 0 for s in (*sizes, *ratios)):
        raise UsageError(f"Anchor sizes {tuple(sizes)} and ratios {tuple(ratios)} must lie above 0.")
    shapes = torch.tensor([(s / math.sqrt(r), s * math.sqrt(r)) for s in sizes for r in ratios]).view(-1, 2)
    if (shapes < 1).any():
        raise UsageError(f"Anchor sizes {tuple(sizes)} at ratios {tuple(ratios)} give a side shorter than a pixel.")
    return shapes.float()


def _intervals(cells: int, pixels: torch.Tensor, sides: torch.Tensor) -> torch.Tensor:
    """Return where anchors begin and end along one axis.

    In float64 every step that could decide a rounding is exact, so all devices agree; the divisor is a tensor because
    CUDA would multiply by the rounded reciprocal of a plain number.

    Args:
        cells: of the map along the axis.
        pixels: int (...), of the image along the axis.
        sides: (K,) pixels.

    Returns:
        int32 (..., K, cells, 2): the edges rounded half up, half-open, clipped to the image.
    """
    pixels = pixels[..., None, None, None]
    half_cells = 2 * torch.arange(cells, device=pixels.device, dtype=torch.float64) + 1
    centre = half_cells[:, None] * pixels / torch.full_like(pixels, 2 * cells)
    half = sides.to(pixels.device, torch.float64)[:, None, None] * 0.5
    edges = torch.cat([centre - half, centre + half], -1)
    return (edges + 0.5).floor().clamp(min=0).minimum(pixels).int()


def anchor_boxes(
    map_size: Sequence[int], image_size: Sequence[int] | torch.Tensor, shapes: torch.Tensor
) -> torch.Tensor:
    """Return every anchor of an image, or of each image of a batch.

    Args:
        map_size: height and width of the score map, as in its shape.
        image_size: width and height of the image in pixels; or int (..., 2), one image a row.
        shapes: float32 (K, 2) from `anchor_shapes`.

    Returns:
        int32 (..., K × h × w, 4): x0, y0, x1, y1 in pixels, half-open, clipped to the image; shape k around the cell in
        row i, column j is number (k × h + i) × w + j.
    """
    height, width = map_size
    size = torch.as_tensor(image_size)
    columns = _intervals(width, size[..., 0], shapes[:, 0])[..., :, None, :, :]
    rows = _intervals(height, size[..., 1], shapes[:, 1])[..., :, :, None, :]
    edges = torch.broadcast_tensors(columns[..., 0], rows[..., 0], columns[..., 1], rows[..., 1])
    return torch.stack(edges, -1).flatten(-4, -2)


def normalise_maps(maps: torch.Tensor) -> torch.Tensor:
    """Stretch each map to 0..1; a constant map becomes zeros.

    Args:
        maps: (B, h, w).

    Returns:
        (B, h, w), float64 of float64 maps, else float32.
    """
    maps = maps if maps.dtype == torch.float64 else maps.float()
    low = maps.amin((1, 2), keepdim=True)
    span = maps.amax((1, 2), keepdim=True) - low
    return (maps - low) / torch.where(span > 0, span, 1)


def maps_in_steps(maps: torch.Tensor, error: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Stretch maps that are known up to an error to 0..1 and round them to steps that the error does not reach.

    Args:
        maps: (B, h, w).
        error: of a value as it lies between the least and the greatest, as a share of the greatest.

    Returns:
        maps: float32 (B, h, w), multiples of 1 / `STEPS`; zeros where the map is constant but for the error.
        doubt: bool (B,), whether some value lies so near the middle of two steps that the error decides.
    """
    greatest = maps.abs().amax((1, 2), keepdim=True)
    reach = STEPS * error * greatest / (maps.amax((1, 2), keepdim=True) - maps.amin((1, 2), keepdim=True))
    exact = STEPS * normalise_maps(maps)
    steps = exact.round()
    doubt = ((exact - steps).abs() >= 0.5 - reach).any(2).any(1)
    return torch.where(reach >= 0.5, 0, steps).float() / STEPS, doubt


@functools.lru_cache(maxsize=256)
def _weights(
    cells: int, pixels: int, sides: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the share of each map cell in the mean over each anchor's pixels along one axis, as fractions.

    Args:
        cells: of the map along the axis.
        pixels: of the image along the axis.
        sides: of the K shapes, pixels.
        device: of the result.

    Returns:
        numerators: whole numbers, float64 (K, cells of the anchors, cells of the map).
        denominators: whole numbers, float64 (K, cells of the anchors).
    """
    # In units of 1 / (2 × pixels) of a cell, in which every pixel's centre is a whole number.
    cell = 2 * pixels
    position = ((2 * torch.arange(pixels) + 1) * cells - pixels).clamp(0, cell * (cells - 1))
    hats = (cell - (position[:, None] - cell * torch.arange(cells)).abs()).clamp(min=0)  # bilinear weight
    running = torch.cat([hats.new_zeros(1, cells), hats.cumsum(0)])
    begin, end = _intervals(cells, torch.tensor(pixels), torch.tensor(sides)).long().unbind(-1)
    return (running[end] - running[begin]).double().to(device), (cell * (end - begin)).double().to(device)


def _score_by_weights(maps: torch.Tensor, image_sizes: torch.Tensor, shapes: torch.Tensor) -> torch.Tensor:
    """Return float32 (B, n): the scores as products with the weights, one product per distinct image size.

    The products are rounded to the whole numbers that they are.
    """
    batch, height, width = maps.shape
    scores = maps.new_empty(batch, len(shapes) * height * width)
    maps = (maps.double() * GRID).round()
    widths, heights = (tuple(side) for side in shapes.T.tolist())
    distinct, which = torch.unique(image_sizes.cpu(), dim=0, return_inverse=True)
    for number, (image_width, image_height) in enumerate(distinct.tolist()):
        across, columns = _weights(width, image_width, widths, maps.device)
        down, rows = _weights(height, image_height, heights, maps.device)
        images = (which == number).nonzero().flatten().to(maps.device)
        means = (torch.einsum("bpq,kjq->bkpj", maps[images], across).round() / columns[:, None]).round()
        means = torch.einsum("kip,bkpj->bkij", down, means).round() / rows[:, :, None]
        scores[images] = (means / GRID).flatten(1).float()
    return scores


@torch.no_grad()
def score_anchors(
    maps: torch.Tensor, image_sizes: torch.Tensor, shapes: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score every anchor of every image of a batch.

    On CUDA tensors the kernel runs in torch's current stream. Where it cannot (no CuPy, or a map larger than a block's
    shared memory) and on other devices the products run, and wait for `image_sizes` once.

    Args:
        maps: (B, h, w) in 0..1, as `normalise_maps` leaves them; multiples of 1 / `GRID` stay as they are.
        image_sizes: int (B, 2): width and height in pixels, at most 16,384; best on the device of `maps`.
        shapes: float32 (K, 2) from `anchor_shapes`.

    Returns:
        boxes: int32 (B, n, 4) as `anchor_boxes`, n = K × h × w.
        scores: float32 (B, n), 0..1.

    Raises:
        UsageError: there is not one image size a map.
    """
    if image_sizes.shape != (len(maps), 2):
        raise UsageError(f"image_sizes is {tuple(image_sizes.shape)}, but {len(maps)} maps need ({len(maps)}, 2).")
    maps = maps.float().contiguous()
    image_sizes = image_sizes.to(maps.device, torch.int32).contiguous()
    batch, height, width = maps.shape
    boxes = anchor_boxes((height, width), image_sizes, shapes)
    shared_bytes = 8 * height * width  # float64
    if not maps.is_cuda or not nvrtc.available() or shared_bytes > nvrtc.SHARED_BYTES:
        return boxes, _score_by_weights(maps, image_sizes, shapes)
    scores = maps.new_empty(boxes.shape[:2])
    if scores.numel():
        sides = np.int32(height), np.int32(width)
        arguments = (maps, image_sizes, boxes, *sides, scores)
        nvrtc.launch("anchor_score", "score_anchors", (batch, len(shapes)), (256,), arguments, shared_bytes)
    return boxes, scores
