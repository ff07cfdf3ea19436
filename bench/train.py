"""Does the GPU wait for its loader? The real training step, with its loader and without.

    objcrop bench train --catalog voc.arrow --boxes gt.arrow --device cuda -o bench/results/h200_train.json
    objcrop bench train --rival lightly --method densecl …        the step alone, beside another library's

Three things are measured in turn, `repeats` times: the loader alone; the step on one batch that stays on the device
("synthetic"); the step with the loader. Each begins after a few batches that are not counted. The device is waited for
at the two ends of a stretch only, so that its queue of work stays as full as in training. Two figures come of it, each
from the stretches of one turn, medians with the smallest and largest:

- starvation: the share of the time of steps with the loader in which the device has nothing to do for want of a batch
  (bench/headroom.py). Results without `waits` are older: they say how long the host waited, which on a GPU is too much;
- slow-down: t_real / t_synthetic − 1, which also holds what the loader takes from the step by working beside it.
"""

from __future__ import annotations

import logging
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Any

import torch

from objcrop.bench.ceilings import like
from objcrop.bench.headroom import headroom
from objcrop.bench.loader import endless_views, load_or_draw, name_of_data
from objcrop.bench.where import CountedLoader
from objcrop.dali_pipes.dali_loader import DaliLoader
from objcrop.dali_pipes.torch_loader import TorchLoader
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.views import Views
from objcrop.option import options_of
from objcrop.progress import tracked
from objcrop.ssl.methods.by_name import method_class
from objcrop.ssl.training.recipe import Recipe, resolve
from objcrop.ssl.training.run_folder import RunFolder
from objcrop.ssl.training.trainer import Run, device_of, views_for


@dataclass(frozen=True)
class Stretch:
    """So many steps in a row.

    Attributes:
        seconds: from the first request to the end of the last step.
        waited: of those, while the device had nothing to do for want of a batch.
        images: in all batches.
    """

    seconds: float
    waited: float
    images: int


