"""Anchors scored by a backbone's features (CIB section 3.3), and a control that looks at no feature.

An image, resized to a square, goes through a backbone; the sum over its last feature map's channels is a map of how
much is there (SCDA, Wei et al. 2017, CIB equation 1), stretched to 0..1. Twelve anchors around every cell are scored,
suppressed, and the best five are the boxes.

The paper scores an anchor by its mean. Taken by the letter that picks the smallest anchors, since a small box fits onto
the map's peak alone; the paper's own crops are mostly coarse. On VOC2007 with box masks and a random ResNet-50:

| rule                                 | object share | poor | coarse | precise | area |
| mean, native size (the letter)       | 68.5 %       | .28  | .08    | .64     | .01  |
| mean, sizes 128 and 256 of 224       | 61.0 %       | .15  | .47    | .38     | .25  |
| per-size: one of each size in turn   | 63.9 %       | .16  | .39    | .45     | .25  |
| mean-sqrt-area: mean × √(area share) | 60.2 %       | .14  | .51    | .35     | .36  |

so mean-sqrt-area is the default here. Much of a random network's map is a prior for the centre; `centre-prior` is that
prior alone, to be held against it.

The same pixels get the same boxes whatever kernels a processor has, at every place in a batch and with any number of
threads. A network's sums in float32 differ in the last digits between all of these, so a map is rounded to steps far
above them; the few maps with a value so near the middle of two steps that those digits decide are made again in
float64.
"""

from __future__ import annotations

import copy
import hashlib
import os
from contextlib import nullcontext
from functools import cached_property
from typing import Any

import torch
from torch import nn

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import UsageError, one_of
from objcrop.kernels.anchor_score import anchor_shapes, maps_in_steps, score_anchors
from objcrop.kernels.nms import nms_topk
from objcrop.proposals.canvas import CanvasProposer, propose_on_canvas, refuse_out_of_range

SIDE = 224  # of the input, pixels
RANKS = ("mean-sqrt-area", "mean", "per-size")  # the default first
COUNT, MOST = 5, 200  # boxes an image: by default, at most
OVERLAP = 0.5
# Error of a map, as a share of its greatest value: some times what sums in float32 were seen to miss those in float64
# by (6e-7 on CPUs; a GPU may multiply by faster, looser rules), and beyond what float64 itself misses.
ERROR, ERROR_ON_GPU, ERROR_OF_FLOAT64 = 2**-18, 2**-16, 2**-40
# Of ImageNet, as every backbone here was trained with.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def anchors(
    catalog: Catalog,
    *,
    model: str | os.PathLike[str] = "untrained:resnet50",
    rank: str = RANKS[0],
    count: int = COUNT,
    nms: float = OVERLAP,
    device: str = "auto",
    workers: int | None = None,
    parts: str | os.PathLike[str] | None = None,
) -> BoxTable:
    """Return the best anchors of every image, with what they were ranked by as scores.

    Args:
        catalog: the images.
        model: what makes the features: a last.pt of `objcrop pretrain`; "untrained:ARCH" for random weights (seed 0);
            "ARCH:FILE" for a state dict with torchvision's names, resnet50:weights.pth say.
        rank: "mean-sqrt-area", "mean" or "per-size", see above.
        count: boxes an image.
        nms: two anchors that overlap more (intersection over union) are one.
        device: "auto" (the GPU where there is one), "cpu", "cuda" or "cuda:N".
        workers: processes on the CPU; None is the number of cores, 0 works in this one.
        parts: see `propose_from_images`.

    Raises:
        UsageError: an unknown rank, or an option out of range.
        ObjcropError: a model that cannot be used.
    """
    one_of(rank, RANKS, "--rank")
    refuse_out_of_range(count, MOST, nms)
    name = str(model)
    weights = weights_fingerprint(feature_maps(name).network)  # a wrong model is said before workers start
    parameters = {"model": os.path.basename(name), "weights": weights, "rank": rank, "count": count, "nms": nms}
    arguments = (name, rank, count, nms)
    return propose_on_canvas(catalog, "anchors", parameters, AnchorProposer, arguments, device, workers, parts)


def anchors_from(
    catalog: Catalog, maps: nn.Module, weights: str, name: str, device: str, parts: str | os.PathLike[str]
) -> BoxTable:
    """Return anchors scored in this process by a network at hand, with the defaults of `anchors`.

    Args:
        catalog: the images.
        maps: from `last_maps`.
        weights: their `weights_fingerprint`.
        name: what the table calls the model.
        device: where scoring runs.
        parts: see `propose_from_images`.
    """
    parameters = {"model": name, "weights": weights, "rank": RANKS[0], "count": COUNT, "nms": OVERLAP}
    arguments = (maps, RANKS[0], COUNT, OVERLAP)
    return propose_on_canvas(catalog, "anchors", parameters, AnchorProposer, arguments, device, 0, parts)


def centre_prior(
    catalog: Catalog,
    *,
    rank: str = RANKS[0],
    count: int = COUNT,
    nms: float = OVERLAP,
    workers: int | None = None,
    parts: str | os.PathLike[str] | None = None,
) -> BoxTable:
    """Return the anchors that a Gaussian in the middle of the image scores best; options as of `anchors`."""
    one_of(rank, RANKS, "--rank")
    refuse_out_of_range(count, MOST, nms)
    parameters = {"rank": rank, "count": count, "nms": nms}
    arguments = (None, rank, count, nms)
    return propose_on_canvas(catalog, "centre-prior", parameters, AnchorProposer, arguments, "cpu", workers, parts)


