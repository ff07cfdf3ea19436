"""SimSiam (Chen and He 2021, "Exploring Simple Siamese Representation Learning") as a method of one's own.

    cd examples && objcrop pretrain --method simsiam_method:SimSiam --catalog photos.arrow --output runs/simsiam

The trainer gives it views, checkpoints, schedules, several processes and accumulation. `SimSiamRecipe` declares its
options: each is a flag, a key of the recipe file's group and is kept in the run folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from objcrop.option import option
from objcrop.option_value import whole
from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output, similarities
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import RoleHeads, byol_head
from objcrop.ssl.networks.shuffle_bn import VirtualDevices
from objcrop.ssl.training.recipe import Recipe


@dataclass(frozen=True)
class SimSiamRecipe(Recipe):
    """SimSiam's own options, and its paper's defaults where they are not MoCo's (section 3)."""

    own_defaults: ClassVar[Mapping[str, Any]] = {"base_lr": 0.05}

    dim: int = option(2048, whole(1, 65536), "of the embeddings")
    hidden: int = option(512, whole(1, 65536), "width of the prediction's bottleneck")


class SimSiam(Method):
    """An encoder and a predictor; the other view's projection is the target, without gradient."""

    options = SimSiamRecipe

    def __init__(self, recipe: SimSiamRecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        heads = RoleHeads(("all",), True, lambda: byol_head(width, recipe.dim, recipe.dim))
        self.encoder = Encoder(network, heads, width)
        self.predictor = byol_head(recipe.dim, recipe.hidden, recipe.dim)
        for part in (self.encoder, self.predictor):
            self.devices.normalise(part)

    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """There are none but what `forward` itself makes."""
        return ()

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the symmetric loss: minus the cosine of each prediction and the other projection."""
        (features, a), (_, b) = (self.encoder(view, "all") for view in batch.views)
        p, q = unit_rows(self.predictor(a)), unit_rows(self.predictor(b))
        a, b = unit_rows(a).detach(), unit_rows(b).detach()
        loss = -((p * b).sum(1).mean() + (q * a).sum(1).mean()) / 2
        return Output(loss, features.detach(), similarities(p.detach(), b, b.roll(1, 0)))
