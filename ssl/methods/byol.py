"""BYOL (Grill et al. 2020, "Bootstrap Your Own Latent") with OAC's per-role heads.

Both views pass through both networks each step (the symmetric loss), so query and key need no draw. The published code
takes BatchNorm's statistics over all devices, so `bn_groups` is 1 here by default; the target network normalises with
the batch's own statistics too.

With local views (multi-crop, CIB Table 11 s3, which leaves the details open) the target of each large view is predicted
from all other views, large and local, as in SwAV: of their losses the mean is taken, and of the two targets the sum, so
that without local views it is BYOL's. Only large views have targets.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from objcrop.ssl.methods.byol_recipe import BYOLRecipe
from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output, similarities
from objcrop.ssl.methods.multi_crop import LARGE, embed_together, local_groups
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import RoleHeads, byol_head
from objcrop.ssl.networks.momentum_encoder import follow, momentum_copy
from objcrop.ssl.networks.shuffle_bn import VirtualDevices
from objcrop.ssl.training.schedules import byol_momentum


def byol_loss(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the mean of 2 - 2 cos(prediction, target) (equation 2); both (N, dim), the target without gradient."""
    return (2 - 2 * (unit_rows(prediction) * unit_rows(target)).sum(1)).mean()


class BYOL(Method):
    """Online network with predictor, target network.

    Args:
        recipe: arch, size, init, dim, hidden, batch_size, bn_groups, ema, heads.
        data: roles of the views, and whether they share a head.
    """

    options = BYOLRecipe
    takes = range(2, 17)
    multi_crop = True

    def __init__(self, recipe: BYOLRecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        hidden = recipe.hidden or 4096
        shared, roles = data.heads_shared or recipe.heads == "shared", data.roles
        self.roles = roles
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        heads = RoleHeads(roles, shared, lambda: byol_head(width, hidden, recipe.dim))
        self.encoder = Encoder(network, heads, width)
        self.predictor = RoleHeads(roles, shared, lambda: byol_head(recipe.dim, hidden, recipe.dim))
        self.devices.normalise(self.encoder)
        self.devices.normalise(self.predictor)
        self.momentum_encoder = momentum_copy(self.encoder)

    @torch.no_grad()
    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return the target network's projection of each large view."""
        return tuple(self.momentum_encoder(view, role)[1] for view, role in zip(batch.views[:LARGE], self.roles))

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the symmetric loss: each view predicts the others' targets."""
        roles = self.roles
        passes = [self.encoder(view, role) for view, role in zip(batch.views[:LARGE], roles)]
        predictions = [self.predictor(z, role) for (_, z), role in zip(passes, roles)]
        for views, role in local_groups(batch.views, roles):
            z = embed_together(self.devices, self.encoder, views, role)
            predictions += self.devices.together(self.predictor, z, role)
        losses = [
            torch.stack([byol_loss(prediction, target) for view, prediction in enumerate(predictions) if view != of])
            for of, target in enumerate(targets)
        ]
        loss = torch.stack([each.mean() for each in losses]).sum()
        with torch.no_grad():
            prediction, target = unit_rows(predictions[0]), unit_rows(targets[1])
            watch = similarities(prediction, target, target.roll(1, 0))
            watch["embedding_std"] = unit_rows(passes[0][1]).std(0).mean()
        return Output(loss, passes[0][0].detach(), watch)

    def after_step(self, progress: float) -> None:
        """Let the target follow; its momentum rises from `ema` to 1 as `progress` goes from 0 to 1."""
        follow(self.momentum_encoder, self.encoder, byol_momentum(progress, self.recipe.ema))
