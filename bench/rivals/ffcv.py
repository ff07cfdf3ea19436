"""FFCV: the images written beforehand into one file, crops and flips by compiled loops over that.

Not the same views: no boxes, random numbers of its own, and no colour at all, which FFCV lacks; each view is a field of
its own in the file, since one field feeds one view.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from objcrop.bench.rivals.pil_chain import decoded
from objcrop.bench.rivals.wanted import Epochs, TwoViews, Wanted


def convert(wanted: Wanted) -> None:
    """Write the file."""
    from ffcv.fields import IntField, RGBImageField
    from ffcv.writer import DatasetWriter

    fields = {**{name: RGBImageField(write_mode="jpg") for name in ("one", "two")}, "row": IntField()}
    file = str(wanted.folder / "photos.beton")
    DatasetWriter(file, fields, num_workers=max(wanted.workers, 1)).from_indexed_dataset(_Photos(wanted.paths()))


class _Photos:
    def __init__(self, paths: list[str]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Any, Any, int]:
        image = decoded(self.paths[row])
        return image, image, row


def loader(wanted: Wanted) -> Epochs:
    """Return the loader; it counts its epochs itself."""
    from ffcv.fields.basics import IntDecoder
    from ffcv.fields.rgb_image import RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import NormalizeImage, RandomHorizontalFlip, ToTensor, ToTorchImage

    mean, std = 255 * np.array(wanted.mean), 255 * np.array(wanted.std)

    def view() -> list:
        return [
            RandomResizedCropRGBImageDecoder((wanted.size, wanted.size), scale=(0.2, 1.0)),
            RandomHorizontalFlip(),
            NormalizeImage(mean, std, np.float32),
            ToTensor(),
            ToTorchImage(convert_back_int16=False),
        ]

    pipelines = {"one": view(), "two": view(), "row": [IntDecoder(), ToTensor()]}
    how: dict[str, Any] = {"order": OrderOption.RANDOM, "seed": wanted.seed, "drop_last": True}
    file = str(wanted.folder / "photos.beton")
    batches = Loader(file, wanted.batch_size, wanted.threads, pipelines=pipelines, **how)

    def epoch(number: int) -> Iterator[TwoViews]:
        for one, two, row in batches:
            yield TwoViews((one, two), torch.as_tensor(row).flatten())

    return Epochs(epoch)
