"""What our loader cannot outrun on these files: reading alone, decoding alone, and handing over what is ready.

Files lie in the page cache after the first pass, and windows are worked out beforehand, so that each ceiling is the
price of one thing: reading and checking the files' bytes, or that and decoding them. Part of `objcrop bench loader`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import cycle, islice, repeat
from typing import Any, TypeVar, cast

from objcrop.bench.rivals.wanted import Wanted
from objcrop.catalog import Catalog
from objcrop.dali_pipes.dali_loader import DaliLoader
from objcrop.dali_pipes.decode_crop_resize import decode_graph, feed_of, union_of
from objcrop.dali_pipes.read_files import file_memory
from objcrop.dali_pipes.read_image import NOTHING, BadImage, read_encoded
from objcrop.dali_pipes.reused_memory import ReusedMemory
from objcrop.dali_pipes.view_loader import Position, ViewLoader
from objcrop.dali_pipes.view_plan import ViewPlan
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


def plans(loader: ViewLoader) -> Iterator[ViewPlan]:
    """Plan batch after batch without end."""
    return (plan for _, plan in loader.plans_from((0, 0)))


def read(
    plan: ViewPlan, catalog: Catalog, pool: ThreadPoolExecutor, threads: int, memory: ReusedMemory, decode: str
) -> list[Any]:
    """Return a batch as DALI takes it for `decode`: bytes, and for "union" where it begins and ends."""
    unions = union_of(plan.windows)
    found = read_encoded(catalog, plan.row.tolist(), unions, (), pool, threads, memory)
    images = [NOTHING if isinstance(image, BadImage) else image for image in found]
    return feed_of(images, unions[:, None], catalog.sizes_of(plan.row), decode)[0]


@contextmanager
def part_of_the_loader(coming: Iterator[ViewPlan], wanted: Wanted, until: str) -> Iterator[Callable[[], Any]]:
    """Read the images of plans, and decode them.

    Args:
        coming: a plan a batch.
        wanted: catalog, batch size, threads and device.
        until: "read", "whole" (the decoded image) or "union" (the decoded window).

    Yields:
        A function that returns the next batch of bytes or images.
    """
    memory = file_memory(wanted.batch_size, wanted.threads, 4)
    with ThreadPoolExecutor(wanted.threads) as pool:

        def feed() -> Any:
            form = "whole" if until == "read" else until
            return read(next(coming), wanted.catalog, pool, wanted.threads, memory, form)

        if until == "read":
            yield lambda: feed()[0]
            return
        pipe = decode_graph(
            feed,
            batch_size=wanted.batch_size,
            threads=wanted.threads,
            prefetch=2,
            device=wanted.device,
            device_id=resolve_device(wanted.device).index,
            decode=until,
        )
        yield lambda: pipe.run()[0]


def _planned_beforehand(wanted: Wanted, until: str) -> Generator[Any, None, None]:
    with wanted.loader() as loader:
        known = list(islice(plans(loader), 32))
    with part_of_the_loader(cycle(known), wanted, until) as next_batch:
        while True:
            yield next_batch()
