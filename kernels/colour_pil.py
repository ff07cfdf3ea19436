"""Colour as facebookresearch/moco does it, on PIL images: the baseline people have, with our decisions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image, ImageFilter, ImageOps

from objcrop.kernels.colour_decisions import Decisions


def colour_pil(view: Image.Image, decisions: Decisions, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """Augment and normalise one RGB view; arguments as `colour_reference`, pixels 8-bit between the steps.

    Returns:
        float32 (3, S, S).
    """
    from torchvision.transforms import functional as tv  # 4 s of processor time, which other loaders need not wait for

    flip, jitter, factors, order, grey, sigma, solarise = decisions
    if jitter:
        steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
        for step in order:
            view = steps[int(step)](view, float(factors[int(step)]))
    if grey:
        view = tv.to_grayscale(view, num_output_channels=3)
    if sigma > 0:
        view = view.filter(ImageFilter.GaussianBlur(radius=float(sigma)))
    if solarise:
        view = ImageOps.solarize(view, 128)
    if flip:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return tv.normalize(tv.to_tensor(view), list(mean), list(std))
