"""Whether object-aware views help: an experiment for two cores.

    objcrop demo --effect          some half an hour on two cores without a GPU; goes on where it was broken off

The claim of both papers, in small: on scenes with many small objects, views drawn from boxes that hold objects teach
more about objects than crops of the whole scene; on iconic images, which one object fills, they do not (the
falsifier). Boxes are the ground truth's, as in the upper rows of OAC's tables.

A narrow ResNet-18 learns by SimCLR at 64 px from 2,000 drawn scenes of 20 to 30 objects, or from 2,000 images of one,
with `scene-scene` and with `within-box` (CIB), five seeds each. Behind the objects of a scene is a wallpaper that no
other scene has, by which two crops are told to belong together without a look at any object. A linear probe then
measures the frozen features on images of single objects that neither saw (as CIB does in its Table 7): mean average
precision of ten shapes, whose colours are drawn anew each time and say nothing. Gains are paired by seed; p is of the
two-sided paired t-test.

Both policies crop at one scale, and it is the one at which `scene-scene` does best on these scenes, so that boxes are
measured and not a better scale. Steps, warm-up and views a batch are the same too. Part of what boxes gain is that they
cut away what is around objects: they gain on iconic images, too, that have a wallpaper, or more ground than these.
Scenes, scale, network and length were chosen on other seeds and other drawn images than those that are reported.
`docs/effect.md` has what came out and all that was tried.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from objcrop.errors import ObjcropError
from objcrop.extras import from_extra, require
from objcrop.sample_scenes import SceneKind, draw_scenes
from objcrop.ssl.reproduction.stage import Stage, key_of, run_together

SCENES = SceneKind((384, 288), objects=(20, 30), sides=(0.07, 0.11), tilt=15, themed=False, wallpaper=True)
ICONIC = SceneKind((128, 128), objects=(1, 1), sides=(0.95, 0.99), tilt=15, themed=False)
PROBED = SceneKind((128, 128), objects=(1, 1), sides=(0.85, 0.98), tilt=15, themed=False)
# What is drawn: its kind, how many, the seed.
DRAWN = {
    "scenes": (SCENES, 2000, 71),
    "iconic": (ICONIC, 2000, 72),
    "probe-train": (PROBED, 2000, 73),
    "probe-test": (PROBED, 1000, 74),
}
WORLDS = ("scenes", "iconic")
PLAIN, OBJECT_AWARE = POLICIES = ("scene-scene", "within-box")
FIRST_SEED = 101  # of the runs; smaller ones served the search
ARCH, SIZE = "narrow/resnet18", 64
TRAINING: dict[str, Any] = {
    "method": "simclr",
    "arch": ARCH,
    "size": SIZE,
    "scale": "0.85,1",
    "augment": "simclr",
    "temperature": 0.2,
    "batch_size": 128,
    "optimiser": "adam",
    "base_lr": 0.004,
    "weight_decay": 1e-4,
    "warmup_epochs": 2,  # 30 steps with either policy: a tenth of the run is the most
    "steps": 300,
}
# A run has one core, beside others.
OPTIONS = {**TRAINING, "cache": "host", "threads": 1, "device": "cpu", "checkpoint_every_steps": 100}


def run_effect(folder: Path, *, seeds: int, console: Console) -> dict[str, Any]:
    """Do what of the experiment is not done, and write effect.json, effect.png and effect.html.

    Args:
        folder: for scenes, runs and results.
        seeds: runs of each policy in each world; their seeds are 101, 102 and so on.
        console: where to say what came out.

    Returns:
        What effect.json holds: of each world the mAP of every run by policy and seed, the gain of object-aware views
        with its interval of 95 % and p, and the mAP of untrained networks and of chance.

    Raises:
        UsageError: OpenCV or matplotlib is missing.
        ObjcropError: the folder cannot be written, or a run failed.
    """
    from objcrop.launcher import cores_here
    from objcrop.progress import tracked
    from objcrop.whole_file import save_picture, whole_file

    require("cv2", "matplotlib")
    data = {name: _drawn(folder / "data", name) for name in DRAWN}
    console.print("scenes, boxes: done", highlight=False)
    numbers = range(FIRST_SEED, FIRST_SEED + seeds)
    probes = {
        (world, policy, seed): _probe(folder / "stages", data, world, policy, seed)
        for seed in numbers
        for world in WORLDS
        for policy in POLICIES
    }
    untrained = _probe_of(folder / "stages", data, f"untrained:{ARCH}", "untrained", ())
    stages = [stage for probe in (*probes.values(), untrained) for stage in (*probe.after, probe) if not stage.done]
    failed = []
    for stage, why in tracked(run_together(stages, cores_here()), len(stages), "training and probing"):
        if why is not None:
            failed.append(f"{stage.kind}, {stage.name}: {why}")
            console.print(f"failed, {failed[-1]}", highlight=False, markup=False)
    if failed:
        raise ObjcropError(failed[0])
    scores = {run: json.loads(probe.made.read_text(encoding="utf-8")) for run, probe in probes.items()}
    floor = json.loads(untrained.made.read_text(encoding="utf-8"))
    result: dict[str, Any] = {
        "untrained": floor["linear_map"],
        "chance": floor["chance_map"],
        "options": OPTIONS,
        "drawn": {name: {**asdict(kind), "images": n, "seed": seed} for name, (kind, n, seed) in DRAWN.items()},
        "worlds": {},
    }
    for world in WORLDS:
        runs = {p: [scores[world, p, seed]["linear_map"] for seed in numbers] for p in POLICIES}
        result["worlds"][world] = {"linear_map": runs, **paired(runs[OBJECT_AWARE], runs[PLAIN])}
    with whole_file(folder / "effect.json") as part:
        part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    save_picture(effect_figure(result), folder / "effect.png", dpi=140)
    shown = probes["scenes", OBJECT_AWARE, FIRST_SEED]
    commands = [shlex.join(["objcrop", *stage.command]) for stage in (*shown.after, shown)]
    with whole_file(folder / "effect.html") as part:
        part.write_text(_page(result, commands), encoding="utf-8")
    for line in in_lines(result):
        console.print(line, highlight=False, markup=False)
    console.print(f"→ {folder / 'effect.html'}", highlight=False)
    return result


def paired(first: Sequence[float], second: Sequence[float]) -> dict[str, float | None]:
    """Return the mean of `first - second`, its interval of 95 %, and p of the two-sided paired t-test.

    Interval and p are None of a single pair, and of pairs that differ by the same.
    """
    gains = np.subtract(first, second)
    gain, n = float(gains.mean()), len(gains)
    error = float(gains.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    if error == 0:
        return {"gain": round(gain, 5), "low": None, "high": None, "p": None}
    low, high = 0.0, 1e4  # t that 95 % lie within, by halving: two_sided_p falls with t
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, n - 1) > 0.05 else (low, middle)
    return {
        "gain": round(gain, 5),
        "low": round(gain - high * error, 5),
        "high": round(gain + high * error, 5),
        "p": float(f"{two_sided_p(gain / error, n - 1):.3g}"),
    }


def two_sided_p(t: float, degrees: int) -> float:
    """Return how likely a |t| as large is by chance, of Student's t with whole degrees of freedom.

    By the finite sums of Abramowitz and Stegun (1964), 26.7.3 and 26.7.4.
    """
    angle = math.atan(abs(t) / math.sqrt(degrees))
    cos, odd = math.cos(angle), degrees % 2
    term, total = (cos if odd else 1.0), 0.0
    for k in range(2 if odd else 1, degrees, 2):
        total += term
        term *= cos * cos * k / (k + 1)
    within = (angle + math.sin(angle) * total) * 2 / math.pi if odd else math.sin(angle) * total
    return max(1 - within, 0.0)


def in_lines(result: dict[str, Any]) -> list[str]:
    """Return what came out as lines to read, mAP in hundredths."""
    lines = []
    for world, of_world in result["worlds"].items():
        means = [f"{policy} {100 * np.mean(of_world['linear_map'][policy]):.1f}" for policy in POLICIES]
        lines.append(f"{world:<8} {', '.join(means)}: {_gain(of_world)}")
    return [*lines, f"untrained {100 * result['untrained']:.1f}, chance {100 * result['chance']:.1f}"]


def _gain(of_world: dict[str, Any]) -> str:
    said = f"{100 * of_world['gain']:+.1f} mAP"
    if of_world["p"] is None:
        return said
    return f"{said} ({100 * of_world['low']:+.1f} to {100 * of_world['high']:+.1f}, p {of_world['p']:.2g})"


def effect_figure(result: dict[str, Any]) -> Any:
    """Return a figure: in each world a line a seed from one policy to the other, and their means."""
    figure = from_extra("matplotlib.figure").Figure(figsize=(8, 4), layout="constrained")
    titles = {"scenes": "scenes of 20 to 30 small objects on wallpaper", "iconic": "images that one object fills"}
    for axes, world in zip(figure.subplots(1, 2, sharey=True), WORLDS):
        of_world = result["worlds"][world]
        runs = 100 * np.array([of_world["linear_map"][policy] for policy in POLICIES])
        axes.plot(runs, color="#9aa7b5", marker="o", markersize=4, linewidth=1)
        axes.plot(runs.mean(1), color="#c2571a", marker="o", markersize=8, linewidth=2.5)
        axes.axhline(100 * result["untrained"], color="#555555", linestyle="--", linewidth=1)
        floor = (0.5, 100 * result["untrained"])
        axes.annotate("untrained", floor, xycoords=("axes fraction", "data"), ha="center", va="bottom")
        axes.set_xticks([0, 1], POLICIES)
        axes.set_xlim(-0.3, 1.3)
        axes.set_title(f"{titles[world]}\n{_gain(of_world)}", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("linear mAP on single objects, %")
    return figure


def _page(result: dict[str, Any], commands: Sequence[str]) -> str:
    from objcrop.page import drawn, heading, listing, page, table

    rows = []
    for world, of_world in result["worlds"].items():
        pairs = zip(*(of_world["linear_map"][policy] for policy in POLICIES))
        rows += [
            [world, seed, *(f"{100 * value:.1f}" for value in pair), f"{100 * (pair[1] - pair[0]):+.1f}"]
            for seed, pair in enumerate(pairs, FIRST_SEED)
        ]
    return page(
        "Do object-aware views help?",
        f"A narrow ResNet-18 learnt by SimCLR at {SIZE} px for {OPTIONS['steps']} steps; a linear probe then measured "
        "its frozen features on images of single objects, as mean average precision of ten shapes. On scenes with many "
        "small objects, views from boxes should teach more than crops of the scene; on images that one object fills "
        "they should not. Both policies crop at one scale, the best for scene-scene of those tried: docs/effect.md.",
        *in_lines(result),
        drawn(effect_figure(result), "mAP of both policies in both worlds, a line a seed"),
        table(["images", "seed", *POLICIES, "gain"], rows),
        heading("One of the runs"),
        listing(commands),
    )


def _drawn(folder: Path, name: str) -> Path:
    """Draw scenes unless they are there, and return their catalog, with its boxes beside it."""
    from objcrop.formats import index
    from objcrop.proposals import propose

    kind, images, seed = DRAWN[name]
    place = folder / f"{name}-{key_of({**asdict(kind), 'images': images, 'seed': seed})}"
    catalog = place.with_name(place.name + ".arrow")
    if not catalog.exists():
        draw_scenes(place, images, seed=seed, kind=kind)
        made, _ = index(place, "scenes")
        propose(made, "gt").save(_boxes(catalog))
        made.save(catalog)  # last: it says that all is there
    return catalog


def _boxes(catalog: Path) -> Path:
    return catalog.with_name(f"{catalog.stem}-gt.arrow")


def _probe(folder: Path, data: dict[str, Path], world: str, policy: str, seed: int) -> Stage:
    """Return the stage that probes a run, after the stage that trains it."""
    options = {**OPTIONS, "crops": policy, "seed": seed}
    words = ["pretrain", "--catalog", str(data[world]), "--resume", "auto"]
    if policy == OBJECT_AWARE:
        words += ["--boxes", str(_boxes(data[world]))]
    for name, value in options.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    name, made_from = f"{world}-{policy}-{seed}", {"options": options, "catalog": data[world].name}
    place = folder / f"{name}-{key_of(made_from)}"
    run = Stage("pretrain", name, tuple(words), made_from, (), place, "last.pt")
    return _probe_of(folder, data, str(run.made), name, (run,))


def _probe_of(folder: Path, data: dict[str, Path], checkpoint: str, name: str, after: tuple[Stage, ...]) -> Stage:
    train, test = str(data["probe-train"]), str(data["probe-test"])
    words = ("probe", checkpoint, "--train", train, "--test", test, "--size", str(SIZE), "--device", "cpu")
    made_from = {"words": [Path(word).name for word in words], "after": [stage.made_from for stage in after]}
    place = folder / f"{name}-probe-{key_of(made_from)}"
    return Stage("probe", name, words, made_from, after, place, "probe.json")
