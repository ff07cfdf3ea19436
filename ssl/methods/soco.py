"""SoCo (Wei et al. 2021, "Aligning Pretraining for Detection via Object-Level Contrastive Learning"), with FPN.

Boxes are no crops here: views show the image, and what is compared are the regions of its proposals. The first view is
the whole image; with each of the others (crop policy `soco`: a large crop, and one of half the side) it shares K = 4
boxes, jittered in the first and with squares cut out of the others. Every box is pooled from every level of a feature
pyramid by RoIAlign, passes through the head of an R-CNN and BYOL's projection, and, trained, BYOL's prediction
(equations 1 to 4). The loss of a pair is BYOL's between the views' vectors of one box, each of the level that the box's
size in its view assigns it to (section 3.3, "scale-aware assignment"), but for a constant: -2 cos, both ways.

Sides from which a box is assigned to P3, P4, P5 are 48, 96 and 192 px, of views of 224; at other sizes in proportion,
by choice. `soco_boxes.py` says how boxes are chosen. BatchNorm sees the boxes of a batch a level at a time, as in
hologerry/SoCo; its statistics are over all devices there, so `bn_groups` is 1 by default.

Against hologerry/SoCo: boxes are half-open and not rounded to pixels of the view before they are assigned; the first
layer of projection and prediction has no bias, which BatchNorm takes away again; vectors of levels that a box is not
assigned to are made, since BatchNorm sees them, but not compared with what would be masked. Not built: C4, SoCo*.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torchvision.ops import roi_align

from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output, similarities
from objcrop.ssl.methods.soco_boxes import cut_out, draws, jittered, shared_boxes
from objcrop.ssl.methods.soco_recipe import SoCoRecipe
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.feature_maps import give_maps
from objcrop.ssl.networks.fpn import Pyramid
from objcrop.ssl.networks.heads import RoleHeads, byol_head, region_head
from objcrop.ssl.networks.momentum_encoder import follow, momentum_copy
from objcrop.ssl.networks.shuffle_bn import VirtualBatchNorm, VirtualDevices
from objcrop.ssl.training.schedules import byol_momentum

LEVELS = 4
POOLED = 7  # cells a side
LARGEST = (48, 96, 192)  # sides of boxes of P2, P3, P4, pixels of a view of 224


def level_of(boxes: torch.Tensor, side: int, size: int) -> torch.Tensor:
    """Return the pyramid's level of each box.

    Args:
        boxes: (…, 4), shares of the view.
        side: of the view, pixels.
        size: of the large views.

    Returns:
        int64 (…): 0 for P2, …, by the square root of the box's area.
    """
    root = (boxes[..., 2:] - boxes[..., :2]).prod(-1).sqrt() * side
    return sum((root > largest * size / 224).long() for largest in LARGEST)  # type: ignore[return-value]


def pair_loss(
    prediction: torch.Tensor, target: torch.Tensor, box: torch.Tensor, other: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean over images of -2 × the mean cosine of vectors of the same box.

    Args:
        prediction: (N, K, dim), of length 1.
        target: (N, K, dim), of length 1, without gradient.
        box: int64 (N, K), which box each is of; repeats count each time.
        other: those of the targets, where they are others.
    """
    same = box[:, :, None] == (box if other is None else other)[:, None]
    cosine = (prediction[:, :, None] * target[:, None]).sum(-1)
    return -2 * ((cosine * same).sum((1, 2)) / same.sum((1, 2))).mean()


