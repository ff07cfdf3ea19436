"""A memory bank: an embedding of every sample, which follows the encoder (Wu et al. 2018; CMC, section 3.4)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.functional import normalize


class MemoryBank(nn.Module):
    """Rows by sample, kept in checkpoints; the same on all ranks where all update it by the whole batch.

    Attributes:
        rows: (samples, dim).
        z: what scores against it are divided by, where somebody sets it.

    Args:
        samples: of an epoch.
        dim: of an embedding.
        momentum: share of a row that an update leaves.
    """

    rows: torch.Tensor
    z: torch.Tensor

    def __init__(self, samples: int, dim: int, momentum: float = 0.5) -> None:
        super().__init__()
        reach = 1 / math.sqrt(dim / 3)  # of length 1 in the mean; each row becomes so exactly when it is first updated
        self.register_buffer("rows", torch.rand(samples, dim) * 2 * reach - reach)
        self.register_buffer("z", torch.ones(()))
        self.momentum = momentum

    def similarities(self, embeddings: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        """Return the inner products (N, K) of embeddings (N, dim) and the rows at int64 (N, K)."""
        return torch.bmm(self.rows[index], embeddings[:, :, None])[:, :, 0]

    @torch.no_grad()
    def update(self, index: torch.Tensor, embeddings: torch.Tensor) -> None:
        """Move rows towards embeddings (N, dim) and back to length 1; of equal indices (N,) the last one's stays."""
        moved = normalize(self.momentum * self.rows[index] + (1 - self.momentum) * embeddings, dim=1)
        place = torch.arange(len(index), device=index.device)
        last = torch.where(index[:, None] == index, place, -1).amax(1)
        self.rows.index_copy_(0, index, moved[last].to(self.rows.dtype))  # equal rows may come in any order