def bench_train(
    catalog: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    *,
    flags: dict[str, Any],
    steps: int = 20,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure loader, step and both; without a catalog, on scenes drawn for the purpose.

    Args:
        catalog: file of the images.
        boxes: file of their boxes.
        flags: options of a recipe, see `run_of`.
        steps: in a stretch.
        repeats: stretches of each kind.

    Returns:
        `figures` (see `figures_of`), and the `turns` that they are made of; `ready`, the mean number of batches that
        lay ready at a request, for loader "dali" without a cache; `verdict`; the recipe's main options.
    """
    with run_of(catalog, boxes, flags) as (run, loader):
        recipe, device = run.recipe, run.device
        # Before a stretch as many batches go by as may lie ready, so that it begins with none for nothing.
        settle = (loader.workers if isinstance(loader, TorchLoader) else recipe.prefetch) * 2 + 1

        def settled(batches: Iterator[Views], of: Callable[[Views], object]) -> Stretch:
            for batch in islice(batches, settle):
                of(batch)
            return stretch(batches, of, steps, lambda: finish(device))

        alone, synthetic, real, ready = [], [], [], []
        views = endless_views(loader)
        with closing(views):
            kept = next(views)
            for _ in tracked(range(repeats), repeats, "turns"):
                alone.append(settled(views, lambda batch: None))
                synthetic.append(settled(repeat(kept), run.take_step))
                real.append(settled(views, run.take_step))
                ready += loader.ready[-steps:] if isinstance(loader, CountedLoader) else []
    figures = figures_of(alone, synthetic, real)
    return {
        "what": "the real step with its loader, and with a batch kept on the device",
        **told(recipe),
        "loader": recipe.backend,
        "device": str(device),
        "steps": steps,
        "repeats": repeats,
        "data": name_of_data(catalog),
        "waits": "of the device",
        "figures": figures,
        "turns": {"alone": raw(alone), "synthetic": raw(synthetic), "real": raw(real)},
        "ready": round(statistics.mean(ready), 2) if ready else None,
        "verdict": verdict_of(figures, device.type),
    }


@contextmanager
def run_of(
    catalog: str | os.PathLike[str] | None, boxes: str | os.PathLike[str] | None, flags: dict[str, Any]
) -> Iterator[tuple[Run, ViewLoader]]:
    """Begin a run whose schedule does not end; without a catalog, on scenes drawn for the purpose.

    Args:
        catalog: file of the images.
        boxes: file of their boxes.
        flags: options of a recipe. A queue has as many rows as by default, or the next smaller number that batches
            fill.
    """
    flags = {**flags, "steps": 1_000_000}
    batch_size = int(flags.get("batch_size", 256))
    made_of = method_class(flags.get("method", "moco-v2")).options
    if "queue" in options_of(made_of) and flags.get("queue") is None:
        rows = made_of.own_defaults.get("queue", options_of(made_of)["queue"].default)
        flags["queue"] = max(rows // batch_size, 1) * batch_size
    recipe = resolve(None, flags)
    device = device_of(recipe.device)
    with tempfile.TemporaryDirectory(prefix="objcrop-bench-") as name:
        photos, table = load_or_draw(catalog, boxes, Path(name) / "scenes", max(2 * batch_size, 64))
        looked_at = recipe.policy.needs_boxes or method_class(recipe.method).needs_boxes
        loader = views_for(recipe, photos, table if looked_at else None, name, device)
        if type(loader) is DaliLoader:  # and no variant of it
            loader = like(loader, CountedLoader)
        with loader:
            logging.disable(logging.WARNING)  # few images for so many keys: that matters to learning, not to time
            run = Run(recipe, loader, RunFolder(Path(name) / "run", resume=False), device, False)
            logging.disable(logging.NOTSET)
            yield run, loader


def told(recipe: Recipe) -> dict[str, Any]:
    """Return what a result says of its recipe."""
    return {name: getattr(recipe, name) for name in ("method", "arch", "size", "batch_size", "crops", "compile")}


def stretch(
    batches: Iterator[Views],
    step: Callable[[Views], object],
    steps: int,
    finish: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> Stretch:
    """Take so many steps and their time.

    Args:
        batches: where they come from.
        step: what is done with each.
        steps: how many.
        finish: waits until the device has done what it was told.
        clock: seconds, from the first request to the last step's end.
    """
    finish()
    began, images = clock(), 0
    room = headroom(islice(batches, steps), say=lambda sentence: None)
    for batch in room:
        step(batch)
        images += len(batch)
    finish()
    return Stretch(clock() - began, room.first + room.waited, images)


def raw(stretches: list[Stretch]) -> dict[str, list[float]]:
    """Return what was measured in each turn."""
    return {
        "seconds": [round(each.seconds, 5) for each in stretches],
        "waited": [round(each.waited, 5) for each in stretches],
        "images": [each.images for each in stretches],
    }


def figures_of(alone: list[Stretch], synthetic: list[Stretch], real: list[Stretch]) -> dict[str, Any]:
    """Return the median, the smallest and the largest of each figure; stretches of one turn have the same index.

    Returns:
        `loader_images_per_s`, `synthetic_images_per_s`, `real_images_per_s`; `starvation`, `slow_down`, and
        `loader_over_step`, how many such steps the loader alone could feed.
    """

    def rate(each: Stretch) -> float:
        return each.images / each.seconds

    return {
        "loader_images_per_s": _spread([rate(each) for each in alone], 1),
        "synthetic_images_per_s": _spread([rate(each) for each in synthetic], 1),
        "real_images_per_s": _spread([rate(each) for each in real], 1),
        "starvation": _spread([each.waited / each.seconds for each in real], 4),
        "slow_down": _spread([rate(s) / rate(r) - 1 for s, r in zip(synthetic, real)], 4),
        "loader_over_step": _spread([rate(a) / rate(s) for a, s in zip(alone, synthetic)], 2),
    }


def verdict_of(figures: dict[str, Any], device: str) -> list[str]:
    """Say in words what is the limit; a slow-down of a twentieth is taken for none."""
    feeds, slower, waits = (figures[name]["median"] for name in ("loader_over_step", "slow_down", "starvation"))
    name = "GPU" if device == "cuda" else "processor"
    if feeds < 1:
        first = f"The loader is your limit: it feeds {feeds:.0%} of what the step could take."
    elif slower <= 0.05:
        first = f"The {name} is your limit: the loader could feed {feeds:.1f} of them."
    else:
        first = f"Alone the loader could feed {feeds:.1f} such steps, but working beside them it slows them."
    return [first, f"Starvation {waits:.1%}, slow-down {slower:.1%}."]


def _spread(values: list[float], digits: int) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), digits),
        "min": round(min(values), digits),
        "max": round(max(values), digits),
    }


def finish(device: torch.device) -> None:
    """Wait until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
