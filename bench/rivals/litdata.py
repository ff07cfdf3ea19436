"""LitData: photos in its own chunks, torchvision's v2 transforms in the workers of its `StreamingDataLoader`.

Not the same views: no boxes, crops anywhere in the image, random numbers of its own; EXIF is not looked at. The JPEGs
go into the chunks as they are, and are decoded by torchvision.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from objcrop.bench.rivals.data_loader import Pair
from objcrop.bench.rivals.torchvision_v2 import moco_v2
from objcrop.bench.rivals.wanted import Epochs, TwoViews, Wanted


def convert(wanted: Wanted) -> None:
    """Write the chunks."""
    import litdata

    inputs = list(enumerate(wanted.paths()))
    output = str(wanted.folder / "chunks")
    how: dict[str, Any] = {"chunk_bytes": "64MB", "num_workers": max(wanted.workers, 1), "verbose": False}
    litdata.optimize(_sample, inputs, output, **how)


def _sample(numbered: tuple[int, str]) -> dict[str, Any]:
    from PIL import Image

    row, path = numbered
    return {"row": row, "image": Image.open(path)}


class _Resumable(Epochs):
    """Its epochs, counted by itself, and the state of its `StreamingDataLoader`."""

    def __init__(self, batches: Any) -> None:
        super().__init__(self._of_epoch)
        self.loader = batches

    def _of_epoch(self, number: int) -> Iterator[TwoViews]:
        for one, two, index in self.loader:
            yield TwoViews((one, two), index)

    def state_dict(self) -> dict[str, Any]:
        return self.loader.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.loader.load_state_dict(state)


class _Made:
    """Its workers are spawned, so that what they call is sent to them."""

    def __init__(self, views: Pair) -> None:
        self.views = views

    def __call__(self, sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
        return *self.views(sample["image"]), int(sample["row"])


def loader(wanted: Wanted) -> Epochs:
    """Return the loader."""
    import litdata

    torch.manual_seed(wanted.seed)
    options: dict[str, Any] = {
        "shuffle": True,
        "drop_last": True,
        "seed": wanted.seed,
        "transform": _Made(Pair(moco_v2(wanted))),
    }
    dataset = litdata.StreamingDataset(str(wanted.folder / "chunks"), **options)
    # What it finds in torch.distributed, where there is a process group.
    dataset.distributed_env = type(dataset.distributed_env)(wanted.world_size, wanted.rank, 1)
    how: dict[str, Any] = {"num_workers": wanted.workers, "persistent_workers": wanted.workers > 0}
    how |= {"pin_memory": wanted.device != "cpu", "drop_last": True}
    batches = litdata.StreamingDataLoader(dataset, batch_size=wanted.batch_size, **how)
    return _Resumable(batches)
