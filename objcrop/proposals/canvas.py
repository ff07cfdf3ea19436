"""Methods that score many images at once: each resized to one square canvas, which makes a batch of any photos.

In worker processes PIL decodes and OpenCV resizes; on a GPU DALI decodes and our kernel resizes, and the canvases never
leave the device. Its filter differs from OpenCV's in the last digits, so a GPU's boxes are close to a CPU's, not equal.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.decode_crop_resize import decode_whole, default_threads, windows_in
from objcrop.devices import device_kind, resolve_device
from objcrop.errors import UsageError
from objcrop.extras import from_extra, require
from objcrop.kernels.crop_resize import Windows, crop_resize
from objcrop.proposals.from_images import (
    NO_BOXES,
    Found,
    Image,
    Outcome,
    found_in,
    propose_from_images,
    read_images,
)
from objcrop.ray_cluster import cluster_at_hand

ROWS = 256  # of a part
# Canvases scored at once; a GPU is given a whole part, since BING launches some thousand operations a batch.
BATCH = {"cpu": 32, "cuda": ROWS}


class CanvasProposer(ABC):
    """Scores canvases in batches and brings the boxes back to the images.

    Args:
        side: of the canvas, pixels.
        device: where scoring runs.
        alone: one thread, for a worker among others.
    """

    def __init__(self, side: int, device: str, alone: bool) -> None:
        if alone:
            torch.set_num_threads(1)
        self.side, self.device = side, torch.device(device)
        self.batch = BATCH[self.device.type]

    @abstractmethod
    def score(self, canvases: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Propose boxes.

        Args:
            canvases: float32 (B, 3, S, S) in 0..255, on the device.

        Returns:
            Boxes (B, k, 4) in pixels of the canvas and scores (B, k), best first; a score of -inf is no box.
        """

    def __call__(self, images: Sequence[Image]) -> list[Found]:
        """Return each image's boxes, in its own pixels, and scores."""
        found: list[Found] = []
        for begin in range(0, len(images), self.batch):
            part = images[begin : begin + self.batch]
            sizes = np.array([image.shape[1::-1] for image in part], np.float32)
            found += self.of_canvases(on_canvas(part, self.side).to(self.device), sizes)
        return found

    @torch.no_grad()
    def of_canvases(self, canvases: torch.Tensor, sizes: npt.NDArray[np.float32]) -> list[Found]:
        """Return boxes and scores of canvases (B, 3, S, S) whose images have these widths and heights (B, 2)."""
        boxes, scores = (result.float().cpu().numpy() for result in self.score(canvases))
        scale = np.tile(sizes, (1, 2)) / self.side
        return [(b[s > -np.inf] * to_image, s[s > -np.inf]) for b, s, to_image in zip(boxes, scores, scale)]


def on_canvas(images: Sequence[Image], side: int) -> torch.Tensor:
    """Return images resized to a square, float32 (B, 3, side, side) in 0..255."""
    cv2 = from_extra("cv2")

    batch: npt.NDArray[np.uint8] = np.empty((len(images), side, side, 3), np.uint8)
    for i, image in enumerate(images):
        shrinks = image.shape[0] > side and image.shape[1] > side
        cv2.resize(image, (side, side), dst=batch[i], interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return torch.from_numpy(batch).permute(0, 3, 1, 2).float()


def propose_on_canvas(
    catalog: Catalog,
    method: str,
    parameters: dict[str, Any],
    proposer: Callable[..., CanvasProposer],
    arguments: tuple[Any, ...],
    device: str,
    workers: int | None,
    parts: str | os.PathLike[str] | None,
) -> BoxTable:
    """Run a `CanvasProposer` over a catalog: in worker processes on the CPU, or in this one on a GPU.

    Args:
        catalog: the images.
        method: its name, for the table.
        parameters: its options, for the table.
        proposer: makes the proposer from `arguments`, the device and whether it is alone in its process.
        arguments: picklable.
        device: as in `resolve_device`; "auto" is the CPU on a cluster.
        workers: processes on the CPU; None is the number of cores, 0 works in this one.
        parts: see `propose_from_images`.
    """
    if cluster_at_hand() and device not in ("auto", "cpu"):
        raise UsageError(f"device is '{device}', but a Ray cluster proposes on its processors: leave one of them out.")
    if cluster_at_hand() or device_kind(device) == "cpu":
        require("cv2")
        workers = (os.cpu_count() or 1) if workers is None else workers
        make = partial(proposer, *arguments, "cpu", workers > 0)
        return propose_from_images(catalog, method, parameters, make, parts=parts, rows=ROWS, workers=workers)
    make = partial(proposer, *arguments, str(resolve_device(device)), False)
    walk = propose_with_dali
    return propose_from_images(catalog, method, parameters, make, parts=parts, rows=ROWS, workers=0, walk=walk)


def propose_with_dali(catalog: Catalog, parts: Sequence[range], proposer: CanvasProposer) -> Iterator[Outcome]:
    """Propose for parts of a catalog, decoded and resized on the proposer's GPU.

    A part in which DALI stumbles is read with PIL, which says what is wrong with which file.

    Args:
        catalog: the images.
        parts: rows of each part.
        proposer: scores the canvases.

    Yields:
        What `propose_from_images` wants of each part.
    """
    graph: dict[str, Any] = {
        "threads": default_threads(proposer.device.type),
        "prefetch": 2,
        "device": proposer.device.type,
        "device_id": proposer.device.index,
    }
    for rows, part in zip(parts, decode_whole(catalog, parts, **graph)):
        if part.decoded is None:
            yield found_in(proposer, read_images(catalog, rows))
            continue
        shapes = np.array(part.decoded.shape(), np.int32)
        whole = np.pad(shapes[:, None, 1::-1], ((0, 0), (0, 0), (2, 0)))
        windows = windows_in(part.decoded, whole, part.orientations)
        there = Windows(*(torch.from_numpy(each[0]).to(proposer.device) for each in windows))
        canvases = crop_resize(there, proposer.side, "bilinear", proposer.device).permute(0, 3, 1, 2)
        sizes = catalog.sizes_of(list(rows)).astype(np.float32)
        cuts = (slice(begin, begin + proposer.batch) for begin in range(0, len(rows), proposer.batch))
        found = chain.from_iterable(proposer.of_canvases(canvases[cut].float(), sizes[cut]) for cut in cuts)
        yield [NO_BOXES if reason else boxes for boxes, reason in zip(found, part.reasons)], part.reasons


def refuse_out_of_range(count: int, most: int, nms: float) -> None:
    """Raise a `UsageError` unless `count` is 1 to `most` and the overlap `nms` lies above 0 and not above 1."""
    if not 1 <= count <= most:
        raise UsageError(f"--count is {count}, but it must be 1 to {most}.")
    if not 0 < nms <= 1:
        raise UsageError(f"--nms is {nms}, but it must lie above 0 and not above 1.")
