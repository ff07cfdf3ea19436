"""BING's boxes for a catalog: `objcrop propose CATALOG --method bing`."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.kernels.bing import NONE, BingModel, load_bing
from objcrop.kernels.bing import bing as bing_batch
from objcrop.kernels.nms import nms_topk
from objcrop.proposals.canvas import CanvasProposer, propose_on_canvas, refuse_out_of_range

# `objcrop train-bing` on VOC2007 trainval made it; the file names the command.
WEIGHTS = Path(__file__).with_name("bing_voc07.json")
# Up to so many boxes, neighbours are suppressed further off. On 600 images of trainval that were not learnt from, a
# reach of 3 finds 25.9 % of the objects with 10 boxes, 55.8 % with 100 (2: 25.6, 55.3); 300 are even, 2 wins at 1000.
FEW = 300
REACH_OF_FEW = 3


def bing(
    catalog: Catalog,
    *,
    model: str | os.PathLike[str] | None = None,
    count: int = 10,
    nms: float = 0.6,
    device: str = "auto",
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
        device: "auto" (scored on the GPU where there is one), "cpu", "cuda" or "cuda:N".
        workers: processes on the CPU; None is the number of cores, 0 works in this one.
        parts: see `propose_from_images`.
    """
    refuse_out_of_range(count, 5000, nms)
    source = Path(model) if model is not None else WEIGHTS
    weights = load_bing(source).fingerprint  # a wrong file is said before workers start
    parameters = {"model": source.name, "weights": weights, "count": count, "nms": nms}
    return propose_on_canvas(catalog, "bing", parameters, BingProposer, (source, count, nms), device, workers, parts)


class BingProposer(CanvasProposer):
    """BING's windows, then suppression.

    Args:
        source: see `load_bing`.
        count: boxes an image.
        nms: greatest overlap of two boxes.
        device: where to score.
        alone: one thread, for a worker among others.
    """

    def __init__(self, source: Path, count: int, nms: float, device: str, alone: bool) -> None:
        self.model: BingModel = load_bing(source).to(device)
        self.count, self.nms = count, nms
        super().__init__(self.model.canvas, device, alone)

    def score(self, canvases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CanvasProposer.score`."""
        # Few boxes are chosen from a thousand, many are taken as they come.
        top, reach = (self.count if self.nms == 1 else 1000), (REACH_OF_FEW if self.count <= FEW else 2)
        boxes, scores = bing_batch(canvases, self.model, top, reach)
        if self.nms < 1:
            # Suppression takes what is no candidate as a score below 0, which log-odds are too: it gets their ranks.
            ranks = torch.arange(scores.shape[1], 0, -1, device=scores.device)
            candidates = torch.where(scores > NONE, ranks, -1)
            kept, _ = nms_topk(candidates, boxes.round().int(), self.count, self.nms)
            at = kept.clamp(min=0).long()
            boxes = boxes.gather(1, at[..., None].expand(-1, -1, 4))
            scores = torch.where(kept >= 0, scores.gather(1, at), NONE)
        return boxes, torch.where(scores > NONE, scores, -torch.inf)
