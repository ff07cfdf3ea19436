"""BING (Cheng et al. 2014, "BING: Binarized Normed Gradients for Objectness Estimation at 300fps"), batched.

Stage I: an image is shrunk so that a window of one of 36 sizes becomes 8×8, and a linear template on its normed
gradients scores every window at once: a convolution. Stage II: each size has a scale and an offset of its own that make
scores of different sizes comparable. Plain tensor operations, so one code runs on CPU and GPU and takes a batch of
images; the binary approximation, which buys the original its speed on a CPU, is not needed for that.

Images come resized to one square canvas, which makes a batch of any photos; boxes are scaled back by the caller.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import conv2d, interpolate, max_pool2d

from objcrop.errors import ObjcropError
from objcrop.whole_file import read_text, whole_file

# Window sizes (width, height), pixels of the canvas; the number of a size is its place here, as in the published model.
SIZES = [(1 << (4 + i % 6), 1 << (4 + i // 6)) for i in range(36)]
NONE = -1e9  # the score of what is no candidate


@dataclass(frozen=True)
class BingModel:
    """What training finds.

    Attributes:
        template: float32 (8, 8), on gradients in 0..255.
        scale: float32 (36,), of stage II.
        offset: float32 (36,), of stage II; -inf for a size that is not used.
        canvas: side that images are resized to, pixels.
    """

    template: torch.Tensor
    scale: torch.Tensor
    offset: torch.Tensor
    canvas: int

    @property
    def fingerprint(self) -> str:
        """16 hex digits over the numbers, so that boxes of other weights are told apart."""
        digest = hashlib.sha256(str(self.canvas).encode())
        for values in (self.template, self.scale, self.offset):
            digest.update(values.float().cpu().numpy().tobytes())
        return digest.hexdigest()[:16]

    @cached_property
    def sizes(self) -> list[int]:
        """Numbers of the window sizes that are used."""
        used = torch.isfinite(self.offset).tolist()
        return [size for size in range(len(SIZES)) if used[size] and usable(size, self.canvas)]

    def to(self, device: str | torch.device) -> BingModel:
        """Return the model with its tensors on `device`."""
        moved = BingModel(self.template.to(device), self.scale.to(device), self.offset.to(device), self.canvas)
        vars(moved)["sizes"] = self.sizes  # a GPU that is asked for them would have to be waited for
        return moved

    def save(self, path: str | os.PathLike[str], made_by: str) -> None:
        """Write the numbers as JSON, beside the command that made them."""
        sizes = {
            str(i): [round(float(self.scale[i]), 8), round(float(self.offset[i]), 6)]
            for i in range(36)
            if torch.isfinite(self.offset[i])
        }
        template = [[round(float(v), 7) for v in row] for row in self.template]
        content = {"made_by": made_by, "canvas": self.canvas, "template": template, "sizes": sizes}
        text = json.dumps(content).replace("], ", "],\n ").replace('": [[', '":\n [[')
        with whole_file(path) as part:
            part.write_text(text + "\n", encoding="utf-8")


def load_bing(path: str | os.PathLike[str]) -> BingModel:
    """Read a model.

    Args:
        path: a JSON that `objcrop train-bing` wrote, or a folder of OpenCV's ObjNessB2W8MAXBGR.*.yml.gz.

    Raises:
        ObjcropError: it is missing or neither of the two.
    """
    if Path(path).is_dir():
        return _published(Path(path))
    try:
        way = "`objcrop train-bing` makes one"
        content: dict[str, Any] = json.loads(read_text(path, "BING model", way))
        scale, offset = torch.ones(36), torch.full((36,), -torch.inf)
        for number, (a, b) in content["sizes"].items():
            scale[int(number)], offset[int(number)] = a, b
        return BingModel(torch.tensor(content["template"]).view(8, 8), scale, offset, int(content["canvas"]))
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, OverflowError) as error:
        raise ObjcropError(f"{path} is no BING model ({type(error).__name__}: {error}).") from None


def _published(folder: Path) -> BingModel:
    import cv2

    def matrix(name: str) -> torch.Tensor:
        path = folder / f"ObjNessB2W8MAXBGR.{name}.yml.gz"
        if not path.is_file():
            raise ObjcropError(f"{path} is not there; a folder as a model must hold OpenCV's MAXBGR model.")
        try:
            storage = cv2.FileStorage(str(path), cv2.FILE_STORAGE_READ)  # its nodes live as long as it does
            return torch.from_numpy(storage.getNode("ObjNessB2W8MAXBGR").mat())
        except (cv2.error, TypeError):
            raise ObjcropError(f"{path} is no model of OpenCV's BING.") from None

    used = matrix("idx").flatten().long()
    scale, offset = torch.ones(36), torch.full((36,), -torch.inf)
    scale[used], offset[used] = matrix("wS2").float().T
    return BingModel(matrix("wS1").float(), scale, offset, 320)


def normed_gradients(images: torch.Tensor) -> torch.Tensor:
    """Return min(|dx| + |dy|, 255), float (B, 1, H, W), of images (B, 3, H, W) in 0..255.

    Central differences of the channel that changes most; at the borders twice the one-sided one, as published.
    """
    wide = torch.nn.functional.pad(images, (1, 1, 1, 1), mode="replicate")
    dx = (wide[..., 1:-1, 2:] - wide[..., 1:-1, :-2]).abs().amax(1, keepdim=True)
    dy = (wide[..., 2:, 1:-1] - wide[..., :-2, 1:-1]).abs().amax(1, keepdim=True)
    dx[..., 0] *= 2
    dx[..., -1] *= 2
    dy[..., 0, :] *= 2
    dy[..., -1, :] *= 2
    return (dx + dy).clamp_(max=255)


def shrunk_gradients(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return the normed gradients of images shrunk so that a window of this size is 8×8, (B, 1, h, w); h, w ≥ 8."""
    width, height = window(size, images.shape[-1])
    sides = [max(8, round(8 * images.shape[-1] / side)) for side in (height, width)]
    return normed_gradients(interpolate(images, size=sides, mode="bilinear", align_corners=False).round_())


