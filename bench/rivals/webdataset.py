"""WebDataset: photos in tars, read in order, shuffled in a buffer; torchvision's v2 transforms in DataLoader workers.

Batches are made in the workers and mixed again behind them, as its documentation advises. Not the same views: no boxes,
crops anywhere in the image, random numbers of its own; PIL decodes, EXIF is not looked at.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from objcrop.bench.rivals.data_loader import Pair
from objcrop.bench.rivals.torchvision_v2 import moco_v2
from objcrop.bench.rivals.wanted import Epochs, TwoViews, Wanted

SHARDS = 16  # more than workers of all ranks, which share them
BUFFER = 1000  # images


def convert(wanted: Wanted) -> None:
    """Write the tars."""
    import webdataset as wds

    paths = wanted.paths()
    (wanted.folder / "tars").mkdir()
    pattern = str(wanted.folder / "tars" / "photos-%06d.tar")
    with wds.ShardWriter(pattern, maxcount=-(-len(paths) // SHARDS), verbose=0) as tars:
        for row, path in enumerate(paths):
            tars.write({"__key__": f"{row:09d}", "jpg": Path(path).read_bytes()})


def loader(wanted: Wanted) -> Epochs:
    """Return the loader; it counts its epochs itself."""
    import webdataset as wds

    torch.manual_seed(wanted.seed)
    shards = sorted(os.fspath(path) for path in (wanted.folder / "tars").iterdir())
    views = Pair(moco_v2(wanted))

    def of_rank(urls: Iterator[Any]) -> Iterator[Any]:
        return islice(urls, wanted.rank, None, wanted.world_size)

    def made(sample: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor, int]:
        from torchvision.transforms.v2.functional import pil_to_tensor

        return *views(pil_to_tensor(sample["jpg"])), int(sample["__key__"])

    def shuffled() -> Any:
        return wds.filters.detshuffle(BUFFER, seed=wanted.seed)

    how: dict[str, Any] = {"shardshuffle": SHARDS, "detshuffle": True, "seed": wanted.seed, "nodesplitter": of_rank}
    dataset = wds.WebDataset(shards, **how).compose(shuffled()).decode("pil").map(made).batched(wanted.batch_size)
    workers: dict[str, Any] = {"num_workers": wanted.workers, "persistent_workers": wanted.workers > 0}
    batches = wds.WebLoader(dataset, batch_size=None, pin_memory=wanted.device != "cpu", **workers)
    batches = batches.unbatched().compose(shuffled()).batched(wanted.batch_size, partial=False)

    def epoch(number: int) -> Iterator[TwoViews]:
        for one, two, index in batches:
            yield TwoViews((one, two), torch.as_tensor(index))

    return Epochs(epoch)
