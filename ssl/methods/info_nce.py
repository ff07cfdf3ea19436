"""InfoNCE, the contrastive loss (van den Oord et al. 2018; MoCo: He et al. 2020, equation 1)."""

from __future__ import annotations

from typing import Any

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


LOGITS = 2**24  # at a time: 64 MB in float32


def info_nce_in_chunks(
    query: torch.Tensor,
    key: torch.Tensor,
    negatives: torch.Tensor,
    temperature: float,
    valid: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return `info_nce` of many queries in bounded memory: 256 maps of 49 cells on 65,536 keys are 3.3 GB of logits.

    A chunk's gradient is taken as soon as its logits are there, and they are let go, so that nothing is computed twice.
    Keys and negatives get no gradient, and the gradient none of its own.
    """
    return _InChunks.apply(query, key, negatives, temperature, valid)  # type: ignore[no-any-return]


class _InChunks(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        negatives: torch.Tensor,
        temperature: float,
        valid: torch.Tensor | None,
    ) -> torch.Tensor:
        rows = max(1, LOGITS // len(negatives))
        losses, gradients = [], []
        for q, k in zip(query.split(rows), key.split(rows), strict=True):
            positive = (q * k).sum(1, keepdim=True) / temperature
            logits = (q @ negatives.T).to(q.dtype).div_(temperature)
            if valid is not None:
                logits.masked_fill_(~valid, -torch.inf)
            total = torch.logaddexp(logits.logsumexp(1, keepdim=True), positive)
            losses.append((total - positive).sum())
            if ctx.needs_input_grad[0]:
                share = logits.sub_(total).exp_() @ negatives
                gradients.append(share.to(q.dtype) + torch.expm1(positive - total) * k)
        if gradients:
            ctx.save_for_backward(torch.cat(gradients).div_(temperature * len(query)))
        return torch.stack(losses).sum() / len(query)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (of_query,) = ctx.saved_tensors
        return of_query * gradient, None, None, None, None
