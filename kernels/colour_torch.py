"""Colour as batched tensor operations: the definition of colour_reference on any device, without host synchronisation.

Used on a GPU where the fused kernel is not to be had. Every step runs on the whole batch and `torch.where` keeps what
each view decided, so nothing depends on values the host would have to wait for.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import conv2d, pad

from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.colour_reference import blur_kernel_size


def _luma(x: torch.Tensor) -> torch.Tensor:
    return (x * x.new_tensor([0.2989, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def _blend(x: torch.Tensor, other: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    return (x * factor + other * (1 - factor)).clamp(0, 1)


def _hue(x: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Rotate the hue by `shift` turns: f(n) = v - c * clamp(min(k, 4 - k), 0, 1), k = (n + h) mod 6."""
    top, bottom = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    chroma = top - bottom
    safe = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    r, g, b = x.split(1, dim=1)
    sector = torch.where(top == r, (g - b) / safe, torch.where(top == g, (b - r) / safe + 2, (r - g) / safe + 4))
    k = (sector + 6 * shift + x.new_tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)).remainder(6)
    return top - chroma * torch.minimum(k, 4 - k).clamp(0, 1)


def _blur(x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """Blur each view by its own sigma (N,); 0 leaves it as it is."""
    n, c, size, _ = x.shape
    half = blur_kernel_size(size) // 2
    offset = torch.arange(-half, half + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2)
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(c, 0)
    flat = pad(x.contiguous(), [half] * 4, mode="reflect").view(1, n * c, size + 2 * half, size + 2 * half)
    flat = conv2d(flat, kernel[:, None, None, :], groups=n * c)
    return conv2d(flat, kernel[:, None, :, None], groups=n * c).view(n, c, size, size)


def colour_torch(
    views: torch.Tensor,
    decisions: Decisions,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Augment and normalise a batch of views.

    Args:
        views: uint8 (N, S, S, 3).
        decisions: of N views, tensors where they lie.
        mean: per channel.
        std: per channel.
        dtype: of the result.

    Returns:
        (N, 3, S, S), channels_last, on the device of `views`.
    """
    flip, jitter, factors, order, grey, sigma, solarise = decisions

    def per_view(decision: torch.Tensor) -> torch.Tensor:
        return decision.view(-1, 1, 1, 1)

    x = views.permute(0, 3, 1, 2).to(torch.float32) / 255
    brightness, contrast, saturation, hue = (per_view(factors[:, f]) for f in range(4))
    for place in range(4):
        step = order[:, place].to(torch.int64)
        made = (
            (x * brightness).clamp(0, 1),
            _blend(x, _luma(x).mean((1, 2, 3), keepdim=True), contrast),
            _blend(x, _luma(x), saturation),
            _hue(x, hue),
        )
        for s, result in enumerate(made):
            x = torch.where(per_view((step == s) & jitter), result, x)
    x = torch.where(per_view(grey), _luma(x), x)
    x = torch.where(per_view(sigma > 0), _blur(x, sigma), x)
    x = torch.where(per_view(solarise) & (x >= 0.5), 1 - x, x)
    x = torch.where(per_view(flip), x.flip(3), x)
    normalised = (x - x.new_tensor(mean).view(1, 3, 1, 1)) / x.new_tensor(std).view(1, 3, 1, 1)
    return normalised.to(dtype).contiguous(memory_format=torch.channels_last)
