"""PyTorch's DataLoader as its documentation has it: workers that stay, DDP's sampler, pinned memory beside a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from objcrop.bench.rivals.wanted import Epochs, TwoViews, Wanted

Twice = tuple[torch.Tensor, torch.Tensor]


class Photos(Dataset):
    """Images that are decoded and made views of one by one.

    Args:
        paths: of the images.
        decode: a path to an image.
        views: an image to two views.
    """

    def __init__(self, paths: list[str], decode: Callable[[str], Any], views: Callable[[Any], Any]) -> None:
        self.paths, self.decode, self.views = paths, decode, views

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> tuple[Twice, int]:
        one, two = self.views(self.decode(self.paths[row]))
        return (one, two), row


class Pair:
    """Makes both views of an image by one recipe."""

    def __init__(self, view: Callable[[Any], torch.Tensor]) -> None:
        self.view = view

    def __call__(self, image: Any) -> Twice:
        """Return them."""
        return self.view(image), self.view(image)


def data_loader(
    photos: Photos, wanted: Wanted, finish: Callable[[torch.Tensor], torch.Tensor] = lambda views: views
) -> Epochs:
    """Return a loader of photos.

    Args:
        photos: see there.
        wanted: what is asked for.
        finish: what is done with a view of the whole batch, (N, 3, S, S), on the device where it must lie.
    """
    torch.manual_seed(wanted.seed)
    sampler: DistributedSampler = DistributedSampler(
        photos, wanted.world_size, wanted.rank, seed=wanted.seed, drop_last=True
    )
    batches = DataLoader(
        photos,
        wanted.batch_size,
        sampler=sampler,
        num_workers=wanted.workers,
        persistent_workers=wanted.workers > 0,
        pin_memory=wanted.device != "cpu",
        drop_last=True,
    )

    def epoch(number: int) -> Iterator[TwoViews]:
        sampler.set_epoch(number)
        for (one, two), index in batches:
            made = TwoViews((one, two), index).to(wanted.device)
            yield TwoViews((finish(made.views[0]), finish(made.views[1])), index)

    return Epochs(epoch)
