"""SPDL: FFmpeg decodes in threads, torchvision's v2 transforms follow in the same threads, none waits for another.

Not the same views: no boxes, crops anywhere in the image, random numbers of all threads from one generator; EXIF is not
looked at. FFmpeg's libraries must be on the machine.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from objcrop.bench.rivals.data_loader import Twice
from objcrop.bench.rivals.torchvision_v2 import moco_v2
from objcrop.bench.rivals.wanted import Epochs, TwoViews, Wanted


def loader(wanted: Wanted) -> Epochs:
    """Return the loader."""
    import spdl.io
    from spdl.pipeline import PipelineBuilder
    from spdl.source import DistributedRandomSampler

    paths, view = wanted.paths(), moco_v2(wanted)
    sampler = DistributedRandomSampler(len(paths), rank=wanted.rank, world_size=wanted.world_size)

    def made(row: int) -> tuple[Twice, int]:
        image = spdl.io.to_torch(spdl.io.load_image(paths[row])).permute(2, 0, 1)
        return (view(image), view(image)), row

    def together(samples: list[tuple[Twice, int]]) -> TwoViews:
        one, two = (torch.stack([views[n] for views, _ in samples]) for n in range(2))
        return TwoViews((one, two), torch.tensor([row for _, row in samples]))

    torch.manual_seed(wanted.seed)

    def epoch(number: int) -> Iterator[TwoViews]:
        sampler.shuffle(seed=1000 * wanted.seed + number)
        pipeline = (
            PipelineBuilder()
            .add_source(sampler)
            .pipe(made, concurrency=wanted.threads)
            .aggregate(wanted.batch_size, drop_last=True)
            .pipe(together)
            .add_sink(2)
            .build(num_threads=wanted.threads)
        )
        with pipeline.auto_stop():
            yield from pipeline

    return Epochs(epoch)
