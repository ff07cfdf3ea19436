"""Weighted nearest neighbours: what the geometry of the features says, with nothing learned.

Each of the k nearest images in the sense of the cosine votes for its labels with weight exp(cosine / T) (Wu et al.
2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4; T = 0.07, k = 200 there
for ImageNet). With several labels an image the votes of each class are ranked on their own.

Which k are nearest depends on no last digit: cosines are rounded, and of equally near ones, copies of one photo say,
the first in the catalog are taken.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize

from objcrop.kernels.first_of_equal import first_of_equal

STEPS = 1 << 30  # of a cosine from 0 to 1


def neighbour_scores(
    x: torch.Tensor, y: torch.Tensor, x_test: torch.Tensor, *, k: int = 20, temperature: float = 0.07
) -> torch.Tensor:
    """Return each class's share of the votes, float (M, C) in 0..1.

    Args:
        x: features float (N, D) of labelled images.
        y: their labels {0, 1} (N, C).
        x_test: features float (M, D).
        k: neighbours that vote; all where there are fewer.
        temperature: of the weights.
    """
    known = normalize(x.double(), dim=1)
    scores = []
    for part in normalize(x_test.double(), dim=1).split(1024):
        cosine, nearest = first_of_equal((part @ known.T * STEPS).round().long(), min(k, len(x)))
        weight = torch.softmax(cosine / (STEPS * temperature), 1, torch.float64)
        scores.append((weight[:, :, None] * y[nearest]).sum(1))
    return torch.cat(scores).to(x.dtype)
