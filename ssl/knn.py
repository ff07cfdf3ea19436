"""Weighted nearest neighbours: what the geometry of the features says, with nothing learned.

Each of the k nearest images in the sense of the cosine votes for its labels with weight exp(cosine / T) (Wu et al.
2018, "Unsupervised Feature Learning via Non-Parametric Instance Discrimination", section 3.4; T = 0.07, k = 200 there
for ImageNet). With several labels an image the votes of each class are ranked on their own.
"""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


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
    known = normalize(x, dim=1)
    scores = []
    for part in normalize(x_test, dim=1).split(1024):
        cosine, nearest = (part @ known.T).topk(min(k, len(x)))
        weight = torch.softmax(cosine / temperature, 1)
        scores.append((weight[:, :, None] * y[nearest]).sum(1))
    return torch.cat(scores)
