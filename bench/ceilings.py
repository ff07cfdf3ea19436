"""What no loader can outrun on these files: reading alone, decoding alone, and handing over what is ready.

Files lie in the page cache after the first pass, and names and windows are worked out beforehand, so that each ceiling
is the price of one thing. Part of `objcrop bench loader`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from itertools import count, cycle, islice, repeat
from typing import Any, TypeVar, cast

from objcrop.bench.rivals.wanted import Wanted
from objcrop.dali_pipes.dali_loader import DaliLoader
from objcrop.dali_pipes.decode_crop_resize import feed_of, union_of
from objcrop.dali_pipes.view_loader import Position, ViewLoader
from objcrop.dali_pipes.views import Views
from objcrop.devices import resolve_device

Kind = TypeVar("Kind", bound=DaliLoader)


def read_only(wanted: Wanted) -> Generator[Any, None, None]:
    """Yield the files' bytes."""
    yield from _planned_beforehand(wanted, "read")


def decode_whole(wanted: Wanted) -> Generator[Any, None, None]:
    """Yield whole images, uint8 HWC."""
    yield from _planned_beforehand(wanted, "whole")


def decode_union(wanted: Wanted) -> Generator[Any, None, None]:
    """Yield the smallest window of each image that holds all its views, uint8 HWC."""
    yield from _planned_beforehand(wanted, "union")


def cached_batch(wanted: Wanted) -> Generator[Views, None, None]:
    """Yield one batch again and again, through the thread, the queue and the epochs of the real loader."""
    with like(wanted.loader(device=wanted.device), OneBatchLoader) as loader:
        while True:
            yield from loader


# Name to batches, and how many times as many of them as of a contender's it takes for a clock to tell.
CEILINGS: dict[str, tuple[Callable[[Wanted], Generator[Any, None, None]], int]] = {
    "reading": (read_only, 10),
    "decoding whole images": (decode_whole, 1),
    "decoding the views' union": (decode_union, 1),
    "a cached batch": (cached_batch, 1000),
}


class OneBatchLoader(DaliLoader):
    """Hands out its first batch for ever."""

    def _produce(self, start: Position) -> Iterator[Views]:
        yield from repeat(next(super()._produce(start)))


def like(loader: ViewLoader, kind: type[Kind]) -> Kind:
    """Turn a DALI loader without a cache, not yet iterated, into a variant that only overrides methods."""
    assert type(loader) is DaliLoader
    loader.__class__ = kind
    return cast(Kind, loader)


def feeds(loader: ViewLoader) -> Iterator[Any]:
    """Plan batch after batch without end; yield each as DALI takes it: names, and the unions of the windows (N, 4)."""
    for epoch in count():
        for batch in range(len(loader)):
            plan = loader.batches.plan((epoch, batch))
            yield feed_of([loader.catalog.path(int(row)) for row in plan.row], union_of(plan.windows))


def part_of_the_graph(fed: Iterator[Any], wanted: Wanted, until: str) -> Any:
    """Build the loader's DALI graph up to a stage.

    Args:
        fed: names and one window an image, batch after batch.
        wanted: batch size, threads and device.
        until: "read", "whole" (the decoded image) or "union" (the decoded window).

    Returns:
        A built `nvidia.dali.Pipeline` with one output.
    """
    from nvidia.dali import fn, pipeline_def, types

    on_gpu = wanted.device == "cuda"
    how: dict[str, Any] = {"device": "mixed", "jpeg_fancy_upsampling": True} if on_gpu else {"device": "cpu"}

    @pipeline_def(
        batch_size=wanted.batch_size,
        num_threads=wanted.threads,
        device_id=resolve_device(wanted.device).index,
        prefetch_queue_depth=2,
    )
    def graph() -> Any:
        if until != "union":
            names = fn.external_source(source=lambda: next(fed)[0], batch=True, dtype=types.UINT8, ndim=1)
            encoded = fn.io.file.read(names)
            return encoded if until == "read" else fn.decoders.image(encoded, **how)
        names, window = fn.external_source(
            source=lambda: next(fed), num_outputs=2, batch=True, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
        )
        encoded = fn.io.file.read(names)
        low, high = fn.stack(window[1], window[0]), fn.stack(window[3], window[2])
        return fn.decoders.image_slice(encoded, start=low, end=high, axes=[0, 1], **how)

    pipe = graph()
    pipe.build()
    return pipe


def _planned_beforehand(wanted: Wanted, until: str) -> Generator[Any, None, None]:
    with wanted.loader() as loader:
        known = list(islice(feeds(loader), 32))
    pipe = part_of_the_graph(cycle(known), wanted, until)
    while True:
        yield pipe.run()[0]
