"""The loader of whole images with their objects, by the contract of `ViewLoader`: pure order, state, ranks, bad images.

DALI decodes on the CPU, each image is resized on a thread of the pool, and boxes and masks follow. Images stay bytes:
whoever learns from them normalises them where it computes.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torchvision.ops import masks_to_boxes

from objcrop.catalog import Catalog
from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.dali_loader import DaliLoader
from objcrop.dali_pipes.scene_plan import ScenePlan, ScenePlanner
from objcrop.dali_pipes.scenes import Scenes, follow_boxes, follow_masks, shown_of
from objcrop.kernels.crop_resize import Windows, pixels_of, resize_uint8
from objcrop.launcher import cores_here

MULTIPLE = 32  # of the common frame's sides, so that each level of a feature pyramid is half of the one before


def load_scenes(
    catalog: Catalog,
    *,
    sides: tuple[int, int],
    longest: int,
    batch_size: int,
    flip_p: float = 0.5,
    masks: bool = False,
    scales: tuple[float, float] | None = None,
    seed: int = 0,
    threads: int | None = None,
    prefetch: int = 2,
    max_bad: float = 0.01,
    bad_images: str | os.PathLike[str] | None = None,
    shuffle: bool = True,
    drop_last: bool = True,
    rank: int | None = None,
    world_size: int | None = None,
) -> SceneLoader:
    """Load whole images with boxes, classes and masks.

    Args:
        catalog: the images.
        sides: smallest and largest shorter side, pixels; see `ScenePlanner`.
        longest: the most that a longer side may be, pixels.
        batch_size: the global batch, over all processes.
        flip_p: how often an image is mirrored.
        masks: whether masks come too; objects without one are left out then.
        scales: of large-scale jitter, in place of `sides`; see `ScenePlanner`.
        seed: of order, sizes and mirror images.
        threads: that decode and resize; this process's share of the cores where nothing is said.
        prefetch: batches kept ready.
        max_bad: largest share of the catalog that may turn out unreadable.
        bad_images: text file that lists unreadable images.
        shuffle: false walks the catalog in order.
        drop_last: false keeps the short batch at the end.
        rank: see `load_views`.
        world_size: see `load_views`.
    """
    planner = ScenePlanner(catalog, sides, longest, flip_p, seed, scales)
    contract: dict[str, Any] = {"batch_size": batch_size, "shuffle": shuffle, "drop_last": drop_last}
    contract |= {"rank": rank, "world_size": world_size, "prefetch": prefetch, "threads": threads or cores_here()}
    return SceneLoader(planner, BadImages(catalog, max_bad, bad_images), masks=masks, **contract)


class SceneLoader(DaliLoader):
    """Yields `Scenes`; arguments as of `load_scenes`."""

    planner: ScenePlanner  # type: ignore[assignment]

    def __init__(self, planner: ScenePlanner, bad_images: BadImages, *, masks: bool, **contract: Any) -> None:
        how: dict[str, Any] = {"device": "cpu", "dtype": torch.uint8, "decode": "whole"}
        super().__init__(planner, bad_images, **how, **contract)  # type: ignore[arg-type]
        self.masks = masks

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self.planner.seed,
            "batch_size": self.batch_size,
            "sides": [int(side) for side in self.planner.sides],
            "longest": self.planner.longest,
            "scales": None if self.planner.scales is None else list(self.planner.scales),
            "catalog": self.catalog.fingerprint,
        }

    def _finished(self, plan: Any, asked: Any, windows: Windows, images: Any) -> Any:
        """Return the batch whose images are these, which are held until they are read."""
        of_image = Windows(*(part[0] for part in windows))
        shown = plan.part[:, 2:] - plan.part[:, :2]
        frame = -(-shown.max(0) // MULTIPLE) * MULTIPLE
        out = torch.empty(len(plan), frame[1], frame[0], 3, dtype=torch.uint8)

        def one(i: int) -> tuple[torch.Tensor, ...]:
            (width, height), (x0, y0, x1, y1) = plan.size[i].tolist(), plan.part[i].tolist()
            upright = torch.from_numpy(np.array(pixels_of(of_image, i), order="C"))  # a copy: no negative strides
            if plan.flip[i]:
                upright = upright.flip(1)  # NumPy's takes thirty times as long, more than it takes to resize
            whole = resize_uint8(upright, (height, width), "bilinear")
            height, width = y1 - y0, x1 - x0
            out[i, :height, :width] = whole[y0:y1, x0:x1]
            out[i, height:] = 0  # what lies beyond alone: all of it would take as long as to resize
            out[i, :height, width:] = 0
            return self._objects(plan, i)

        boxes, labels, masks = (list(part) for part in zip(*self._pool.map(one, range(len(plan)))))
        return Scenes(
            images=out.permute(0, 3, 1, 2),
            sizes=torch.from_numpy(shown[:, ::-1].astype(np.int64)),
            boxes=boxes,
            labels=labels,
            masks=masks if self.masks else [],
            index=torch.from_numpy(plan.row),
            requested=torch.from_numpy(asked.row),
            substituted=torch.from_numpy(plan.sample != asked.sample),
            plan=plan,
        )

    def _objects(self, plan: ScenePlan, i: int) -> tuple[torch.Tensor, ...]:
        """Return boxes, labels and masks of the image at place i, those that an image is learnt from."""
        row = int(plan.row[i])
        truth = self.catalog.annotations(row)
        held = self.catalog.masks(row) if self.masks else []
        kept = [k for k in range(len(truth.boxes)) if not truth.crowd[k] and not (held and held[k] is None)]
        old, new, part = (tuple(v.tolist()) for v in (plan.windows[i, 0, 2:], plan.size[i], plan.part[i]))
        flip = bool(plan.flip[i])
        boxes = shown_of(follow_boxes(truth.boxes[kept], old, new, flip), part)
        seen = np.flatnonzero((boxes[:, :2] < boxes[:, 2:]).all(1))
        boxes, kept = boxes[seen], [kept[k] for k in seen]
        labels = torch.from_numpy(truth.classes[kept].astype(np.int64))
        if not self.masks:
            return torch.from_numpy(boxes), labels, torch.zeros(0)
        rles: Any = [held[k] for k in kept]
        masks = torch.from_numpy(follow_masks(rles, boxes, new, flip, part))
        if self.planner.scales is None:
            return torch.from_numpy(boxes), labels, masks
        some = masks.flatten(1).any(1).bool()  # what is shown has the box of its pixels, as in Detectron2
        return masks_to_boxes(masks[some]) + torch.tensor([0.0, 0, 1, 1]), labels[some], masks[some]
