"""The plan of whole images for detection: how large each comes and whether it is mirrored, before any pixel is touched.

As a `ViewPlan` it is a pure function of (seed, epoch, sample). An image keeps its aspect: its shorter side becomes one
of `sides`, unless its longer one would then exceed `longest` (Detectron2's ResizeShortestEdge); or it is scaled more
freely, and a part of it is shown (large-scale jitter; Ghiasi et al. 2021, section 3).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from objcrop.catalog import Catalog
from objcrop.dali_pipes.batch import SamplePlan
from objcrop.dali_pipes.philox import uniforms
from objcrop.option_value import seed_of

STEP = 32  # pixels between two sides that are drawn from


@dataclass
class ScenePlan(SamplePlan):
    """Decisions for N whole images.

    Attributes:
        sample: int64 (N,) position in the sample space of the epoch.
        row: int64 (N,) catalog row.
        windows: int32 (N, 1, 4) the image's frame, x0, y0, x1, y1 in upright pixels.
        size: int32 (N, 2) width and height that it comes in.
        flip: bool (N,) mirrored left to right.
        part: int32 (N, 4) what is shown, x0, y0, x1, y1 in pixels of the resized and mirrored image; mostly all of it.
    """

    sample: NDArray[np.int64]
    row: NDArray[np.int64]
    windows: NDArray[np.int32]
    size: NDArray[np.int32]
    flip: NDArray[np.bool_]
    part: NDArray[np.int32]


class ScenePlanner:
    """Catalog and sizes, bound together: samples in, `ScenePlan` out.

    Args:
        catalog: the images, every one a sample.
        sides: smallest and largest shorter side, pixels; drawn are the first and what is 32, 64, … pixels larger.
        longest: the most that a longer side may be, pixels.
        flip_p: how often an image is mirrored.
        seed: the run's seed.
        scales: of large-scale jitter, in place of `sides`: the smallest and largest scale of an image that fits into a
            square of `longest`; of a larger one a random part of that size is shown.
    """

    def __init__(
        self,
        catalog: Catalog,
        sides: tuple[int, int],
        longest: int,
        flip_p: float,
        seed: int = 0,
        scales: tuple[float, float] | None = None,
    ) -> None:
        self.scales = scales
        self.catalog, self.longest, self.flip_p, self.seed = catalog, longest, flip_p, seed_of(seed)
        self.sides = np.arange(sides[0], sides[1] + 1, STEP)
        self.samples = len(catalog)

    def plan(self, samples: NDArray[np.int64], epoch: int) -> ScenePlan:
        """Make every decision for these samples of this epoch."""
        sizes = self.catalog.sizes_of(samples).astype(np.int64)
        turn = uniforms(self.seed, epoch, samples, 0, "scene_side")[..., 0]
        if self.scales is None:
            size = scaled(sizes, self.sides[(turn * len(self.sides)).astype(np.int64)], self.longest)
        else:
            low, high = self.scales
            longer = np.floor(self.longest * (low + turn * (high - low)) + 0.5).astype(np.int64)
            size = _times(sizes, np.maximum(longer, 1), sizes.max(1))
        shown = np.minimum(size, self.longest)
        drawn = uniforms(self.seed, epoch, samples, 0, "crop", 2)
        corner = (drawn * (size - shown + 1)).astype(np.int32)
        return ScenePlan(
            sample=samples,
            row=samples,
            windows=np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int32)[:, None],
            size=size,
            flip=uniforms(self.seed, epoch, samples, 0, "flip")[..., 0] < self.flip_p,
            part=np.concatenate([corner, corner + shown], 1).astype(np.int32),
        )

    def substitute(self, samples: NDArray[np.int64], epoch: int, attempt: int) -> NDArray[np.int64]:
        """Return the samples shown instead of these when their files are bad: a pure draw, one per attempt."""
        return (uniforms(self.seed, epoch, samples, attempt, "substitute")[..., 0] * self.samples).astype(np.int64)


def scaled(sizes: NDArray[np.int64], sides: NDArray[np.int64], longest: int) -> NDArray[np.int32]:
    """Return (width, height), int32 (N, 2), whose shorter is `sides` (N,) or whose longer is `longest`, rounded.

    All in whole numbers, so that no processor rounds otherwise.
    """
    short, long = sizes.min(1), sizes.max(1)
    fits = long * sides <= longest * short
    return _times(sizes, np.where(fits, sides, longest), np.where(fits, short, long))


def _times(sizes: NDArray[np.int64], top: NDArray[np.int64], bottom: NDArray[np.int64]) -> NDArray[np.int32]:
    """Return sizes (N, 2) × top / bottom, (N,) each, rounded half up; at least 1."""
    top, bottom = top[:, None], bottom[:, None]
    return np.maximum((2 * sizes * top + bottom) // (2 * bottom), 1).astype(np.int32)
