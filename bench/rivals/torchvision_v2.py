"""torchvision's v2 transforms on uint8 tensors in DataLoader workers, as its documentation advises.

Not the same views: no boxes, crops anywhere in the image, random numbers of its own; decodes with PIL, the whole image;
EXIF is not looked at.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from objcrop.bench.rivals.wanted import TwoViews, Wanted, shuffled
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD


def torchvision_v2(wanted: Wanted) -> Generator[TwoViews, None, None]:
    """Yield batches without end, copied to the device where that is a GPU."""
    paths, on_gpu = wanted.paths(), wanted.device != "cpu"
    batches = DataLoader(
        _Photos(paths, moco_v2(wanted.size)),
        wanted.batch_size,
        sampler=_Endless(len(paths)),
        num_workers=wanted.workers,
        pin_memory=on_gpu,
    )
    for one, two in batches:
        yield TwoViews((one.to(wanted.device, non_blocking=True), two.to(wanted.device, non_blocking=True)))


def moco_v2(size: int) -> v2.Compose:
    """Return the recipe of MoCo-v2, uint8 (3, H, W) to normalised float32 (3, S, S)."""
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(23, (0.1, 2.0))], 0.5),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )


class _Photos(Dataset):
    def __init__(self, paths: list[str], view: v2.Compose) -> None:
        self.paths, self.view = paths, view

    def __getitem__(self, row: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = v2.functional.pil_to_tensor(Image.open(self.paths[row]).convert("RGB"))
        return self.view(pixels), self.view(pixels)


class _Endless(Sampler):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return shuffled(self.n)
