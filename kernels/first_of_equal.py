"""The greatest of a row in an order that leaves nothing to chance: of equal scores the first comes first.

`torch.topk` promises no order of equal scores, and its own differs between devices; a stable sort of all costs more.
"""

from __future__ import annotations

import torch


def first_of_equal(scores: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the k greatest whole numbers of each row, the greatest first, of equal ones the one of lower index.

    Args:
        scores: int64 (..., n), their absolute value times n below 2^63.
        k: how many, at most n.

    Returns:
        int64 (..., k): the numbers, and their indices.
    """
    n = max(scores.shape[-1], 1)
    backwards = torch.arange(n - 1, -1, -1, device=scores.device)
    best = (scores * n + backwards[: scores.shape[-1]]).topk(k).values  # all different
    return best.div(n, rounding_mode="floor"), n - 1 - best.remainder(n)
