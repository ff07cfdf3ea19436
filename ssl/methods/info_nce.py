"""InfoNCE, the contrastive loss (van den Oord et al. 2018; MoCo: He et al. 2020, equation 1)."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy


def info_nce(
    query: torch.Tensor,
    key: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the mean over the batch of -log(exp(q·k/T) / (exp(q·k/T) + Σ exp(q·n/T))).

    Args:
        query: (N, dim), of length 1.
        key: (N, dim), the positive of each query, of length 1.
        negatives: (K, dim), of length 1.
        temperature: T.
        valid: bool (K,), which negatives count; None for all. Without any the loss is 0.
    """
    positive = (query * key).sum(1, keepdim=True)
    negative = query @ negatives.T
    if valid is not None:
        negative = negative.masked_fill(~valid, -torch.inf)
    logits = torch.cat([positive, negative], dim=1) / temperature
    return cross_entropy(logits.to(query.dtype), torch.zeros(len(query), dtype=torch.int64, device=query.device))
