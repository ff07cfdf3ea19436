"""Predicting whole images, at once or by windows that slide over them.

Source: the test code of PSPNet and PSANet (Zhao et al. 2017, 2018): windows of the training crop's size, two thirds of
it apart, the last at the edge; probabilities are averaged where windows overlap, and an image smaller than a window is
filled up with the mean colour, here to the right and below.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.nn import functional as F


def by_windows(
    network: Callable[[torch.Tensor], torch.Tensor], image: torch.Tensor, window: tuple[int, int]
) -> torch.Tensor:
    """Return the mean probabilities of an image, (1, classes, H, W).

    Args:
        network: from (1, 3, h, w) to logits (1, classes, h, w).
        image: (1, 3, H, W), normalised.
        window: height and width, pixels.
    """
    height, width = image.shape[-2:]
    image = F.pad(image, (0, max(window[1] - width, 0), 0, max(window[0] - height, 0)))
    tops, lefts = (_begins(side, part) for side, part in zip(image.shape[-2:], window, strict=True))
    summed, count = None, torch.zeros(image.shape[-2:], device=image.device)
    for top in tops:
        for left in lefts:
            at = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            share = network(image[at]).softmax(1)
            if summed is None:
                summed = share.new_zeros(1, share.shape[1], *image.shape[-2:])
            summed[at] += share
            count[at] += 1
    assert summed is not None
    return (summed / count)[..., :height, :width]


def _begins(side: int, window: int) -> list[int]:
    """Return where windows begin along a side."""
    step = -(-2 * window // 3)
    return sorted({min(at, side - window) for at in range(0, side - window + step, step)})
