"""BING (Cheng et al. 2014, "BING: Binarized Normed Gradients for Objectness Estimation at 300fps"), batched.

Stage I: an image is shrunk so that a window of one of 36 sizes becomes 8×8, and a linear template on its normed
gradients scores every window at once: a convolution. Stage II: each size has a scale and an offset of its own that make
scores of different sizes comparable. Plain tensor operations, so one code runs on CPU and GPU and takes a batch of
images; the binary approximation, which buys the original its speed on a CPU, is not needed for that.

Images come resized to one square canvas, which makes a batch of any photos; boxes are scaled back by the caller.

Scores decide an order, so they are exact: pixels, gradients and the template are whole numbers whose sums of products
float32 holds without rounding, stage II is rounded to steps, and of equal scores the first comes first. The same canvas
gets the same boxes on every processor, at every place in a batch and with any number of threads.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import conv2d

from objcrop.errors import ObjcropError
from objcrop.extras import from_extra
from objcrop.kernels.first_of_equal import first_of_equal
from objcrop.whole_file import read_text, whole_file

# Window sizes (width, height), pixels of the canvas; the number of a size is its place here, as in the published model.
SIZES = [(1 << (4 + i % 6), 1 << (4 + i // 6)) for i in range(36)]
NONE = -(10**9)  # the score of what is no candidate
STEPS = 1 << 16  # of a score of stage II from 0 to 1


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

    @cached_property
    def whole_template(self) -> tuple[torch.Tensor, float]:
        """See `in_whole_numbers`."""
        return in_whole_numbers(self.template)

    def to(self, device: str | torch.device) -> BingModel:
        """Return the model with its tensors on `device`."""
        moved = BingModel(self.template.to(device), self.scale.to(device), self.offset.to(device), self.canvas)
        template, unit = self.whole_template
        # A GPU that is asked for these would have to be waited for.
        vars(moved).update(sizes=self.sizes, whole_template=(template.to(device), unit))
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
        template = torch.tensor(content["template"], dtype=torch.float32).view(8, 8)
        if not torch.isfinite(template).all():
            raise ValueError("its template is not finite")
        return BingModel(template, scale, offset, int(content["canvas"]))
    except (ValueError, KeyError, TypeError, RuntimeError, IndexError, AttributeError, OverflowError) as error:
        raise ObjcropError(f"{path} is no BING model ({type(error).__name__}: {error}).") from None


def _published(folder: Path) -> BingModel:
    cv2 = from_extra("cv2")

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


def in_whole_numbers(template: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return a template times a power of two, rounded: as fine as float32 sums its products with gradients exactly.

    Args:
        template: float (8, 8).

    Returns:
        template: float32 (8, 8), whole numbers; the score of any gradients lies within 2^22, give or take 2^13, where
            the last digit of float32 is a half.
        unit: the power of two.
    """
    most = math.fsum(template.double().abs().flatten().tolist()) * 255
    unit = 2.0 ** (22 - math.frexp(most)[1]) if most > 0 else 1.0
    return (template.double() * unit).round().float(), unit


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


# What is the same for every batch is kept where it is used: a GPU to which it is copied anew must be waited for, some
# hundred times a batch.
@functools.lru_cache(maxsize=256)
def _between(cells: int, pixels: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return which two pixels of a line each of `cells` lies between, and how near the second, in 128 steps."""
    at = (((2 * np.arange(cells) + 1) * pixels - cells) / (2 * cells)).clip(0, pixels - 1)
    first = np.floor(at).astype(np.int64)
    nearness = (np.rint((at - first) * 128) / 128).astype(np.float32)
    one, other, near = map(torch.from_numpy, (first, np.minimum(first + 1, pixels - 1), nearness))
    return one.to(device), other.to(device), near.to(device)


def _shrunk(images: torch.Tensor, axis: int, window_side: int) -> torch.Tensor:
    pixels = images.shape[axis]
    cells = max(8, round(8 * pixels / window_side))
    first, second, nearness = _between(cells, pixels, images.device)
    one, other = images.index_select(axis, first), images.index_select(axis, second)
    return one + (other - one) * (nearness[:, None] if axis == 2 else nearness)


def shrunk_rows(images: torch.Tensor, size: int) -> torch.Tensor:
    """Return images (B, 3, S, S) with as many rows as make a window of this size 8 high, (B, 3, h, S); h ≥ 8.

    Bilinear. Values are multiples of 1/128, exact in float32, as they are for columns thereafter (of 1/128²).
    """
    return _shrunk(images, 2, window(size, images.shape[-1])[1])


def shrunk_gradients(rows: torch.Tensor, size: int) -> torch.Tensor:
    """Return the normed gradients of images shrunk so that a window of this size is 8×8, (B, 1, h, w); h, w ≥ 8.

    Args:
        rows: of `shrunk_rows`, for a size as high.
        size: number of the window size.
    """
    return normed_gradients(_shrunk(rows, 3, window(size, rows.shape[-1])[0]).round_())


def window(size: int, canvas: int) -> tuple[int, int]:
    """Return the width and height of a window size, cut to the canvas."""
    return min(SIZES[size][0], canvas), min(SIZES[size][1], canvas)


def usable(size: int, canvas: int) -> bool:
    """Whether a window size is not far larger than the canvas; one of up to twice its side stands for the whole."""
    return max(SIZES[size]) <= 2 * canvas


@functools.lru_cache(maxsize=256)
def window_boxes(size: int, shape: tuple[int, int], canvas: int, device: str | torch.device = "cpu") -> torch.Tensor:
    """Return the boxes of a score map's places, float32 (h × w, 4) x0, y0, x1, y1 on the canvas, cut to it."""
    h, w = shape
    width, height = window(size, canvas)
    # Place p of a map lies at p of the w + 7 pixels that the canvas was shrunk to.
    x = torch.arange(w, device=device) * (canvas / (w + 7))
    y = torch.arange(h, device=device) * (canvas / (h + 7))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, (x + width).clamp(max=canvas), (y + height).clamp(max=canvas)], -1).flatten(0, 1)


