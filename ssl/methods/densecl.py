"""DenseCL (Wang et al. 2021, "Dense Contrastive Learning for Self-Supervised Visual Pre-Training") with OAC's heads.

MoCo-v2, and beside it the same loss on the cells of the backbone's last map. A second head of 1×1 convolutions embeds
every cell; the positive of a query's cell is the embedding of that cell of the same image's key map whose backbone
features are nearest by cosine (equation 3); its negatives are a second queue of whole images: of each key its embedded
cells' mean, at length 1 (section 3.2). The loss is (1 - λ) that of images + λ that of cells, λ = 0.5 (equation 2).

With per-role heads (OAC 3) each role has both heads and both queues. Keys, pooled keys, cells and backbone maps go
through the shuffled batch and back together. Cells are matched in float32 under bf16 too: rounded features tie.

Against WXinlong/DenseCL: views are drawn by the plan, which view is the query is drawn per step, empty places of the
queues are no negatives, as in `moco.py`. Not built, since no shipped configuration uses it: λ = 0 in the first steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from objcrop.ssl.methods.densecl_recipe import DenseCLRecipe
from objcrop.ssl.methods.info_nce import info_nce, info_nce_in_chunks
from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output, similarities
from objcrop.ssl.methods.moco import query_view
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.feature_maps import give_maps
from objcrop.ssl.networks.heads import RoleHeads, dense_head, densecl_head
from objcrop.ssl.networks.key_queue import KeyQueue
from objcrop.ssl.networks.momentum_encoder import follow, momentum_copy
from objcrop.ssl.networks.shuffle_bn import VirtualDevices


@torch.no_grad()
def nearest_cells(query_map: torch.Tensor, key_map: torch.Tensor) -> torch.Tensor:
    """Return for each cell of an image's query map the cell of its key map that is nearest by cosine.

    Args:
        query_map: float32 (N, cells, C), of length 1.
        key_map: float32 (N, other cells, C), of length 1, rows as those of `query_map`.

    Returns:
        int64 (N, cells); of equals the first.
    """
    with torch.autocast(query_map.device.type, enabled=False):
        return (query_map @ key_map.mT).argmax(2)


class DenseEncoder(Encoder):
    """Backbone, projection heads and heads for cells."""

    def __init__(self, backbone: nn.Module, heads: RoleHeads, dense_heads: RoleHeads, width: int) -> None:
        super().__init__(backbone, heads, width)
        self.dense_heads = dense_heads

    def forward(self, views: torch.Tensor, role: str) -> tuple[torch.Tensor, ...]:  # type: ignore[override]
        """Return features (N, width), embeddings (N, dim), those of cells (N, cells, dim) and the map (N, cells, C)."""
        features, (last,) = self.backbone(views)
        cells = self.dense_heads(last, role)
        return features, self.heads(features, role), cells.flatten(2).mT, last.flatten(2).mT


class DenseCL(Method):
    """Query encoder, momentum encoder, a queue of images and one of mean cells.

    Args:
        recipe: arch, size, init, dim, hidden, queue, temperature, dense_weight, batch_size, bn_groups, heads, ema.
        data: roles of the two views, and whether they share their heads.
    """

    options = DenseCLRecipe

    def __init__(self, recipe: DenseCLRecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        (channels,) = give_maps(network, recipe.arch, recipe.size)
        shared, dim = data.heads_shared or recipe.heads == "shared", recipe.dim
        heads = RoleHeads(data.roles, shared, lambda: densecl_head(width, recipe.hidden or width, dim))
        dense = RoleHeads(data.roles, shared, lambda: dense_head(channels, recipe.hidden or channels, dim))
        self.roles = data.roles
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        self.encoder = DenseEncoder(network, heads, dense, width)
        self.devices.normalise(self.encoder)
        self.momentum_encoder = momentum_copy(self.encoder)
        self.queues = nn.ModuleDict({name: KeyQueue(recipe.queue, dim) for name in heads.heads})
        self.dense_queues = nn.ModuleDict({name: KeyQueue(recipe.queue, dim) for name in heads.heads})
        self._pushed: list[tuple[KeyQueue, torch.Tensor]] = []

    def _queues(self, role: str) -> tuple[KeyQueue, KeyQueue]:
        name = role if role in self.queues else "all"
        return self.queues[name], self.dense_queues[name]  # type: ignore[return-value]

    @torch.no_grad()
    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return keys (N, dim), their cells (N, cells, dim) and maps (N, cells, C)."""
        k, dim = 1 - query_view(self.recipe.seed, step), self.recipe.dim
        shapes: list[torch.Size] = []

        def encode(part: torch.Tensor) -> torch.Tensor:
            _, embedding, cells, last = self.momentum_encoder(part, self.roles[k])
            each = embedding, cells.mean(1), cells, last
            shapes[:] = [of.shape[1:] for of in each]
            return torch.cat([unit_rows(of).flatten(1) for of in each], 1)

        whole = self.devices.encode_shuffled(encode, batch.views[k], self.recipe.seed, step)
        queue, dense_queue = self._queues(self.roles[k])
        both = whole[:, : 2 * dim].clone()  # not a part of all, which would be held until the step is over
        self._pushed = [(queue, both[:, :dim]), (dense_queue, both[:, dim:])]
        parts = self.devices.mine(whole).split([shape.numel() for shape in shapes], 1)
        keys, _, cells, last = (part.unflatten(1, shape) for part, shape in zip(parts, shapes))
        return keys, cells, last

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return InfoNCE of images and of cells, weighted."""
        q = query_view(self.recipe.seed, step)
        keys, key_cells, key_map = targets
        features, embedding, cells, last = self.encoder(batch.views[q], self.roles[q])
        query, cells = unit_rows(embedding), unit_rows(cells)
        nearest = nearest_cells(unit_rows(last.detach()), key_map)
        positives = key_cells.gather(1, nearest[..., None].expand(-1, -1, key_cells.shape[2]))
        (queue, dense_queue), share = self._queues(self.roles[1 - q]), self.recipe.dense_weight
        heat = self.recipe.temperature
        of_images = info_nce(query, keys, queue.keys, heat, queue.filled)
        every = cells.flatten(0, 1), positives.flatten(0, 1)
        of_cells = info_nce_in_chunks(*every, dense_queue.keys, heat, dense_queue.filled)
        watch = similarities(query.detach(), keys, queue.mean())
        watch["dense_positive_similarity"] = (cells.detach() * positives).sum(2).mean()
        return Output((1 - share) * of_images + share * of_cells, features.detach(), watch)

    @torch.no_grad()
    def after_step(self, progress: float) -> None:
        """Let the momentum encoder follow and the keys enter their queues; `progress` plays no part."""
        follow(self.momentum_encoder, self.encoder, self.recipe.ema)
        for queue, keys in self._pushed:
            queue.push(keys)
        self._pushed = []
