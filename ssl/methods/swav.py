"""SwAV (Caron et al. 2020, "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments").

The two large crops of an image are assigned to prototypes (their codes, by Sinkhorn-Knopp over the batch of all ranks
and a queue of earlier embeddings), and every other crop, large or local, is to predict each code.

Crops of one size go through the backbone in one batch, and all go through the head in one batch, as published. Where a
step is dealt to virtual devices (`bn_groups`; 1 by default, the published SyncBN) each device does so with its rows.
Codes need the whole batch's scores, so a step cannot be taken in parts.

Against facebookresearch/swav, at its script for batch 256:

- The queue is one and the same on all ranks, and so in the checkpoint; each rank scores its share of it. There a rank
  keeps a queue of its own, in a file of its own. Codes are the same.
- Prototypes are frozen for an epoch by default: the 5,005 steps there are one of ImageNet. The queue is filled from
  epoch 15 on and used once it is full, as there.
- The rate is linear in the batch size (4.8 at batch 4096 is half of that; then warmup_epochs 10, warmup_lr 0.01875,
  base_lr 0.3, final_lr 0.0003, freeze_prototypes 313 and no queue); its cosine begins at the first step.
- There is one head and one set of prototypes, whatever the roles: OAC trains SwAV on scene-scene only.
- Two large crops alone (`local_views=0`) are to have scale .08 to 1 there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import nn
from torch.nn.functional import log_softmax, normalize

from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output, similarities
from objcrop.ssl.methods.multi_crop import LARGE
from objcrop.ssl.methods.sinkhorn import sinkhorn
from objcrop.ssl.methods.swav_recipe import SwAVRecipe
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import RoleHeads, byol_head
from objcrop.ssl.networks.key_queue import KeyQueue
from objcrop.ssl.networks.shuffle_bn import VirtualDevices


def swapped_prediction(scores: torch.Tensor, codes: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean over the assigned crops, over all crops but each of them, and over rows of -Σ q log p (eq. 2).

    Args:
        scores: (V, N, K), of all crops with the prototypes.
        codes: (A, N, K), q of the first A crops, without gradient.
        temperature: p is the softmax of scores / temperature.
    """
    log_p = log_softmax(scores / temperature, dim=2)
    others = log_p.sum(0) - log_p[: len(codes)]  # of each assigned crop: those of all crops but itself
    return -(codes * others).sum(2).mean() / (len(scores) - 1)


class SwAV(Method):
    """Encoder, prototypes, and a queue for each of the two large crops.

    Args:
        recipe: arch, size, init, dim, hidden, prototypes, epsilon, temperature, queue, batch_size, bn_groups.
        data: samples of an epoch.
    """

    options = SwAVRecipe
    takes = range(2, 17)
    multi_crop = True

    def __init__(self, recipe: SwAVRecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        heads = RoleHeads(("all",), True, lambda: byol_head(width, recipe.hidden or width, recipe.dim))
        self.encoder = Encoder(network, heads, width)
        self.devices.normalise(self.encoder)
        self.prototypes = nn.Linear(recipe.dim, recipe.prototypes, bias=False)
        self.queues = nn.ModuleList(KeyQueue(recipe.queue, recipe.dim) for _ in range(LARGE) if recipe.queue)
        epoch = data.samples // recipe.batch_size
        self.frozen = epoch if recipe.freeze_prototypes is None else recipe.freeze_prototypes
        self.queue_from = recipe.queue_epoch * epoch

    @torch.no_grad()
    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return nothing, for codes come of the same pass as predictions; prototypes get back their length of 1."""
        self.prototypes.weight.copy_(normalize(self.prototypes.weight, dim=1))
        return ()

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the loss of all crops' predictions of the large crops' codes."""
        features: list[torch.Tensor] = []
        for _, crops in groupby(batch.views, lambda view: view.shape[-1]):
            features += self.devices.together(self.encoder.backbone, list(crops))
        embeddings = self.devices.together(self.encoder.heads, features, "all")
        z = torch.stack([unit_rows(each) for each in embeddings])
        with torch.autocast(z.device.type, enabled=False):  # of three digits in bf16, ε would leave one
            scores = z @ self.prototypes.weight.T
            codes = self._codes(z[:LARGE].detach(), scores[:LARGE].detach(), step)
            loss = swapped_prediction(scores, codes, self.recipe.temperature)
        with torch.no_grad():
            watch = similarities(z[0], z[1], z[1].roll(1, 0))
        return Output(loss, features[0].detach(), watch)

    @torch.no_grad()
    def _codes(self, z: torch.Tensor, scores: torch.Tensor, step: int) -> torch.Tensor:
        """Return the codes (LARGE, N, K) of the large crops; then their embeddings (LARGE, N, dim) enter the queue."""
        steps = step - self.queue_from  # that have filled the queue
        devices, codes = self.devices, []
        for crop, known in enumerate(scores):
            if self.queues and steps * self.recipe.batch_size >= self.recipe.queue:
                queue: Any = self.queues[crop]
                known = torch.cat([known, queue.keys[devices.rank :: devices.world] @ self.prototypes.weight.T])
            codes.append(sinkhorn(known, self.recipe.epsilon)[: scores.shape[1]])
        if steps >= 0:
            for queue, embeddings in zip(self.queues, z):
                queue.push(devices.gather(embeddings))
        return torch.stack(codes)

    def before_step(self, step: int) -> None:
        """Keep the prototypes as they are in the first steps: without a gradient they neither move nor decay."""
        if step < self.frozen:
            self.prototypes.weight.grad = None
