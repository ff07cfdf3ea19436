"""DALI's own torchvision, `nvidia.dali.experimental.torchvision`: the same names, made of DALI's operators.

Not the same views: no boxes, crops anywhere in the image, random numbers of DALI, hue turned in YIQ, not in HSV; EXIF
is not looked at. It has no decoder, so PIL decodes, in threads; and its colour jitter takes nothing but PIL images, one
at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from PIL import Image

from objcrop.bench.rivals.pil_chain import decoded
from objcrop.bench.rivals.wanted import Epochs, TwoViews, Wanted, in_batches
from objcrop.kernels.colour_reference import blur_kernel_size


def loader(wanted: Wanted, device: str) -> Epochs:
    """Return the loader; the images of the next batch are decoded while this one is made.

    Args:
        wanted: what is asked for.
        device: "cpu" or "gpu", where the views are made.
    """
    paths, view = wanted.paths(), _view(wanted, device)

    def epoch(number: int) -> Iterator[TwoViews]:
        batches = in_batches(wanted.rows(number), wanted.batch_size)
        with ThreadPoolExecutor(wanted.threads) as pool:

            def decoding(batch: list[int]) -> list[Future[Image.Image]]:
                return [pool.submit(decoded, paths[row]) for row in batch]

            ahead = decoding(batches[0])
            for batch, coming in zip(batches, [*batches[1:], []]):
                images, ahead = [image.result() for image in ahead], decoding(coming)
                # What it returns is DALI's memory, which the next call writes anew.
                one, two = (torch.stack([view(image).clone() for image in images]) for _ in range(2))
                yield TwoViews((one, two), torch.tensor(batch))

    return Epochs(epoch)


def _view(wanted: Wanted, device: str) -> Any:
    """Return the recipe of MoCo-v2, a PIL image to normalised float32 (3, S, S)."""
    from nvidia.dali.experimental import torchvision as v2

    side = blur_kernel_size(wanted.size)
    mean, std = [255 * m for m in wanted.mean], [255 * s for s in wanted.std]
    steps = [
        v2.RandomResizedCrop(wanted.size, scale=(0.2, 1.0), antialias=True, device=device),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1, device=device)], 0.8, device=device),
        v2.RandomGrayscale(0.2, device=device),
        v2.RandomApply([v2.GaussianBlur(side, (0.1, 2.0), device=device)], wanted.blur_p, device=device),
        v2.RandomHorizontalFlip(device=device),
        v2.Normalize(mean, std, device=device),
        v2.ToPureTensor(device=device),
    ]
    return v2.Compose(steps, batch_size=1, num_threads=1)
