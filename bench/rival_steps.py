"""Claim: on a CPU a step of DenseCL, of SwAV with 2 + 6 views and of MAE takes at most 1.1 times as long as lightly's.

    objcrop bench train --rival lightly --method densecl --arch resnet18 --size 112 --batch-size 16 --steps 5

Both train the same network on one batch that stays on the device, in turns, `repeats` times: whole steps, views left
out. lightly's step is its own example's (bench/rivals/lightly_steps.py), which normalises all rows together; so does
ours here, unless bn_groups is given. The figure is the ratio of two neighbours in time; medians with the smallest and
largest.
"""

from __future__ import annotations

import os
import statistics
from contextlib import closing
from itertools import repeat
from typing import Any

from objcrop.bench.loader import endless_views, name_of_data
from objcrop.bench.rivals.lightly_steps import STEPS
from objcrop.bench.train import finish, run_of, stretch, told
from objcrop.errors import UsageError
from objcrop.progress import tracked
from objcrop.ssl.training.recipe import resolve

WARM_UP = 2


def bench_rival(
    catalog: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    *,
    flags: dict[str, Any],
    steps: int = 5,
    repeats: int = 5,
) -> dict[str, Any]:
    """Measure a method's step beside lightly's; arguments as of `bench_train`.

    Returns:
        `ours_s` and `lightly_s`, seconds a step in each turn; `ratio`, median, min and max; the recipe's main options;
        `verdict`.

    Raises:
        UsageError: a method that lightly's examples are not compared in.
    """
    if flags.get("method") not in STEPS:
        raise UsageError(f"method is '{flags.get('method')}', but steps of lightly are there of: {', '.join(STEPS)}.")
    together = {"bn_groups": 1} if resolve(None, {"method": flags["method"]}).acts("bn_groups") else {}
    with run_of(catalog, boxes, {**together, **flags}) as (run, loader):
        with closing(endless_views(loader)) as views:
            kept = next(views)
        theirs = STEPS[run.recipe.method](run.recipe, run.device)
        both = {"ours": run.take_step, "lightly": lambda batch: theirs(batch.views)}
        seconds: dict[str, list[float]] = {name: [] for name in both}
        for turn in tracked(range(repeats + 1), repeats + 1, "turns"):
            for name, step in both.items():
                count = steps if turn else WARM_UP
                took = stretch(repeat(kept), step, count, lambda: finish(run.device)).seconds / count
                seconds[name] += [took] if turn else []
        recipe, device = run.recipe, run.device
    ratios = [a / b for a, b in zip(seconds["ours"], seconds["lightly"])]
    middle = statistics.median(ratios)
    return {
        "what": "a step beside lightly's, seconds",
        **told(recipe),
        "device": str(device),
        "steps": steps,
        "data": name_of_data(catalog),
        **{f"{name}_s": [round(value, 4) for value in values] for name, values in seconds.items()},
        "ratio": {"median": round(middle, 3), "min": round(min(ratios), 3), "max": round(max(ratios), 3)},
        "verdict": [f"A step of {recipe.method} takes {middle:.2f} times as long as lightly's."],
    }
