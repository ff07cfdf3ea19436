"""Where a DALI loader's time goes, stage by stage.

    objcrop bench loader --where [--catalog voc.arrow --boxes gt.arrow] [--device cuda]

The loader is run as chains that end a stage later each: planned; files read; decoded (the views' union on a CPU, the
whole image on a GPU); resized; coloured, which is the whole loader. A stage costs what its chain takes more than the
chain before, in milliseconds of processor time an image; stages much smaller than the spread may come out below 0. On a
CPU the last two are one loop in the loader: cut short behind resizing, it writes bytes that the loader does not. On a
GPU the time is the host's alone, and the rates of the chains say where the device becomes the limit. Nothing is copied
at the end: views are made where they are wanted, and on a GPU the files' bytes cross over inside decoding.

`ready` is the mean number of batches that lie ready when the consumer asks, which here takes and does nothing else: 0
unless handing over is what is slow. `objcrop bench train` reports it with a training step as the consumer.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import count
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from objcrop.bench.ceilings import like, part_of_the_loader, plans
from objcrop.bench.loader import endless_views, lap
from objcrop.bench.rivals.wanted import Wanted
from objcrop.bench.stopwatch import Stopwatch
from objcrop.dali_pipes.dali_loader import DaliLoader
from objcrop.dali_pipes.view_loader import Position, ViewLoader
from objcrop.dali_pipes.view_plan import ViewPlan
from objcrop.dali_pipes.views import Views
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.crop_resize import Windows
from objcrop.progress import tracked


def bench_where(wanted: Wanted, *, repeats: int, images: int) -> dict[str, Any]:
    """Measure the chains in turn; arguments as `bench_loader`.

    Returns:
        `chains`: for each stage the summary of the chain that ends with it; `stages`: milliseconds of processor time an
        image that it adds; `ready`: mean number of ready batches; `verdict`.
    """
    watches = {name: Stopwatch() for name in CHAINS}
    ready: list[int] = []
    batches = max(images // wanted.batch_size, 1)
    for _ in tracked(range(repeats), repeats, "turns"):
        for name, (begin, times) in CHAINS.items():
            watches[name].add(lap(begin, wanted, times * batches).watch)
        ready += _ready(wanted, batches)
    chains = {name: watch.summary() for name, watch in watches.items()}
    stages = stage_costs({name: 1000 / row["images_per_cpu_s"] for name, row in chains.items()})
    dearest = max(stages, key=lambda name: stages[name])
    whole = 1000 / chains["colour"]["images_per_cpu_s"]
    return {
        "what": "milliseconds of processor time an image, by stage",
        **wanted.told(),
        "chains": chains,
        "stages": stages,
        "ready": round(statistics.mean(ready), 2),
        "verdict": [f"{dearest}: {stages[dearest] / whole:.0%} of the {whole:.2f} ms of processor time an image."],
    }


def stage_costs(chains: dict[str, float]) -> dict[str, float]:
    """Return what each chain costs more than the one before it."""
    before = 0.0
    costs = {}
    for name, cost in chains.items():
        costs[name], before = round(cost - before, 4), cost
    return costs


def _planned(wanted: Wanted) -> Generator[ViewPlan, None, None]:
    with wanted.loader() as loader:
        yield from plans(loader)


def _run(wanted: Wanted, until: str) -> Generator[Any, None, None]:
    with wanted.loader() as loader, part_of_the_loader(plans(loader), wanted, until) as next_batch:
        while True:
            yield next_batch()


def _loaded(wanted: Wanted, kind: type[DaliLoader]) -> Generator[Views, None, None]:
    with like(wanted.loader(), kind) as loader:
        yield from endless_views(loader)


class LoaderWithoutColour(DaliLoader):
    """The real loader, less the colour: views stay uint8 on a GPU; on a CPU they are bytes aside."""

    def _make_views(self, out: NDArray[Any], v: int, windows: Windows, decisions: Decisions | None) -> None:
        super()._make_views(np.empty(out.shape, np.uint8), v, windows, None)

    def _colour_batch(self, v: int, pixels: torch.Tensor, decisions: Decisions) -> torch.Tensor:
        return pixels


class CountedLoader(DaliLoader):
    """The real loader, noting at each request how many batches lie ready.

    Attributes:
        ready: those numbers, 0 to `prefetch`; the maker's are the same.
    """

    def _maker(self) -> ViewLoader:
        self.ready: list[int] = getattr(self, "ready", [])
        return super()._maker()

    def _stream(self, start: Position) -> Iterator[Views]:
        self.made = 0
        with closing(super()._stream(start)) as batches:  # type: ignore[type-var]
            for taken in count():
                # One more may be made than the queue holds: it waits for room.
                self.ready.append(min(self.made - taken, self.prefetch))
                yield next(batches)

    def _produce(self, start: Position) -> Iterator[Views]:
        for views in super()._produce(start):
            self.made += 1
            yield views


def _ready(wanted: Wanted, count: int) -> list[int]:
    with closing(like(wanted.loader(), CountedLoader)) as loader:
        for _ in zip(range(count), endless_views(loader)):
            pass
        return loader.ready[1:]  # at the first request nothing has begun


# Name to batches, and how many times as many of them as of views it takes for a clock to tell.
CHAINS: dict[str, tuple[Callable[[Wanted], Generator[Any, None, None]], int]] = {
    "plan": (_planned, 20),
    "read": (lambda wanted: _run(wanted, "read"), 5),
    "decode": (lambda wanted: _run(wanted, "whole" if wanted.device == "cuda" else "union"), 1),
    "resize": (lambda wanted: _loaded(wanted, LoaderWithoutColour), 1),
    "colour": (lambda wanted: _loaded(wanted, DaliLoader), 1),
}
