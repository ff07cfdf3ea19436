"""What every loader of a bench is asked for, and what the outside ones hand out.

A rival is a file here with a function `loader(wanted)`, which returns what a training loop walks once an epoch: an
iterable of `TwoViews`, with `set_epoch`, `state_dict` and `load_state_dict` where the library has them. Both the bench
of speed and the audit are given that one loader. A library that reads files of its own making also has
`convert(wanted)`, which writes them into `wanted.folder`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD, RECIPES
from objcrop.dali_pipes.crop_policy import crop_policy
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.errors import ObjcropError
from objcrop.place import is_address


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes:
        catalog: the images.
        boxes: for our own loaders; rivals know none.
        crops: policy, likewise.
        size: side of the views, pixels.
        batch_size: images in a batch.
        device: "cpu" or "cuda": where the views must lie in the end.
        workers: processes, for loaders that work in processes.
        threads: for those that work in threads.
        folder: for files that a rival must write before it can begin.
        data: what the catalog is of, for the result.
        files: what rivals read, where that is not the catalog's images.
        times: how often an epoch of a rival has each of them: few go on over its end, so it must not come.
        seed: of the order and of the views.
        rank: of this process.
        world_size: number of processes.
        blur_p: probability of the blur.
        mean: subtracted from the views, per channel, of values in 0..1.
        std: divided by.
    """

    catalog: Catalog
    boxes: BoxTable | None
    crops: str
    size: int
    batch_size: int
    device: str
    workers: int
    threads: int
    folder: Path
    data: str = ""
    files: tuple[str, ...] | None = None
    times: int = 1
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    blur_p: float = 0.5
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def told(self) -> dict[str, Any]:
        """Return what a result says of what was measured."""
        by_name = {
            name: getattr(self, name) for name in ("crops", "size", "batch_size", "device", "threads", "workers")
        }
        return {**by_name, "catalog_images": len(self.catalog), "data": self.data}

    def paths(self) -> list[str]:
        """Return the paths of an epoch's images.

        Raises:
            ObjcropError: they are no files of this machine, which is what rivals read.
        """
        if self.files is not None:
            return [*self.files] * self.times
        if self.catalog.sources or is_address(self.catalog.root):
            raise ObjcropError(f"rivals are measured on files, and {self.catalog.path(0)} is none; index a folder.")
        return [self.catalog.path(row) for row in range(len(self.catalog))] * self.times

    def rows(self, epoch: int) -> list[int]:
        """Return which of the paths this rank reads in an epoch, in a random order."""
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.paths()))
        return order[self.rank :: self.world_size].tolist()

    def loader(self, **options: Any) -> ViewLoader:
        """Return one of our own loaders, on the device that is wanted unless told; options as in `load_views`."""
        augment = replace(RECIPES["moco-v2"][0], blur_p=self.blur_p, mean=self.mean, std=self.std)
        by_processes = options.get("backend") == "torch"
        at_work = {"workers": self.workers} if by_processes else {"threads": self.threads}
        options = {"device": self.device, "augment": augment, "seed": self.seed, **at_work, **options}
        return load_views(
            self.catalog,
            boxes=self.boxes if crop_policy(self.crops).needs_boxes else None,
            crops=self.crops,
            size=self.size,
            batch_size=self.batch_size,
            rank=self.rank,
            world_size=self.world_size,
            **options,
        )


@dataclass
class TwoViews:
    """A rival's batch.

    Attributes:
        views: two tensors (N, 3, S, S), float32, normalised.
        index: int64 (N,), which of the paths each shows.
    """

    views: tuple[torch.Tensor, torch.Tensor]
    index: torch.Tensor

    def __len__(self) -> int:
        return len(self.views[0])

    def to(self, device: str) -> TwoViews:
        """Return it with the views on a device."""
        one, two = (view.to(device, non_blocking=True) for view in self.views)
        return TwoViews((one, two), self.index)


class Epochs:
    """A loader made of a function.

    Args:
        batches: gets the epoch's number and yields its batches.
    """

    def __init__(self, batches: Callable[[int], Iterator[TwoViews]]) -> None:
        self.batches, self.epoch = batches, 0

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch comes next; without a word the next one does."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[TwoViews]:
        number, self.epoch = self.epoch, self.epoch + 1
        return self.batches(number)


def in_batches(rows: list[int], size: int) -> list[list[int]]:
    """Return rows in whole batches, what is left at the end dropped."""
    return [rows[i : i + size] for i in range(0, len(rows) - size + 1, size)]
