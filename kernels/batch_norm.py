"""BatchNorm over parts of a batch, one virtual device each, as one operator forward and one backward.

They are registered with torch.library: torch.compile, fake tensors and dispatch modes see one call with shapes, strides
and a gradient, and compiled or not the numbers are the same. On CUDA tensors the kernels of batch_norm.cu run,
elsewhere torch's own BatchNorm for each device, which writes its rows of the result; that is the reference, and on a
CPU faster than formulas over all devices at once.
"""

from __future__ import annotations

import numpy as np
import torch

from objcrop.kernels import nvrtc
from objcrop.ranks import gather_ranks, rank_and_world_size

# Of batch_norm.cu.
THREADS = 256
CHANNELS = 64
ROUND = 32
FORMATS = {
    (torch.bfloat16, torch.float32): 0,
    (torch.float32, torch.float32): 1,
    (torch.float64, torch.float64): 2,
}  # of activations and of parameters

BLOCKS = 1024  # of a launch, about: the same on every GPU, so that all add in the same order
MOST_PARTS = 128  # of a device: putting more together in every block would cost more than another launch

Arguments = tuple[torch.Tensor | np.generic, ...]
Shape = tuple[np.int32, np.int32, np.int32]


def fits(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Return whether the kernels can normalise x, a CUDA tensor, with parameters like the weight."""
    return x.is_cuda and nvrtc.available() and (x.dtype, weight.dtype) in FORMATS


def batch_norm(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: int, epsilon: float, over_ranks: bool = False
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Normalise each device's rows by their own mean and variance.

    Args:
        x: (devices × rows, C, …), the rows of a device side by side; bf16, fp32 or fp64, sums are taken in the type of
            the parameters.
        weight: (C,).
        bias: (C,).
        rows: of a device.
        epsilon: added to the variance.
        over_ranks: take the statistics over the rows of all processes, which have one device each; where `fits` says
            yes only. As in torch's SyncBatchNorm, the gradients of weight and bias stay this process's own.

    Returns:
        The result, like x and channels last; and for the running statistics the means over the devices of their means
        and of their unbiased variances, each (C,), without gradient.
    """
    y, seen, _ = _operator(x, weight, bias, rows, epsilon, over_ranks)
    return y, seen[0], seen[1]


def _forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: int, epsilon: float, over_ranks: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the result, what the running statistics see (2, C), and mean and inverse deviation (2, devices, C)."""
    pixels, devices, channels = _channels_last(x), len(x) // rows, x.shape[1]
    y, saved = _like(pixels), weight.new_empty(2, devices, channels)
    if fits(x, weight):
        grid, shape = _grid(pixels, devices)
        left, seen = weight.new_empty(devices, grid[1], 2, channels), weight.new_empty(2, channels)
        nvrtc.launch("batch_norm", "moments", grid, (THREADS,), (pixels, *shape, left))
        _, parts = _joined(left, grid, shape, over_ranks)
        known: Arguments = (pixels, *shape, *parts, weight, bias, np.float64(epsilon))
        nvrtc.launch("batch_norm", "normalise", grid, (THREADS,), (*known, _channels_last(y), saved, seen))
        return y, seen, saved
    running = weight.new_zeros(2, devices, channels)
    for device, (part, its_y) in enumerate(zip(_images(pixels).split(rows), _images(_channels_last(y)).split(rows))):
        out = {"out": its_y, "save_mean": saved[0, device], "save_invstd": saved[1, device]}
        torch.ops.aten.native_batch_norm.out(part, weight, bias, *running[:, device], True, 1.0, epsilon, **out)
    return y, running.mean(1), saved


def _backward(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    saved: torch.Tensor,
    rows: int,
    epsilon: float,
    over_ranks: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients of x, and of weight and bias (2, C)."""
    pixels, slopes, devices, channels = _channels_last(x), _channels_last(dy), len(x) // rows, x.shape[1]
    dx = _like(pixels)
    if fits(x, weight):
        grid, shape = _grid(pixels, devices)
        left, gradients = weight.new_empty(devices, grid[1], 2, channels), weight.new_empty(2, channels)
        nvrtc.launch("batch_norm", "gradient_sums", grid, (THREADS,), (slopes, pixels, *shape, saved, left))
        kind, _, width = shape
        own, parts = _joined(left, grid, (kind, np.int32(0), width), over_ranks)
        known: Arguments = (slopes, pixels, *shape, *parts, own, weight, saved)
        nvrtc.launch("batch_norm", "gradient", grid, (THREADS,), (*known, _channels_last(dx), gradients))
        return dx, gradients
    gradients = weight.new_empty(devices, 2, channels)
    each = zip(*(_images(whole).split(rows) for whole in (slopes, pixels, _channels_last(dx))))
    for device, (its_dy, part, its_dx) in enumerate(each):
        made = torch.ops.aten.native_batch_norm_backward(
            its_dy, part, weight, None, None, *saved[:, device], True, epsilon, [True, True, True]
        )
        its_dx.copy_(made[0])
        gradients[device, 0], gradients[device, 1] = made[1:]
    return dx, gradients.sum(0)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """Return (N, C, …) as dense (N, …, C), a view where it lies so."""
    return x.movedim(1, -1).contiguous()


def _like(pixels: torch.Tensor) -> torch.Tensor:
    """Return an empty (N, C, …) that lies as (N, …, C), no view: a ReLU may write into it."""
    return torch.empty_like(pixels.movedim(-1, 1))


def _images(pixels: torch.Tensor) -> torch.Tensor:
    """Return dense (N, …, C) as (N, C, positions, 1), channels last, the lay-out that torch's BatchNorm is fast in."""
    return pixels.view(len(pixels), -1, 1, pixels.shape[-1]).movedim(-1, 1)


def _grid(pixels: torch.Tensor, devices: int) -> tuple[tuple[int, int, int], Shape]:
    """Return the grid of the kernels, and what all are told: format, positions, channels."""
    channels = pixels.shape[-1]
    positions = pixels.numel() // (devices * channels)
    tiles = -(-channels // CHANNELS)
    parts = max(min(BLOCKS // (tiles * devices), -(-positions // ROUND)), 1)
    kind = next(kind for (of_pixels, _), kind in FORMATS.items() if of_pixels == pixels.dtype)
    return (tiles, parts, devices), (np.int32(kind), np.int32(positions), np.int32(channels))


def _joined(
    left: torch.Tensor, grid: tuple[int, int, int], shape: Shape, over_ranks: bool
) -> tuple[torch.Tensor, tuple[torch.Tensor, np.int32, np.int32]]:
    """Make what a first launch left into few parts that every block of the second puts together.

    Args:
        left: (devices, parts, 2, C).
        grid: of that launch.
        shape: as of the kernels; 0 positions where the parts are sums.
        over_ranks: gather the parts of all ranks.

    Returns:
        This rank's parts; and the parts (ranks, devices, parts, 2, C), of how many ranks, and of how many each.
    """
    devices, count, _, channels = left.shape
    if over_ranks or count > MOST_PARTS:
        one = left.new_empty(devices, 1, 2, channels)
        nvrtc.launch("batch_norm", "join", (grid[0], 1, devices), (THREADS,), (left, *shape, np.int32(count), one))
        left = one
    parts = gather_ranks(left) if over_ranks else left
    ranks = rank_and_world_size()[1] if over_ranks else 1
    return left, (parts, np.int32(ranks), np.int32(left.shape[1]))


_operator = torch.library.custom_op(
    "objcrop::batch_norm",
    _forward,
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias, int rows, float epsilon, bool over_ranks)"
    " -> (Tensor, Tensor, Tensor)",
)
_backward_operator = torch.library.custom_op(
    "objcrop::batch_norm_backward",
    _backward,
    mutates_args=(),
    schema="(Tensor dy, Tensor x, Tensor weight, Tensor saved, int rows, float epsilon, bool over_ranks)"
    " -> (Tensor, Tensor)",
)


@_operator.register_fake
def _(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, rows: int, epsilon: float, over_ranks: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    saved = weight.new_empty(2, len(x) // rows, x.shape[1])
    return _like(_channels_last(x)), weight.new_empty(2, x.shape[1]), saved


@_backward_operator.register_fake
def _(
    dy: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    saved: torch.Tensor,
    rows: int,
    epsilon: float,
    over_ranks: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    return _like(_channels_last(x)), weight.new_empty(2, x.shape[1])


def _keep(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    x, weight, _, *ctx.rest = inputs
    _, seen, saved = output
    ctx.save_for_backward(x, weight, saved)
    ctx.mark_non_differentiable(seen, saved)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, dy, *_):  # type: ignore[no-untyped-def]
    if dy is None:
        return None, None, None, None, None, None
    dx, gradients = _backward_operator(dy, *ctx.saved_tensors, *ctx.rest)
    return dx, gradients[0], gradients[1], None, None, None


_operator.register_autograd(_differentiate, setup_context=_keep)
