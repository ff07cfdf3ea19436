"""DALI's own torchvision, `nvidia.dali.experimental.torchvision`: the same names, made of DALI's operators.

Not the same views: no boxes, crops anywhere in the image, random numbers of DALI, hue turned in YIQ, not in HSV; EXIF
is not looked at. It has no decoder, so PIL decodes, in threads; and its colour jitter takes nothing but PIL images, one
at a time.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch
from PIL import Image

from objcrop.bench.rivals.wanted import TwoViews, Wanted, shuffled
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD


def dali_torchvision(wanted: Wanted, device: str) -> Generator[TwoViews, None, None]:
    """Yield batches without end; the images of the next batch are decoded while this one is made.

    Args:
        wanted: what is asked for.
        device: "cpu" or "gpu", where the views are made.
    """
    paths = wanted.paths()
    order, view = shuffled(len(paths)), _view(wanted.size, device)
    with ThreadPoolExecutor(wanted.threads) as pool:

        def decoding() -> list[Future[Image.Image]]:
            return [pool.submit(_decoded, paths[row]) for row in islice(order, wanted.batch_size)]

        ahead = decoding()
        while True:
            images, ahead = [image.result() for image in ahead], decoding()
            # What it returns is DALI's memory, which the next call writes anew.
            one, two = (torch.stack([view(image).clone() for image in images]) for _ in range(2))
            yield TwoViews((one.to(wanted.device), two.to(wanted.device)))


def _decoded(path: str) -> Image.Image:
    return Image.open(path).convert("RGB")


def _view(size: int, device: str) -> Any:
    """Return the recipe of MoCo-v2, a PIL image to normalised float32 (3, S, S)."""
    from nvidia.dali.experimental import torchvision as v2

    steps = [
        v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True, device=device),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1, device=device)], 0.8, device=device),
        v2.RandomGrayscale(0.2, device=device),
        v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0), device=device)], 0.5, device=device),
        v2.RandomHorizontalFlip(device=device),
        v2.Normalize([255 * m for m in IMAGENET_MEAN], [255 * s for s in IMAGENET_STD], device=device),
        v2.ToPureTensor(device=device),
    ]
    return v2.Compose(steps, batch_size=1, num_threads=1)
