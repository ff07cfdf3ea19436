"""Shuffled BatchNorm: the keys are normalised in other company than their queries (He et al. 2020, section 3.3).

Otherwise the encoder tells a positive by the statistics the two share. Over several processes the keys of the global
batch are gathered, permuted and dealt out again; in one process they are permuted and normalised in `bn_groups` parts.
The permutation is a function of (seed, step), the same on all ranks.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from objcrop.dali_pipes.philox import uniforms
from objcrop.ranks import rank_and_world_size


def permutation(n: int, seed: int, step: int) -> torch.Tensor:
    """Return a permutation of 0..n-1, a pure function of (seed, step)."""
    return torch.from_numpy(np.argsort(uniforms(seed, step, np.arange(n), 0, "batch_shuffle")[:, 0], kind="stable"))


def gather(local: torch.Tensor) -> torch.Tensor:
    """Return the rows of all ranks in global order (rank r holds rows r, r + world, …); no gradient."""
    _, world = rank_and_world_size()
    if world == 1:
        return local
    import torch.distributed as dist

    parts = [torch.empty_like(local) for _ in range(world)]
    dist.all_gather(parts, local.contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


@torch.no_grad()
def encode_shuffled(
    encode: Callable[[torch.Tensor], torch.Tensor], views: torch.Tensor, *, seed: int, step: int, bn_groups: int
) -> torch.Tensor:
    """Encode this rank's views in shuffled company.

    Args:
        encode: (n, 3, S, S) to (n, dim), with BatchNorm in training mode.
        views: (N, 3, S, S), this rank's rows.
        seed: the run's seed.
        step: the training step.
        bn_groups: parts in one process; fewer where a part would hold fewer than 8 views.

    Returns:
        (N × world, dim): the embeddings of the global batch in global row order, the same on all ranks.
    """
    rank, world = rank_and_world_size()
    whole = gather(views)
    order = permutation(len(whole), seed, step).to(views.device)
    mine = whole[order.view(world, -1)[rank]]
    groups = 1 if world > 1 else max(min(bn_groups, len(mine) // 8), 1)
    encoded = torch.cat([encode(part) for part in mine.contiguous(memory_format=torch.channels_last).chunk(groups)])
    if world > 1:
        import torch.distributed as dist

        parts = [torch.empty_like(encoded) for _ in range(world)]
        dist.all_gather(parts, encoded.contiguous())
        encoded = torch.cat(parts)
    back = torch.empty_like(order)
    back[order] = torch.arange(len(order), device=order.device)
    return encoded[back]
