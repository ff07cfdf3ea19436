"""The one definition of colour: torchvision's float semantics, one view at a time.

Every other implementation (colour_cpu, colour_torch, the CUDA kernel) is held against this one, and this one against
torchvision's public functional in tests/kernels/test_colour_reference.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from objcrop.kernels.colour_decisions import Decisions


def blur_kernel_size(size: int) -> int:
    """Return the odd kernel side of a view of that side: 0.1 × size (Chen et al. 2020, SimCLR, appendix A)."""
    return int(0.1 * size) | 1


def colour_reference(
    view: torch.Tensor, decisions: Decisions, mean: Sequence[float], std: Sequence[float]
) -> torch.Tensor:
    """Augment and normalise one view.

    Args:
        view: uint8 (3, S, S), RGB.
        decisions: of this view.
        mean: subtracted per channel.
        std: divided by per channel.

    Returns:
        float32 (3, S, S).
    """
    from torchvision.transforms.v2 import functional as tv  # as in colour_pil.py

    flip, jitter, factors, order, grey, sigma, solarise = decisions
    x = view.to(torch.float32) / 255
    if jitter:
        steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        for step in order:
            x = steps[int(step)](x, float(factors[int(step)]))
    if grey:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if sigma > 0:
        side = blur_kernel_size(view.shape[-1])
        x = tv.gaussian_blur(x, [side, side], [float(sigma), float(sigma)])
    if solarise:
        x = tv.solarize(x, 0.5)
    if flip:
        x = tv.horizontal_flip(x)
    return tv.normalize(x, list(mean), list(std))
