"""A recipe's sweep: one run a setting, and a table of what came out.

    objcrop sweep oac-table9-dilate --catalog coco.arrow --boxes bing.arrow --output runs/dilate
        [--train labelled.arrow --test held_out.arrow]

Each run lies in a folder of its own, named by its setting; a sweep that was broken off goes on where it stopped.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog, catalog_at
from objcrop.errors import UsageError, shown, way_out
from objcrop.ranks import rank_and_world_size
from objcrop.ssl.evaluation.probe import probe
from objcrop.ssl.methods.by_name import method_class
from objcrop.ssl.training.recipe import name_of, resolve, settings
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain
from objcrop.whole_file import whole_file

RESULT = "sweep.json"


def sweep(
    recipe: str | os.PathLike[str],
    catalog: Catalog | str | os.PathLike[str],
    boxes: str | os.PathLike[str] | BoxTable | None,
    output: str | os.PathLike[str],
    *,
    train: Catalog | str | os.PathLike[str] | None = None,
    test: Catalog | str | os.PathLike[str] | None = None,
    report: Callable[[dict[str, Any]], None] = lambda run: None,
    **options: Any,
) -> dict[str, Any]:
    """Pretrain with each setting of a sweep, and probe what came out where there is something to probe it on.

    Args:
        recipe: one with a sweep, by name or file.
        catalog: the images to pretrain on, a `Catalog` or its file.
        boxes: for those settings whose crops or method look at them.
        output: folder of the run folders and of sweep.json.
        train: labelled images that probes learn from.
        test: labelled images that they are measured on.
        report: is handed each run's entry as it is there.
        **options: of the recipe, for all runs.

    Returns:
        `recipe`; `runs`: of each its `setting`, `folder`, `steps`, last `loss`, and what `probe` returned; of several
        processes rank 0 alone has any. The same is written to sweep.json after every run.

    Raises:
        UsageError: the recipe has no sweep, one of the two labelled catalogs is missing, an option of the sweep was
            given, or probes are asked for in one of several ranks.
        ObjcropError: see `pretrain` and `probe`.
    """
    tried = settings(recipe)
    if not tried:
        raise UsageError(f"recipe {shown(os.fspath(recipe))} has no sweep; run it with `objcrop pretrain`.")
    if (train is None) != (test is None):
        way = way_out("give both --train and --test, or neither", "give both train and test, or neither")
        raise UsageError(f"a sweep is probed on two catalogs: {way}.")
    if train is not None and rank_and_world_size()[1] > 1:
        raise UsageError("a probe measures in one process: leave the labelled catalogs out, or run without torchrun.")
    for name in tried[0]:
        if options.get(name) is not None:
            raise UsageError(f"{name} is what the sweep tries values of: leave it out, or use `objcrop pretrain`.")
    images = catalog_at(catalog)
    made = [(setting, resolve(recipe, {**options, **setting})) for setting in tried]  # all are sound before any work
    runs: list[dict[str, Any]] = []
    result = {"recipe": os.fspath(recipe), "runs": runs}
    for setting, each in made:
        folder = Path(output) / name_of(setting)
        looked_at = each.policy.needs_boxes or method_class(each.method).needs_boxes
        checkpoint = pretrain(each, images, boxes if looked_at else None, folder, resume="auto")
        if rank_and_world_size()[0] > 0:  # rank 0 writes what came out, and its machine may be the only one to have it
            continue
        last = read_metrics(folder / "metrics.jsonl")[-1]
        run = {"setting": setting, "folder": str(folder), "steps": last["step"], "loss": last["loss"]}
        if train is not None and test is not None:
            figures = probe(checkpoint, train, test, single_label=each.single_label)
            run |= {key: value for key, value in figures.items() if key != "checkpoint"}
        runs.append(run)
        report(run)
        with whole_file(Path(output) / RESULT) as part:
            part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result
