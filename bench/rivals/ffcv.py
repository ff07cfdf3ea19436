"""FFCV: the images decoded beforehand into one file, crops and flips by compiled loops over that.

Not the same views: no boxes, random numbers of its own, and no colour at all, which FFCV lacks; each view is a field of
its own in the file, since one field feeds one view. Writing the file is not timed.
"""

from __future__ import annotations

from collections.abc import Generator

import numpy as np
from PIL import Image

from objcrop.bench.rivals.wanted import TwoViews, Wanted
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD


def ffcv(wanted: Wanted) -> Generator[TwoViews, None, None]:
    """Yield batches without end."""
    from ffcv.fields import RGBImageField
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage
    from ffcv.writer import DatasetWriter

    file = wanted.folder / "photos.beton"
    if not file.exists():
        fields = {name: RGBImageField(write_mode="jpg") for name in ("one", "two")}
        DatasetWriter(str(file), fields, num_workers=wanted.workers).from_indexed_dataset(_Photos(wanted.paths()))
    mean, std = 255 * np.array(IMAGENET_MEAN), 255 * np.array(IMAGENET_STD)

    def view() -> list:
        return [
            RandomResizedCropRGBImageDecoder((wanted.size, wanted.size), scale=(0.2, 1.0)),
            RandomHorizontalFlip(),
            NormalizeImage(mean, std, np.float32),
            ToTensor(),
            ToTorchImage(convert_back_int16=False),
        ]

    order = OrderOption.RANDOM
    loader = Loader(str(file), wanted.batch_size, wanted.threads, order=order, pipelines={"one": view(), "two": view()})
    while True:
        for one, two in loader:
            yield TwoViews((one.to(wanted.device), two.to(wanted.device)))


class _Photos:
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Image.Image, Image.Image]:
        image = Image.open(self.paths[row]).convert("RGB")
        return image, image
