"""MoCo-v2 (Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning") with OAC's per-role heads.

Which view is query and which is key is drawn per step as a function of (seed, step), the same on all ranks (OAC,
Algorithm 1). Each projection head has a queue of its own: keys of one head lie closer to each other than to the keys
of the other, so in a mixed queue a query would find negatives of its own head nearer than its positive, which comes
from the other head (seen: the loss then stays above that of a constant embedding).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import normalize

from objcrop.dali_pipes.philox import uniforms
from objcrop.ranks import rank_and_world_size
from objcrop.ssl.backbones import backbone
from objcrop.ssl.heads import RoleHeads, moco_head
from objcrop.ssl.info_nce import info_nce
from objcrop.ssl.key_queue import KeyQueue
from objcrop.ssl.momentum_encoder import follow, momentum_copy
from objcrop.ssl.recipe import Recipe
from objcrop.ssl.shuffle_bn import encode_shuffled


class Encoder(nn.Module):
    """Backbone and projection heads: views and a role to embeddings."""

    def __init__(self, network: nn.Module, heads: RoleHeads) -> None:
        super().__init__()
        self.backbone, self.heads = network, heads

    def forward(self, views: torch.Tensor, role: str) -> torch.Tensor:
        """Return unnormalised embeddings (N, dim)."""
        return self.heads(self.backbone(views), role)


def query_view(seed: int, step: int) -> int:
    """Return which of two views is the query at this step."""
    return int(uniforms(seed, step, 0, 0, "query_view")[0] < 0.5)


class MoCo(nn.Module):
    """Query encoder, momentum encoder, queue.

    Args:
        recipe: arch, size, dim, hidden, queue, temperature, bn_groups, heads.
        roles: of the two views.
        heads_shared: the policy's word on whether its roles share a head.
    """

    def __init__(self, recipe: Recipe, roles: Sequence[str], heads_shared: bool) -> None:
        super().__init__()
        network, width = backbone(recipe.arch, recipe.size)
        shared = heads_shared or recipe.heads == "shared"
        heads = RoleHeads(roles, shared, lambda: moco_head(width, recipe.hidden or width, recipe.dim))
        self.recipe, self.roles = recipe, tuple(roles)
        self.encoder = Encoder(network, heads)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.queues = nn.ModuleDict({name: KeyQueue(recipe.queue, recipe.dim) for name in heads.heads})

    def forward(self, views: Sequence[torch.Tensor], step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and what to watch, all on the device; call `after_step` once the optimiser has stepped."""
        q = query_view(self.recipe.seed, step)
        k = 1 - q
        query = normalize(self.encoder(views[q], self.roles[q]), dim=1)
        with torch.no_grad():
            keys = encode_shuffled(
                lambda part: normalize(self.momentum_encoder(part, self.roles[k]), dim=1),
                views[k],
                seed=self.recipe.seed,
                step=step,
                bn_groups=self.recipe.bn_groups,
            )
        rank, world = rank_and_world_size()
        mine = keys[rank::world]
        queue: KeyQueue = self.queues[self.roles[k] if self.roles[k] in self.queues else "all"]  # type: ignore[assignment]
        negatives, valid = queue.keys.clone(), queue.filled.clone()
        loss = info_nce(query, mine, negatives, self.recipe.temperature, valid)
        queue.push(keys)
        with torch.no_grad():
            watch = {"positive_similarity": (query * mine).sum(1).mean(), "embedding_std": query.std(0).mean()}
        return loss, watch

    def after_step(self, progress: float) -> None:
        """Let the momentum encoder follow; `progress` (0 to 1) plays no part in MoCo."""
        follow(self.momentum_encoder, self.encoder, self.recipe.ema)
