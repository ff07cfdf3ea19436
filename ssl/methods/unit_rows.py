"""Embeddings on the unit sphere, where contrastive losses and similarities are taken."""

from __future__ import annotations

import torch
from torch.nn.functional import normalize


def unit_rows(embeddings: torch.Tensor) -> torch.Tensor:
    """Return the rows of (…, dim) at length 1, in float32 also where autocast made them narrower."""
    wide = embeddings if embeddings.dtype == torch.float64 else embeddings.float()
    return normalize(wide, dim=-1)
