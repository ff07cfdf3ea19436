"""BING's boxes for a catalog: `objcrop propose CATALOG --method bing`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import UsageError
from objcrop.kernels.bing import NONE, BingModel, load_bing
from objcrop.kernels.bing import bing as bing_batch
from objcrop.kernels.nms import nms_topk
from objcrop.proposals.from_images import Found, Image, propose_from_images

# `objcrop train-bing` on VOC2007 trainval made it; the file names the command.
WEIGHTS = Path(__file__).with_name("bing_voc07.json")
BATCH = 32
FEW = 300  # up to so many boxes, neighbours are suppressed further off


def bing(
    catalog: Catalog,
    *,
    model: str | os.PathLike[str] | None = None,
    count: int = 10,
    nms: float = 0.6,
    device: str = "cpu",
    workers: int | None = None,
    parts: str | os.PathLike[str] | None = None,
) -> BoxTable:
    """Return BING's boxes (Cheng et al. 2014), the best first, with its log-odds as scores.

    Args:
        catalog: the images.
        model: JSON of `objcrop train-bing`, or a folder with OpenCV's published MAXBGR model; None is the shipped one.
        count: boxes an image, at most.
        nms: two boxes that overlap more (intersection over union) are one; 1 keeps all, as the published recall at
            hundreds of boxes wants it.
        device: "cpu", or "cuda" to score on the GPU.
        workers: processes on the CPU; None is the number of cores, 0 works in this one.
        parts: see `propose_from_images`.
    """
    if not 1 <= count <= 5000:
        raise UsageError(f"--count is {count}, but it must be 1 to 5000.")
    if not 0 < nms <= 1:
        raise UsageError(f"--nms is {nms}, but it must lie above 0 and not above 1.")
    source = Path(model) if model is not None else WEIGHTS
    load_bing(source)  # a wrong file is said before workers start
    workers = 0 if device != "cpu" else (os.cpu_count() or 1) if workers is None else workers
    make = partial(BingProposer, source, count, nms, device, alone=workers > 0)
    parameters = {"model": source.name if model is not None else "voc07", "count": count, "nms": nms}
    return propose_from_images(catalog, "bing", parameters, make, parts=parts, rows=256, workers=workers)


class BingProposer:
    """Resizes images to the canvas and scores them in batches.

    Args:
        source: see `load_bing`.
        count: boxes an image.
        nms: greatest overlap of two boxes.
        device: where to score.
        alone: one thread, for a worker among others.
    """

    def __init__(self, source: Path, count: int, nms: float, device: str, alone: bool) -> None:
        if alone:
            torch.set_num_threads(1)
        self.model: BingModel = load_bing(source).to(device)
        self.count, self.nms, self.device = count, nms, device

    def __call__(self, images: Sequence[Image]) -> list[Found]:
        """Return each image's boxes and scores."""
        found: list[Found] = []
        for begin in range(0, len(images), BATCH):
            part = images[begin : begin + BATCH]
            # Few boxes are chosen from a thousand, many are taken as they come.
            top, reach = (self.count if self.nms == 1 else 1000), (3 if self.count <= FEW else 2)
            boxes, scores = bing_batch(on_canvas(part, self.model.canvas).to(self.device), self.model, top, reach)
            if self.nms < 1:
                # Suppression takes what is no candidate as a score below 0, so log-odds are lifted above.
                lift = scores.clamp(min=NONE / 2).amin() - 1
                kept, _ = nms_topk(
                    torch.where(scores > NONE, scores - lift, -1.0), boxes.round().int(), self.count, self.nms
                )
                at = kept.clamp(min=0).long()
                boxes = boxes.gather(1, at[..., None].expand(-1, -1, 4))
                scores = torch.where(kept >= 0, scores.gather(1, at), NONE)
            for image, b, s in zip(part, boxes.cpu().numpy(), scores.cpu().numpy()):
                good = s > NONE
                height, width = image.shape[:2]
                scale = np.array([width, height, width, height], np.float32) / self.model.canvas
                found.append((b[good] * scale, s[good]))
        return found


def on_canvas(images: Sequence[Image], side: int) -> torch.Tensor:
    """Return images resized to a square, float32 (B, 3, side, side) in 0..255."""
    import cv2

    batch: npt.NDArray[np.uint8] = np.empty((len(images), side, side, 3), np.uint8)
    for i, image in enumerate(images):
        shrinks = image.shape[0] > side and image.shape[1] > side
        cv2.resize(image, (side, side), dst=batch[i], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float()
