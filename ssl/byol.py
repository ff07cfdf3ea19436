"""BYOL (Grill et al. 2020, "Bootstrap Your Own Latent") with OAC's per-role heads.

Both views pass through both networks each step (the symmetric loss), so query and key need no draw.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import normalize

from objcrop.ssl.backbones import backbone
from objcrop.ssl.heads import RoleHeads, byol_head
from objcrop.ssl.moco import Encoder
from objcrop.ssl.momentum_encoder import follow, momentum_copy
from objcrop.ssl.recipe import Recipe
from objcrop.ssl.schedules import byol_momentum


def byol_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean of 2 - 2 cos(prediction, target) (equation 2); both (N, dim), the target without gradient."""
    return (2 - 2 * (normalize(prediction.float(), dim=1) * normalize(target.float(), dim=1)).sum(1)).mean()


class BYOL(nn.Module):
    """Online network with predictor, target network.

    Args:
        recipe: arch, size, dim, hidden, ema, heads.
        roles: of the two views.
        heads_shared: the policy's word on whether its roles share a head.
    """

    def __init__(self, recipe: Recipe, roles: Sequence[str], heads_shared: bool) -> None:
        super().__init__()
        network, width = backbone(recipe.arch, recipe.size)
        hidden = recipe.hidden or width
        shared = heads_shared or recipe.heads == "shared"
        self.recipe, self.roles = recipe, tuple(roles)
        self.encoder = Encoder(network, RoleHeads(roles, shared, lambda: byol_head(width, hidden, recipe.dim)))
        self.predictor = RoleHeads(roles, shared, lambda: byol_head(recipe.dim, hidden, recipe.dim))
        self.momentum_encoder = momentum_copy(self.encoder)

    def forward(self, views: Sequence[torch.Tensor], step: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and what to watch, all on the device; call `after_step` once the optimiser has stepped."""
        projections = [self.encoder(view, role) for view, role in zip(views, self.roles)]
        predictions = [self.predictor(z, role) for z, role in zip(projections, self.roles)]
        with torch.no_grad():
            targets = [self.momentum_encoder(view, role) for view, role in zip(views, self.roles)]
        loss = byol_loss(predictions[0], targets[1]) + byol_loss(predictions[1], targets[0])
        with torch.no_grad():
            embedding = normalize(projections[0].float(), dim=1)
            watch = {"positive_similarity": 1 - loss.detach() / 4, "embedding_std": embedding.std(0).mean()}
        return loss, watch

    def after_step(self, progress: float) -> None:
        """Let the target follow; its momentum rises from `ema` to 1 as `progress` goes from 0 to 1."""
        follow(self.momentum_encoder, self.encoder, byol_momentum(progress, self.recipe.ema))
