"""MoCo-v2 (Chen et al. 2020, "Improved Baselines with Momentum Contrastive Learning") with OAC's per-role heads.

Which view is query and which is key is drawn per step as a function of (seed, step), the same on all ranks (OAC,
Algorithm 1). Both encoders hold a projection head per role, and each head has a queue of its own: keys of one head lie
closer to each other than to the keys of the other, so in a mixed queue a query would find negatives of its own head
nearer than its positive, which comes from the other head (seen: the loss then stays above that of a constant
embedding).

Against facebookresearch/moco: views are drawn by the plan, empty places in the queue are no negatives, and the
momentum encoder follows after the optimiser's step instead of before the next one, which is the same.

Local views (multi-crop: Van Gansbeke et al. 2021, "Revisiting Contrastive Methods") are further queries of the step's
key: the loss is the mean over all queries, as theirs. Local views have no keys.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from objcrop.dali_pipes.philox import uniforms
from objcrop.ssl.methods.info_nce import info_nce
from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output, similarities
from objcrop.ssl.methods.moco_recipe import MoCoRecipe
from objcrop.ssl.methods.multi_crop import embed_together, local_groups
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import RoleHeads, moco_head
from objcrop.ssl.networks.key_queue import KeyQueue
from objcrop.ssl.networks.momentum_encoder import follow, momentum_copy
from objcrop.ssl.networks.shuffle_bn import VirtualDevices


def query_view(seed: int, step: int) -> int:
    """Return which of the two large views is the query at this step."""
    return int(uniforms(seed, step, 0, 0, "query_view")[0] < 0.5)


class MoCo(Method):
    """Query encoder, momentum encoder, queue.

    Args:
        recipe: arch, size, init, dim, hidden, queue, temperature, batch_size, bn_groups, heads, ema.
        data: roles of the views, and whether they share a head.
    """

    options = MoCoRecipe
    takes = range(2, 17)
    multi_crop = True

    def __init__(self, recipe: MoCoRecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        shared = data.heads_shared or recipe.heads == "shared"
        heads = RoleHeads(data.roles, shared, lambda: moco_head(width, recipe.hidden or width, recipe.dim))
        self.roles = data.roles
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        self.encoder = Encoder(network, heads, width)
        self.devices.normalise(self.encoder)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.queues = nn.ModuleDict({name: KeyQueue(recipe.queue, recipe.dim) for name in heads.heads})
        self._pushed: tuple[KeyQueue, torch.Tensor] | None = None

    def _queue(self, role: str) -> KeyQueue:
        return self.queues[role if role in self.queues else "all"]  # type: ignore[return-value]

    @torch.no_grad()
    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return the positive keys; the global batch of keys enters the queue after the step."""
        k = 1 - query_view(self.recipe.seed, step)

        def encode(part: torch.Tensor) -> torch.Tensor:
            return unit_rows(self.momentum_encoder(part, self.roles[k])[1])

        keys = self.devices.encode_shuffled(encode, batch.views[k], self.recipe.seed, step)
        self._pushed = self._queue(self.roles[k]), keys
        return (self.devices.mine(keys),)

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return InfoNCE of the queries against their keys and the queue of the keys' role."""
        q = query_view(self.recipe.seed, step)
        features, embedding = self.encoder(batch.views[q], self.roles[q])
        query = unit_rows(embedding)
        queue = self._queue(self.roles[1 - q])
        queries = [query]
        for views, role in local_groups(batch.views, self.roles):
            queries += map(unit_rows, embed_together(self.devices, self.encoder, views, role))
        keys = targets[0].repeat(len(queries), 1)
        loss = info_nce(torch.cat(queries), keys, queue.keys, self.recipe.temperature, queue.filled)
        return Output(loss, features.detach(), similarities(query, targets[0], queue.mean()))

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the momentum encoder follow and the keys enter their queue; `progress` plays no part in MoCo."""
        follow(self.momentum_encoder, self.encoder, self.recipe.ema)
        if self._pushed is not None:
            queue, keys = self._pushed
            queue.push(keys)
            self._pushed = None