class AnchorProposer(CanvasProposer):
    """Features, map, scores, suppression.

    Args:
        model: see `anchors`; a network from `feature_maps`; or None for the centre prior.
        rank: the rule.
        count: boxes an image.
        nms: greatest overlap of two boxes.
        device: where all of it runs.
        alone: one thread, for a worker among others.
    """

    def __init__(
        self, model: str | nn.Module | None, rank: str, count: int, nms: float, device: str, alone: bool
    ) -> None:
        super().__init__(SIDE, device, alone)
        network = feature_maps(model) if isinstance(model, str) else model
        self.network = None if network is None else network.to(device)
        self.rank, self.count, self.nms = rank, count, nms

    def score(self, canvases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CanvasProposer.score`."""
        if self.network is None:
            maps = centre_map(7).to(canvases.device).expand(len(canvases), -1, -1)
        else:
            maps = self.maps(canvases)
        boxes, scores = best_anchors(maps, SIDE, self.rank, self.count, self.nms)
        return boxes, torch.where(scores >= 0, scores, -torch.inf)

    def maps(self, canvases: torch.Tensor) -> torch.Tensor:
        """Return the network's maps of canvases (B, 3, S, S), float32 (B, h, w) in steps from 0 to 1."""
        assert self.network is not None
        mean, std = (canvases.new_tensor(each).view(3, 1, 1) for each in (MEAN, STD))
        images = (canvases / 255 - mean) / std
        error = ERROR_ON_GPU if canvases.is_cuda else ERROR
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False) if canvases.is_cuda else nullcontext():
            maps, doubt = maps_in_steps(self.network(images).sum(1), error)
        if doubt.any():
            maps[doubt], _ = maps_in_steps(self.network_in_float64(images[doubt].double()).sum(1), ERROR_OF_FLOAT64)
        return maps

    @cached_property
    def network_in_float64(self) -> nn.Module:
        """The network, a copy."""
        assert self.network is not None
        return copy.deepcopy(self.network).double()


def best_anchors(maps: torch.Tensor, side: int, rank: str, count: int, nms: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the best anchors on square images.

    Args:
        maps: float32 (B, h, w) in 0..1.
        side: of the images, pixels.
        rank: "mean-sqrt-area", "mean", or "per-size": the best of the largest size first, then of the next, in turn.
        count: anchors an image.
        nms: greatest overlap of two.

    Returns:
        Boxes float32 (B, count, 4) in pixels, and what they were ranked by (B, count), -1 where there is none.
    """
    shapes = anchor_shapes()
    sizes = torch.full((len(maps), 2), side, device=maps.device)
    boxes, scores = score_anchors(maps, sizes, shapes.to(maps.device))
    if rank == "mean-sqrt-area":
        area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
        scores = scores.double() * (area.double() / side**2).sqrt()
    if rank != "per-size":
        kept, best = nms_topk(scores, boxes, count, nms)
        return boxes.gather(1, kept.clamp(min=0)[..., None].expand(-1, -1, 4)).float(), best
    from torchvision.ops import box_iou  # which takes seconds to import

    # Each size for itself: its best one that overlaps none chosen before, largest size first, round and round.
    size_of = torch.arange(4, device=maps.device).repeat_interleave(scores.shape[1] // 4)
    chosen: list[torch.Tensor] = []
    values: list[torch.Tensor] = []
    for turn in range(count):
        left = torch.where(size_of == 3 - turn % 4, scores, -1.0)
        if chosen:
            held = torch.stack(chosen, 1)
            left = torch.where((box_iou(boxes, held) > nms).any(2), -1.0, left)
        best, at = left.max(1)
        chosen.append(boxes[torch.arange(len(boxes)), at])
        values.append(best)
    return torch.stack(chosen, 1).float(), torch.stack(values, 1)


def centre_map(cells: int) -> torch.Tensor:
    """Return a Gaussian around the middle, of standard deviation a quarter of the side, in steps from 0 to 1.

    Args:
        cells: of a side.

    Returns:
        float32 (1, cells, cells).
    """
    at = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells - 0.5
    one = torch.exp(-at.square() / (2 * 0.25**2))
    return maps_in_steps((one[:, None] * one)[None], ERROR_OF_FLOAT64)[0]


def weights_fingerprint(network: nn.Module) -> str:
    """Return 16 hex digits over a network's weights, so that boxes of other weights are told apart."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        digest.update(name.encode())
        digest.update(value.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def feature_maps(model: str) -> Maps:
    """Return a network from images (B, 3, S, S) to its last feature maps (B, C, S / 32, S / 32), in evaluation mode.

    Args:
        model: see `anchors`.
    """
    from objcrop.ssl.evaluation.frozen_features import frozen_backbone
    from objcrop.ssl.networks.backbones import backbone

    if model.startswith("untrained:") or not _names_an_arch(model):
        network, _ = frozen_backbone(model)
    else:
        arch, file = model.split(":", 1)
        network, _ = backbone(arch, SIDE, file)
    return last_maps(network)


def last_maps(network: nn.Module) -> Maps:
    """Return a ResNet, torchvision's or timm's, without what comes after its last stage, in evaluation mode.

    Raises:
        UsageError: it is no ResNet.
    """
    if not all(hasattr(network, part) for part in ("conv1", "bn1", "maxpool", "layer4")):
        raise UsageError(f"the model is a {type(network).__name__}, but anchors need a ResNet's feature maps.")
    return Maps(network).eval()


def _names_an_arch(model: str) -> bool:
    from objcrop.ssl.networks.backbones import backbone_names

    return model.split(":", 1)[0] in backbone_names() and ":" in model


class Maps(nn.Module):
    """A ResNet up to its last stage."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature maps."""
        n: Any = self.network
        x = n.maxpool((n.act1 if hasattr(n, "act1") else n.relu)(n.bn1(n.conv1(x))))
        return n.layer4(n.layer3(n.layer2(n.layer1(x))))
