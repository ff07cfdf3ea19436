"""Detection: the boxes of objects, and their masks, by Faster and Mask R-CNN and ViTDet (OAC Tables 4, 5; CIB 1 to 6).

Training sees whole images, resized at random and mirrored (`load_scenes`), testing the images one by one. Crowds are
not learnt from: what lies in them is background. Difficult objects of VOC are learnt as others. Both is so in
Detectron2. One class is enough: it is told from what is none.

The presets have Detectron2's numbers, and so have anchors, RoIAlign, sampling, losses and first weights (`Convention`
says what torchvision has in their place). What is left that differs from Detectron2:

- A batch is not of images of one aspect, so that more of its frame is empty.
- BatchNorm's averages are those of learning, not made anew before testing (PRECISE_BN).
- Masks are compared with the catalog's pixels, not with polygons.
- ViTDet's images are not padded to a square of 1024 pixels.
- On a GPU that has it steps are computed in bf16 where nothing is said; boxes stay float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from objcrop.catalog import Catalog
from objcrop.dali_pipes.scene_loader import load_scenes
from objcrop.dali_pipes.scenes import Scenes, normalised
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.errors import ObjcropError
from objcrop.ranks import gather_on_first
from objcrop.ssl.evaluation.on_all_ranks import share, walked
from objcrop.ssl.transfer.detection_options import DetectionOptions
from objcrop.ssl.transfer.detections import Detections
from objcrop.ssl.transfer.judged_detections import judged_detections
from objcrop.ssl.transfer.options import Transfer
from objcrop.ssl.transfer.origin import Origin
from objcrop.ssl.transfer.paste_masks import pasted
from objcrop.ssl.transfer.rcnn import RCNN
from objcrop.ssl.transfer.rcnn_c4 import c4_detector
from objcrop.ssl.transfer.rcnn_fpn import fpn_detector
from objcrop.ssl.transfer.task import Task
from objcrop.ssl.transfer.vitdet import layer_scale, vitdet_detector


class Detection(Task):
    """A detector; see `Task`."""

    options = DetectionOptions
    headline = ("ap", "ap50", "ap75", "mask_ap", "mask_ap50", "voc07_ap50", "voc_ap50")
    how: DetectionOptions

    def __init__(self, how: Transfer, origin: Origin, train: Catalog, test: Catalog) -> None:
        super().__init__(how, origin, train, test)
        how.refuse_what_cpus_lack()
        self.masks = not self.how.model.startswith("faster-")
        objects = _objects(train, self.masks)
        _objects(test, self.masks)
        self.without_objects = int((objects == 0).sum())
        if not self.how.negatives and self.without_objects:
            self.train_images = train.take(np.flatnonzero(objects))
        self.network = self._detector(origin, len(train.classes))

    def _detector(self, origin: Origin, classes: int) -> RCNN:
        how: Any = {"masks": self.masks, "anchor": self.how.anchor, "regions": self.how.regions}
        if self.how.model.endswith("-c4"):
            return c4_detector(origin, classes, **how)
        if self.how.model.startswith("vitdet-"):
            del how["masks"]
            cascade = self.how.model == "vitdet-cascade"
            return vitdet_detector(
                origin, classes, cascade=cascade, width=self.how.width, longest=self.how.longest, **how
            )
        return fpn_detector(origin, classes, width=self.how.width, **how)

    def weights(self) -> list[dict[str, Any]]:
        """Return what is learnt; norms and positions do not decay, as in Detectron2; see `Task`."""
        norms = (_NormBase, nn.LayerNorm)
        kept = {id(p) for module in self.modules() if isinstance(module, norms) for p in module.parameters()}
        blocks = len(getattr(self.origin.network, "blocks", ()))
        groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
        for name, p in self.network.named_parameters():
            if p.requires_grad:
                scale = layer_scale(name, blocks) if self.how.model.startswith("vitdet-") else 1.0
                decays = id(p) not in kept and not name.endswith("pos_embed")
                groups.setdefault((scale, decays), []).append(p)
        return [
            {"params": some, "scale": scale} | ({} if decays else {"weight_decay": 0.0})
            for (scale, decays), some in groups.items()
        ]

    def loader(self, device: torch.device, dtype: str, bad_images: Path) -> ViewLoader:
        """Return whole images with their objects, decoded by DALI on the CPU; see `Task`."""
        how, images = self.how, self.train_images
        if how.disk_cache is not None:
            images = images.cached_on_disk(how.disk_cache, how.disk_cache_gb)
        return load_scenes(
            images,
            sides=how.sides,
            longest=how.longest,
            batch_size=how.batch_size,
            masks=self.masks,
            scales=how.scales,
            seed=how.seed,
            threads=how.threads,
            prefetch=how.prefetch,
            max_bad=how.max_bad,
            bad_images=bad_images,
        )

    def forward(self, batch: Scenes) -> dict[str, torch.Tensor]:
        """Return the losses of a batch; see `Task`."""
        masks: Any = batch.masks or [None] * len(batch)
        targets: Any = [
            {"boxes": boxes, "labels": labels + 1, "masks": mask}
            for boxes, labels, mask in zip(batch.boxes, batch.labels, masks, strict=True)
        ]
        sizes = batch.sizes.tolist()
        return self.network.losses(normalised(batch.images, batch.sizes), sizes, targets)

    def evaluate(self, folder: Path) -> dict[str, Any] | None:
        """Return COCO's figures of boxes and of masks ("mask_…"), and VOC's of boxes by both rules; see `Task`."""
        images = self.test_images
        parts = gather_on_first(self.detect(images, share(len(images))))
        if parts is None:
            return None
        found, bad = Detections.joined([part for part, _ in parts]), sum(bad for _, bad in parts)
        return judged_detections(images, found, folder) | {
            "detections": len(found),
            "without_objects": self.without_objects,
            "tested": len(images) - bad,
            "bad_images": bad,
        }

    @torch.no_grad()
    def detect(self, images: Catalog, rows: Sequence[int] | None = None) -> tuple[Detections, int]:
        """Return what is found in images, and how many of these cannot be read.

        Args:
            images: a catalog.
            rows: those to look at, rising; all where none are named.
        """
        at = range(len(images)) if rows is None else rows
        some = images if len(at) == len(images) else images.take(at)
        how, side = self.how, self.how.test_side
        alone: dict[str, Any] = {"batch_size": 1, "rank": 0, "world_size": 1, "shuffle": False, "drop_last": False}
        alone |= {"flip_p": 0.0, "threads": how.threads, "max_bad": 1.0}
        with ExitStack() as stack:
            loader: Any = ()
            if at:
                loader = stack.enter_context(load_scenes(some, sides=(side, side), longest=how.longest, **alone))
            read = (batch for batch in walked(loader, "detecting") if not batch.substituted.any())
            found = [self._found(images, at[int(batch.index[0])], batch.to(self.device)) for batch in read]
        return Detections.joined(found or [_NOTHING]), len(at) - len(found)

    def _found(self, images: Catalog, row: int, batch: Any) -> Detections:
        """Return what is found in a batch of one image, that of a row."""
        height, width = batch.sizes[0].tolist()
        (found,) = self.network(normalised(batch.images, batch.sizes), [(height, width)])
        size = torch.from_numpy(np.tile(images.sizes_of([row])[0], 2)).double()
        boxes = found["boxes"].cpu().double() / torch.tensor([width, height] * 2) * size
        boxes = boxes.clamp(min=0).minimum(size)
        return Detections(
            np.full(len(boxes), row),
            boxes.numpy(),
            found["scores"].cpu().numpy(),
            found["labels"].cpu().numpy() - 1,
            pasted(found["masks"], boxes, (int(size[1]), int(size[0]))) if self.masks else None,
        )


_NOTHING = Detections(np.zeros(0, np.int64), np.zeros((0, 4)), np.zeros(0, np.float32), np.zeros(0, np.int64))


def _objects(catalog: Catalog, masks: bool) -> NDArray[np.int64]:
    """Return how many objects of each image are learnt from or measured, int64 (rows,).

    Args:
        catalog: the images.
        masks: whether they must have a mask.

    Raises:
        ObjcropError: there is none.
    """
    crowd, ends = catalog.all_annotations().crowd, catalog.box_offsets
    counted = ~crowd
    if not counted.any():
        raise ObjcropError(
            f"the catalog of {catalog.root} has no boxes of objects; index it from annotations that have some (coco, "
            "voc, openimages)."
        )
    if masks:
        counted = counted & catalog._sound_masks(int(ends[0]), int(ends[-1])).is_valid().to_numpy(zero_copy_only=False)
        if not counted.any():
            raise ObjcropError(
                f"the catalog of {catalog.root} has no masks; index it from what has some (coco), or take a model of "
                "boxes."
            )
    sums = np.concatenate([[0], np.cumsum(counted)])
    return np.diff(sums[ends - ends[0]])