def _greatest_within(values: torch.Tensor, axis: int, reach: int) -> torch.Tensor:
    """Return the greatest value within `reach` places each way along an axis, as a max pooling does, but quicker."""
    places = 2 * reach + 1
    ends = list(values.shape)
    ends[axis] = reach
    end = values.new_full(ends, NONE)
    run, length = torch.cat([end, values, end], axis), 1  # the greatest of so many places from each on
    while length < places:
        step = min(length, places - length)
        left = run.shape[axis] - step
        run, length = run.narrow(axis, 0, left).maximum(run.narrow(axis, step, left)), length + step
    return run


def only_peaks(scores: torch.Tensor, reach: int = 2, rounds: int = 4) -> torch.Tensor:
    """Suppress scores (B, 1, h, w) next to a better one, greedily, within `reach` places each way.

    Each round keeps local maxima among what is left and strikes their neighbours out; four rounds come close to going
    through the scores one by one, which a GPU cannot.
    """

    def around(values: torch.Tensor) -> torch.Tensor:
        return _greatest_within(_greatest_within(values, 3, reach), 2, reach)

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
        images: float (B, 3, S, S), whole numbers in 0..255.
        template: float32 (8, 8) of `in_whole_numbers`.
        sizes: numbers of window sizes.
        per_size: windows kept of each size.
        reach: of `only_peaks`.

    Returns:
        Scores int64 (B, n) in the template's unit, `NONE` where a size has fewer; boxes (B, n, 4) on the canvas; the
        size of each window (n,).
    """
    canvas, kernel = images.shape[-1], template[None, None].to(images.dtype)
    rows: dict[int, torch.Tensor] = {}  # by height of the window; all widths of one height follow each other
    scores, boxes, numbers = [], [], []
    for size in sizes:
        height = SIZES[size][1]
        if height not in rows:
            rows = {height: shrunk_rows(images, size)}
        found = only_peaks(conv2d(shrunk_gradients(rows[height], size), kernel).round_(), reach)
        places = window_boxes(size, (found.shape[-2], found.shape[-1]), canvas, images.device)
        value, at = first_of_equal(found.flatten(1).long(), min(per_size, len(places)))
        scores.append(value)
        boxes.append(places[at])
        numbers.append(torch.full((value.shape[1],), size, device=images.device))
    return torch.cat(scores, 1), torch.cat(boxes, 1), torch.cat(numbers)


@torch.no_grad()
def bing(images: torch.Tensor, model: BingModel, top: int = 1000, reach: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Propose boxes.

    Args:
        images: float (B, 3, S, S), whole numbers in 0..255, resized to the model's canvas.
        model: on the same device.
        top: boxes an image.
        reach: of `only_peaks`: 2 as published; 3 finds more with few boxes, less with a thousand.

    Returns:
        Boxes (B, k, 4) on the canvas and scores (B, k), best first; a score of `NONE` is no box. k ≤ top.
    """
    template, unit = model.whole_template
    raw, boxes, numbers = stage_one(images, template, model.sizes, reach=reach)
    scores = raw.double() / unit * model.scale[numbers].double() + model.offset[numbers].double()
    steps = torch.where(raw > NONE, (scores * STEPS).round().long(), NONE * STEPS)
    steps, best = first_of_equal(steps, min(top, steps.shape[1]))
    return boxes.gather(1, best[..., None].expand(-1, -1, 4)), (steps.double() / STEPS).float()
