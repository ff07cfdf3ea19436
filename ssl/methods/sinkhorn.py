"""Sinkhorn-Knopp: soft assignments that use every prototype alike (Cuturi 2013; SwAV, section 3.1)."""

from __future__ import annotations

import torch

from objcrop.ranks import gather_ranks


@torch.no_grad()
def sinkhorn(scores: torch.Tensor, epsilon: float, iterations: int = 3) -> torch.Tensor:
    """Return the codes of a batch that lies on all ranks.

    exp(scores / ε) is scaled in turns so that all prototypes get the same share of the batch, and so that the code of
    each row sums to 1, which the last turn leaves exact. It is done with logarithms: nothing overflows where ε is
    small, as exp does in half precision from ε = .09 down.

    Args:
        scores: (N, K), of this rank's rows with the K prototypes; as many rows on every rank.
        epsilon: ε, the smoothness of the codes; towards 0 they become an assignment.
        iterations: of two turns each.

    Returns:
        (N, K) in float32 (float64 of float64); all rows sum to 1, and with many iterations the columns, over all
        ranks, to their number / K.
    """
    log_codes = (scores if scores.dtype == torch.float64 else scores.float()) / epsilon
    for _ in range(iterations):
        log_codes = log_codes - gather_ranks(log_codes.logsumexp(0)).logsumexp(0)
        log_codes = log_codes - log_codes.logsumexp(1, keepdim=True)
    return log_codes.exp()
