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
QUERIES, KNOWN = 1024, 4096  # images that are compared at a time: 32 MiB of cosines, whatever the sets' sizes


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
    scores = []
    for queries in x_test.split(QUERIES):
        cosine, nearest = _nearest(normalize(queries.double(), dim=1), x, k)
        weight = torch.softmax(cosine / (STEPS * temperature), 1, torch.float64)
        votes = torch.zeros(len(queries), y.shape[1], dtype=torch.float64)
        for weight_of_rank, neighbour in zip(weight.T, nearest.T):
            votes += weight_of_rank[:, None] * y[neighbour]
        scores.append(votes.to(x.dtype))
    return torch.cat(scores)


def _nearest(queries: torch.Tensor, x: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k nearest of x to each query (n, D) of length 1: cosines in `STEPS` and rows, int64 (n, k)."""
    cosine = torch.empty(len(queries), 0, dtype=torch.int64)
    row = cosine
    for begin in range(0, len(x), KNOWN):
        known = normalize(x[begin : begin + KNOWN].double(), dim=1)
        here = (queries @ known.T * STEPS).round().long()
        best, which = first_of_equal(here, min(k, len(known)))
        # Those found before stand first, so that of equal ones the first in the catalog stays.
        cosine, row = torch.cat([cosine, best], 1), torch.cat([row, which + begin], 1)
        cosine, kept = first_of_equal(cosine, min(k, cosine.shape[1]))
        row = row.gather(1, kept)
    return cosine, row
