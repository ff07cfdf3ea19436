"""An experiment: which crops teach a network most about photos, the same number of steps each.

    objcrop index VOC/trainval --format coco --annotations instances_trainval.json -o trainval.arrow    (test likewise)
    objcrop bench policies --train trainval.arrow --test test.arrow --steps 600 -o bench/results/voc07_cpu.json

MoCo-v2 with each policy from each seed, then a linear probe and nearest neighbours on frozen features, the untrained
network as the floor. Every run stays in its folder; an experiment that was broken off goes on where it stopped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from objcrop.bench.machine import write_result
from objcrop.catalog import Catalog
from objcrop.extras import from_extra
from objcrop.proposals import propose
from objcrop.ssl.evaluation.probe import probe
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain
from objcrop.whole_file import save_picture

# Name, crop policy, method that makes the boxes.
CONTENDERS = (
    ("scene-scene", "scene-scene", None),
    ("within-box on grid", "within-box", "grid"),
    ("within-box on gt", "within-box", "gt"),
    ("obj-obj+dilate on gt", "obj-obj+dilate", "gt"),
)
MEASURES = ("linear_map", "linear_map_11_point", "knn_map")


def bench_policies(
    train: Catalog,
    test: Catalog,
    runs: Path,
    *,
    steps: int,
    seeds: int,
    flags: dict[str, Any],
    output: Path | None = None,
    console: Console | None = None,
) -> dict[str, Any]:
    """Pretrain with every contender from every seed on `train`, probe on `test`.

    Args:
        train: images with ground truth; boxes are made from it.
        test: labelled images to measure on.
        runs: folder for the run folders and boxes.
        steps: of every run.
        seeds: runs begin from seeds 0, 1, ….
        flags: options of a recipe that all runs share.
        output: JSON, written anew after every run.
        console: where to say what came out.

    Returns:
        `contenders`: for each name the policy, the boxes, and for each seed the measures and the last loss and standard
        deviation; `untrained` and `chance`; the shared options.
    """
    arch, size = flags.get("arch", "resnet18"), flags.get("size", 64)
    floor = probe(f"untrained:{arch}", train, test, size=size)
    result: dict[str, Any] = {
        "what": f"MoCo-v2, {arch}, {size} px, {steps} steps; linear probe and nearest neighbours on frozen features",
        "options": {**flags, "steps": steps},
        "train_images": len(train),
        "test_images": len(test),
        "untrained": {name: floor[name] for name in MEASURES},
        "chance": floor["chance_map"],
        "contenders": {},
    }
    runs.mkdir(parents=True, exist_ok=True)
    for seed in range(seeds):
        for name, crops, method in CONTENDERS:
            boxes = None if method is None else propose(train, method)
            run = runs / f"{name.replace(' ', '-')}-{seed}"
            recipe = resolve(None, {**flags, "arch": arch, "size": size, "crops": crops, "steps": steps, "seed": seed})
            figures = probe(pretrain(recipe, train, boxes, run, resume="auto"), train, test)
            last = read_metrics(run / "metrics.jsonl")[-1]
            entry = result["contenders"].setdefault(name, {"crops": crops, "boxes": method, "seeds": []})
            measured = {measure: figures[measure] for measure in MEASURES}
            entry["seeds"].append(
                {"seed": seed, **measured, "loss": last["loss"], "embedding_std": last["embedding_std"]}
            )
            if console is not None:
                line = "  ".join(f"{measure} {value:.4f}" for measure, value in measured.items())
                console.print(f"{name}, seed {seed}: {line}", highlight=False)
            if output is not None:
                write_result(output, result)
                plot_policies(result, output.with_suffix(".png"))
    return result


def plot_policies(result: dict[str, Any], path: Path) -> None:
    """Draw each contender's linear and nearest-neighbour mAP, a dot a seed, with the untrained network as a line."""
    Figure = from_extra("matplotlib.figure").Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    names = list(result["contenders"])[::-1]
    for ax, measure, title in zip(axes, ("linear_map", "knn_map"), ("linear probe, mAP", "nearest neighbours, mAP")):
        for place, name in enumerate(names):
            values = [seed[measure] for seed in result["contenders"][name]["seeds"]]
            ax.plot(np.mean(values), place, "|", color="#222222", markersize=18)
            ax.plot(values, [place] * len(values), "o", color="#1f6fb2", alpha=0.7)
        ax.axvline(result["untrained"][measure], color="#c0392b", linewidth=1)
        ax.text(result["untrained"][measure], len(names) - 0.5, " untrained", color="#c0392b", va="center", fontsize=8)
        ax.set_yticks(range(len(names)), names)
        ax.set(xlabel=title, ylim=(-0.5, len(names) - 0.2))
        ax.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path)
