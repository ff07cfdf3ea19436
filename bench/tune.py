"""Find how a loader should stand on this machine and these files: `objcrop bench loader --tune`.

    objcrop bench loader --tune --catalog photos.arrow --boxes boxes.arrow --device cuda --batch-size 256

One option after the other (threads, batches kept ready, on a GPU what is decoded, by whom, and in how much memory) is
tried at each of its values, the others standing at the best so far. The values take turns, `repeats` times; one wins
that is faster than the default in every turn, and by more than 2 % in the median: less is chance. The last lines are
what to put into one's own call.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypedDict

import numpy as np

from objcrop.bench.loader import asked_for, lap, our
from objcrop.bench.rivals.wanted import Wanted
from objcrop.bench.stopwatch import Stopwatch

CLEARLY = 1.02


class Trial(TypedDict):
    """What a value gave in each turn, images per second; GPU memory as in bench/loader.py, 0 on a CPU."""

    images_per_s: list[float]
    gpu_memory_mib: int


def options_to_try(threads: int, device: str) -> dict[str, list[Any]]:
    """Return each option's values, the default first.

    Args:
        threads: the number of cores.
        device: "cpu" or "cuda".
    """
    fewer = [threads >> shift for shift in (1, 2, 3) if threads >> shift]
    tried: dict[str, list[Any]] = {"threads": [threads, *fewer], "prefetch": [2, 1, 3, 4]}
    if device == "cuda":
        tried |= {"decode": ["whole", "union"], "hw_decoder_load": [0.0, 0.2, 0.4, 0.65, 0.8, 1.0]}
        tried["decoder_padding"] = [16, 0, 4, 64]
    return tried


def bench_tune(
    catalog: str | os.PathLike[str] | None,
    boxes: str | os.PathLike[str] | None,
    *,
    crops: str,
    size: int,
    batch_size: int,
    device: str,
    workers: int | None,
    threads: int | None,
    repeats: int,
    images: int,
) -> dict[str, Any]:
    """Find the best options for a catalog, or without one for scenes drawn for the purpose; see `bench_loader`."""
    with asked_for(catalog, boxes, crops, size, batch_size, device, workers, threads, images) as wanted:
        return tune(wanted, images=images, repeats=repeats)


def tune(wanted: Wanted, *, images: int, repeats: int) -> dict[str, Any]:
    """Find the best options.

    Args:
        wanted: the data and the views.
        images: in each measurement.
        repeats: turns.

    Returns:
        `tried`: of each option and value a `Trial`; `best`: the values; `verdict`: how to use them.
    """

    def measured(options: dict[str, Any]) -> tuple[float, int]:
        watch, others = Stopwatch(), {name: value for name, value in options.items() if name != "threads"}
        asked = replace(wanted, threads=options["threads"])
        memory = lap(watch, partial(our, **others), asked, max(images // wanted.batch_size, 1))
        return watch.summary()["images_per_s"], round(memory)

    tried, best = climb(options_to_try(wanted.threads, wanted.device), measured, repeats)
    given = ", ".join(f"{name}={value!r}" for name, value in best.items())
    flags = " ".join(f"--set {name}={value}" for name, value in best.items())
    lines = [f"load_views(…, {given})", f"objcrop pretrain … {flags}"]
    return {"device": wanted.device, "tried": tried, "best": best, "verdict": lines}


def climb(
    options: dict[str, list[Any]], measured: Callable[[dict[str, Any]], tuple[float, int]], repeats: int
) -> tuple[dict[str, dict[str, Trial]], dict[str, Any]]:
    """Settle one option after the other.

    Args:
        options: values of each, the default first.
        measured: images per second of a choice of all, and the GPU memory it takes, MiB.
        repeats: turns.

    Returns:
        Of each option the trial of each value, by its text; and the best value of each.
    """
    best = {name: values[0] for name, values in options.items()}
    tried: dict[str, dict[str, Trial]] = {}
    for name, values in options.items():
        turns = [[measured({**best, name: value}) for value in values] for _ in range(repeats)]
        rates = np.array([[rate for rate, _ in turn] for turn in turns])
        memory = [max(taken for _, taken in of_value) for of_value in zip(*turns)]
        tried[name] = {
            str(value): {"images_per_s": rates[:, i].tolist(), "gpu_memory_mib": memory[i]}
            for i, value in enumerate(values)
        }
        gain = rates / rates[:, :1]
        wins = (gain > 1).all(0) & (np.median(gain, 0) > CLEARLY)
        if wins.any():
            best[name] = values[int(np.where(wins, np.median(gain, 0), 0).argmax())]
    return tried, best
