"""SimCLR (Chen et al. 2020, "A Simple Framework for Contrastive Learning of Visual Representations").

Each view of the batch is to find its image's other view among all views of all ranks. Both views go through the encoder
in one batch, and BatchNorm's statistics are over both and over all devices (`bn_groups` 1), as published. As every view
is compared with every other, a step cannot be taken in parts.

Against google-research/simclr: the loss is the paper's mean over all 2N views, the code's is twice that; the head has
the paper's one hidden layer, the code's by now has two, and as there BatchNorm follows both layers, the last without a
shift; weight decay is the paper's; views are normalised by ImageNet's mean and deviation; the rate multiplies the
velocity. One head serves all roles: neither of the two papers on boxes trains SimCLR.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from objcrop.ranks import gather_ranks, rank_and_world_size
from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output, similarities
from objcrop.ssl.methods.simclr_recipe import SimCLRRecipe
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import RoleHeads, simclr_head
from objcrop.ssl.networks.shuffle_bn import VirtualDevices


class OfAllRanks(torch.autograd.Function):
    """Rows (n, dim) of every rank, one rank after the other; a row's gradient is the sum of what all ranks send it."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return (world × n, dim)."""
        ctx.rows = len(rows)
        return gather_ranks(rows).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        """Return this rank's part, (n, dim)."""
        rank, world = rank_and_world_size()
        whole = gradient.clone(memory_format=torch.contiguous_format)
        if world > 1:
            torch.distributed.all_reduce(whole)
        return whole[rank * ctx.rows :][: ctx.rows]


def nt_xent(one: torch.Tensor, other: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return the mean over this rank's 2N views of -log(exp(z·z⁺/T) / Σ exp(z·z'/T)), z' all views but z (eq. 1).

    Gradients reach the embeddings of all ranks, so that the mean of the ranks' losses has those of one process.

    Args:
        one: (N, dim) of length 1, a view of each image.
        other: (N, dim) of length 1, the other view.
        temperature: T.
    """
    z = torch.cat([one, other])
    rows = torch.arange(len(z), device=z.device)
    before = rank_and_world_size()[0] * len(z)  # views of the ranks before this one
    logits = z @ OfAllRanks.apply(z).T / temperature
    logits = logits.scatter(1, before + rows[:, None], -torch.inf)
    return cross_entropy(logits, before + (rows + len(one)) % len(z))


class SimCLR(Method):
    """An encoder and its head.

    Args:
        recipe: arch, size, init, dim, hidden, temperature, batch_size, bn_groups.
        data: not looked at.
    """

    options = SimCLRRecipe

    def __init__(self, recipe: SimCLRRecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        heads = RoleHeads(("all",), True, lambda: simclr_head(width, recipe.hidden or width, recipe.dim))
        self.encoder = Encoder(network, heads, width)
        self.devices.normalise(self.encoder)

    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """There are none but what `forward` itself makes."""
        return ()

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return NT-Xent over the views of all ranks."""
        features = self.devices.together(self.encoder.backbone, batch.views)
        embeddings = self.devices.together(self.encoder.heads, features, "all")
        one, other = (unit_rows(embedding) for embedding in embeddings)
        with torch.autocast(one.device.type, enabled=False):
            loss = nt_xent(one, other, self.recipe.temperature)
        with torch.no_grad():
            watch = similarities(one, other, other.roll(1, 0))
        return Output(loss, features[0].detach(), watch)