def pool_regions(level: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """Return RoIAlign (He et al. 2017) of a level's boxes, in float32 where autocast made the level narrower.

    Args:
        level: (N, C, s, s).
        boxes: (N, K, 4), shares of the side.

    Returns:
        (N × K, C, 7, 7).
    """
    wide = level if level.dtype == torch.float64 else level.float()
    row = torch.arange(len(boxes), device=boxes.device)[:, None, None].expand(-1, boxes.shape[1], -1)
    regions = torch.cat([row, boxes * level.shape[-1]], 2).flatten(0, 1).to(wide.dtype)
    return roi_align(wide, regions, POOLED, aligned=True)


class RegionEncoder(Encoder):
    """Backbone, pyramid, and for regions an R-CNN's head and a projection; both see a level's regions at a time."""

    def __init__(self, backbone: nn.Module, pyramid: Pyramid, head: nn.Module, heads: RoleHeads, width: int) -> None:
        super().__init__(backbone, heads, width)
        self.pyramid, self.region_head = pyramid, head

    def forward(  # type: ignore[override]
        self, views: torch.Tensor, regions: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, list[list[torch.Tensor]]]:
        """Return features (N, width), and for each set of regions (N, K, 4) its levels' embeddings (N × K, dim)."""
        features, maps = self.backbone(views)
        levels = self.pyramid(maps)
        return features, [
            [self.heads(self.region_head(pool_regions(level, boxes)), "all") for level in levels] for boxes in regions
        ]


def of_level(by_level: Sequence[torch.Tensor], level: torch.Tensor) -> torch.Tensor:
    """Return of (N × K, dim) a level those of each box's own (N, K), at length 1: (N, K, dim)."""
    every = torch.stack([each.unflatten(0, level.shape) for each in by_level])
    return unit_rows(every.gather(0, level[None, ..., None].expand(1, -1, -1, every.shape[-1]))[0])


class SoCo(Method):
    """Online network with pyramid, regions' head and predictor; target network.

    Args:
        recipe: arch, size, init, dim, hidden, shared_boxes, box_jitter, cutout, pyramid_width, region_width,
            batch_size, bn_groups, ema, seed.
        data: sizes of the views.
    """

    options = SoCoRecipe
    takes = range(2, 17)
    needs_boxes = True

    def __init__(self, recipe: SoCoRecipe, data: Data) -> None:
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        channels = give_maps(network, recipe.arch, recipe.size, LEVELS)
        dim, hidden, between = recipe.dim, recipe.hidden or 4096, recipe.region_width
        head = region_head(recipe.pyramid_width, between, POOLED)
        heads = RoleHeads(("all",), True, lambda: byol_head(between, hidden, dim))
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        self.encoder = RegionEncoder(network, Pyramid(channels, recipe.pyramid_width), head, heads, width)
        self.predictor = byol_head(dim, hidden, dim)
        for part in (self.encoder, self.predictor):
            self.devices.normalise(part)
        for part in (head, heads, self.predictor):
            for module in part.modules():
                if isinstance(module, VirtualBatchNorm):
                    module.rows *= recipe.shared_boxes
        self.momentum_encoder = momentum_copy(self.encoder)

    @torch.no_grad()
    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return the regions and the target network's vectors of them.

        Returns:
            For each pair of views: the second view, cut; the boxes (N, K, 4) in the first view and in the second, and
            their numbers (N, K); vectors (N, K, dim) of the target network of the first view and of the second.
        """
        recipe, views = self.recipe, batch.views
        assert batch.plan is not None
        pairs = len(views) - 1
        drawn = draws(recipe.seed, step, batch.plan.sample, pairs, recipe.shared_boxes, views[0].device)
        found = []
        for p, view in enumerate(views[1:]):
            sides = views[0].shape[-1], view.shape[-1]
            first, second, box = shared_boxes(batch.boxes[0], batch.boxes[p + 1], sides, drawn.choice[:, p])
            first = jittered(first, drawn.jitter[:, p], recipe.box_jitter)
            found.append((cut_out(view, second, drawn.cut[:, p], recipe.cutout), first, second, box))
        _, of_first = self.momentum_encoder(views[0], [first for _, first, _, _ in found])
        made: list[torch.Tensor] = []
        for (view, first, second, box), one in zip(found, of_first):
            _, (other,) = self.momentum_encoder(view, [second])
            made += view, first, second, box
            made += of_level(one, self._level(first, views[0])), of_level(other, self._level(second, view))
        return tuple(made)

    def _level(self, boxes: torch.Tensor, view: torch.Tensor) -> torch.Tensor:
        return level_of(boxes, view.shape[-1], self.recipe.size)

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the sum of the pairs' losses, in each of which both views predict the other."""
        pairs = [targets[begin : begin + 6] for begin in range(0, len(targets), 6)]
        whole = batch.views[0]
        features, of_first = self.encoder(whole, [first for _, first, *_ in pairs])
        losses = [0.0 * features.sum()]  # a network may have layers that its maps do not pass; DDP waits for those too
        seen = []
        for (view, first, second, box, to_first, to_second), one in zip(pairs, of_first):
            pooled, (other,) = self.encoder(view, [second])
            losses.append(0.0 * pooled.sum())
            predicted = [
                of_level([self.predictor(each) for each in by_level], self._level(boxes, of))
                for by_level, boxes, of in ((one, first, whole), (other, second, view))
            ]
            losses.append(pair_loss(predicted[0], to_second, box) + pair_loss(predicted[1], to_first, box))
            seen.append((predicted[0].detach(), to_second, of_level(one, self._level(first, whole)).detach()))
        prediction, target, embedding = seen[0]  # of one box an image: others of the same image are no other image
        watch = similarities(prediction[:, 0], target[:, 0], target[:, 0].roll(1, 0))
        watch["embedding_std"] = embedding[:, 0].std(0).mean()
        return Output(torch.stack(losses).sum(), features.detach(), watch)

    def after_step(self, progress: float) -> None:
        """Let the target follow; its momentum rises from `ema` to 1 as `progress` goes from 0 to 1."""
        follow(self.momentum_encoder, self.encoder, byol_momentum(progress, self.recipe.ema))
