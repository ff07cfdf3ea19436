"""Crops of images and their label maps, for learning to segment: scaled at random, cropped, mirrored, jittered.

Source: Zhao et al. 2017 (PSPNet), section 4.1, and He et al. 2020 (MoCo), appendix: a scale from .5 to 2, a crop of one
size, a mirror image half of the time. As with views, every decision is a pure function of (seed, epoch, sample).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import Augment
from objcrop.dali_pipes.crops import Crops
from objcrop.dali_pipes.philox import uniforms
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner
from objcrop.kernels.colour_cpu import colour_views
from objcrop.ssl.transfer.segmenter import IGNORED


@dataclass
class CropPlan(ViewPlan):
    """A plan of one view a sample, whose region and window are the whole image.

    Attributes:
        scaled: int32 (N, 2) width and height of the scaled image.
        crop: int32 (N, 4) x0, y0, x1, y1 in it; it reaches over the right and lower edge of an image that is smaller.
            What lies beyond is filled with the mean colour, and ignored.
    """

    scaled: npt.NDArray[np.int32]
    crop: npt.NDArray[np.int32]


class ScaledCrops(ViewPlanner):
    """Plans of crops.

    Args:
        catalog: the images.
        crop: height and width, pixels.
        scales: smallest and largest scale.
        augment: what happens to colours, and how often the crop is mirrored.
        seed: the run's seed.
    """

    def __init__(
        self, catalog: Catalog, crop: tuple[int, int], scales: tuple[float, float], augment: Augment, seed: int
    ) -> None:
        super().__init__(catalog, None, Crops(crops="scene", augment=augment), seed=seed)
        self.crop, self.scales = crop, scales

    def plan(self, samples: npt.NDArray[np.int64], epoch: int) -> CropPlan:
        """Make every decision for these samples of this epoch."""
        plan = super().plan(samples, epoch)
        drawn = uniforms(self.seed, epoch, plan.sample, 0, "crop", 3)
        low, high = self.scales
        scale = low + drawn[:, :1] * (high - low)
        scaled = np.maximum(np.floor(self.catalog.sizes_of(plan.row) * scale + 0.5), 1).astype(np.int32)
        side = np.array(self.crop[::-1], np.int32)
        corner = (drawn[:, 1:] * (np.maximum(scaled - side, 0) + 1)).astype(np.int32)
        whole = {**vars(plan), "windows": plan.regions}
        return CropPlan(**whole, scaled=scaled, crop=np.concatenate([corner, corner + side], 1))


def scaled_crop(
    image: Image.Image, labels: npt.NDArray[np.uint8], plan: CropPlan, i: int, augment: Augment
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return sample i's crop, float32 (3, h, w), normalised, and its labels, uint8 (h, w).

    The image is resized by PIL's bilinear filter, the label map by its nearest pixels.

    Args:
        image: RGB, upright.
        labels: its label map (H, W).
        plan: of `ScaledCrops`.
        i: position in it.
        augment: its mean and standard deviation.
    """
    (width, height), (x0, y0, x1, y1) = plan.scaled[i].tolist(), plan.crop[i].tolist()
    right, lower = min(x1, width), min(y1, height)
    across, down = image.width / width, image.height / height
    source = (x0 * across, y0 * down, min(right * across, image.width), min(lower * down, image.height))
    small = image.resize((right - x0, lower - y0), Image.Resampling.BILINEAR, box=source)
    pixels = np.array(small)
    coloured = np.empty(pixels.shape, np.float32)
    # Mirrored below, with what lies beyond the image.
    decisions = plan.decisions(slice(i, i + 1), 0)._replace(flip=[False])
    colour_views(pixels[None], decisions, augment.mean, augment.std, coloured[None])
    crop = torch.zeros(3, y1 - y0, x1 - x0)
    crop[:, : lower - y0, : right - x0] = torch.from_numpy(coloured).permute(2, 0, 1)
    # The source pixel under each one's centre, in whole numbers.
    columns = (2 * np.arange(x0, right) + 1) * image.width // (2 * width)
    rows = (2 * np.arange(y0, lower) + 1) * image.height // (2 * height)
    classes = torch.full(crop.shape[1:], IGNORED, dtype=torch.uint8)
    classes[: lower - y0, : right - x0] = torch.from_numpy(labels[rows[:, None], columns])
    return (crop.flip(-1), classes.flip(-1)) if plan.flip[i, 0] else (crop, classes)