def window(size: int, canvas: int) -> tuple[int, int]:
    """Return the width and height of a window size, cut to the canvas."""
    return min(SIZES[size][0], canvas), min(SIZES[size][1], canvas)


def usable(size: int, canvas: int) -> bool:
    """Whether a window size is not far larger than the canvas; one of up to twice its side stands for the whole."""
    return max(SIZES[size]) <= 2 * canvas


def window_boxes(size: int, shape: tuple[int, int], canvas: int, device: str | torch.device = "cpu") -> torch.Tensor:
    """Return the boxes of a score map's places, float32 (h × w, 4) x0, y0, x1, y1 on the canvas, cut to it."""
    h, w = shape
    width, height = window(size, canvas)
    # Place p of a map lies at p of the w + 7 pixels that the canvas was shrunk to.
    x = torch.arange(w, device=device) * (canvas / (w + 7))
    y = torch.arange(h, device=device) * (canvas / (h + 7))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, (x + width).clamp(max=canvas), (y + height).clamp(max=canvas)], -1).flatten(0, 1)


def only_peaks(scores: torch.Tensor, reach: int = 2, rounds: int = 4) -> torch.Tensor:
    """Suppress scores (B, 1, h, w) next to a better one, greedily, within `reach` places each way.

    Each round keeps local maxima among what is left and strikes their neighbours out; four rounds come close to going
    through the scores one by one, which a GPU cannot.
    """

    def around(values: torch.Tensor) -> torch.Tensor:
        across = max_pool2d(values, (1, 2 * reach + 1), 1, (0, reach))
        return max_pool2d(across, (2 * reach + 1, 1), 1, (reach, 0))

    left, kept = scores, torch.full_like(scores, NONE)
    for _ in range(rounds):
        best = around(left)
        peak = (left == best) & (left > NONE)
        kept = torch.where(peak, scores, kept)
        left = torch.where(around(peak.to(scores.dtype)) > 0, NONE, left)
    return kept


def stage_one(
    images: torch.Tensor, template: torch.Tensor, sizes: list[int], per_size: int = 130, reach: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Score every window of every size.

    Args:
        images: float (B, 3, S, S) in 0..255.
        template: float (8, 8).
        sizes: numbers of window sizes.
        per_size: windows kept of each size.
        reach: of `only_peaks`.

    Returns:
        Scores (B, n), `NONE` where a size has fewer; boxes (B, n, 4) on the canvas; the size of each window (n,).
    """
    canvas, kernel = images.shape[-1], template[None, None].to(images.dtype)
    scores, boxes, numbers = [], [], []
    for size in sizes:
        found = only_peaks(conv2d(shrunk_gradients(images, size), kernel), reach)
        places = window_boxes(size, (found.shape[-2], found.shape[-1]), canvas, images.device)
        value, at = found.flatten(1).topk(min(per_size, len(places)), 1)
        scores.append(value)
        boxes.append(places[at])
        numbers.append(torch.full((value.shape[1],), size, device=images.device))
    return torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(numbers)


@torch.no_grad()
def bing(images: torch.Tensor, model: BingModel, top: int = 1000, reach: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Propose boxes.

    Args:
        images: float (B, 3, S, S) in 0..255, resized to the model's canvas.
        model: on the same device.
        top: boxes an image.
        reach: of `only_peaks`: 2 as published; 3 finds more with few boxes, less with a thousand.

    Returns:
        Boxes (B, k, 4) on the canvas and scores (B, k), best first; a score of `NONE` is no box. k ≤ top.
    """
    raw, boxes, numbers = stage_one(images, model.template, model.sizes, reach=reach)
    scores = torch.where(raw > NONE, raw * model.scale[numbers] + model.offset[numbers], NONE)
    scores, best = scores.topk(min(top, scores.shape[1]), 1)
    return boxes.gather(1, best[..., None].expand(-1, -1, 4)), scores
