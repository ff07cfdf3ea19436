"""The demo: all of objcrop, small, on drawn scenes, without a download.

    objcrop demo            some three minutes on two cores without a GPU

It draws scenes, indexes them, makes boxes, shows a contact sheet, pretrains a narrow ResNet-18 with SimCLR on
scene-scene and on within-box crops, probes both and the untrained network on images of single objects, and writes
one page with whatever numbers came out. Each step prints the command that does the same on a user's own photos. The
setting is that of `objcrop.effect`, which repeats it over seeds.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from rich.console import Console

from objcrop.catalog import Catalog
from objcrop.effect import ARCH, POLICIES, PROBED, SCENES, SIZE, TRAINING
from objcrop.extras import require
from objcrop.progress import quiet
from objcrop.sample_scenes import SceneKind, draw_scenes


def run_demo(folder: Path, *, scenes: int, steps: int, console: Console) -> Path:
    """Do everything in `folder` and return the report page; what is there already is made anew.

    Args:
        folder: for scenes, catalogs, boxes, runs and report.html.
        scenes: to train on; as many images of single objects are drawn to probe with, and half as many to test on.
        steps: of each run.
        console: where to say what is done.
    """
    import shutil

    from objcrop.contact_sheet import contact_sheet
    from objcrop.dali_pipes.crop_policy import crop_policy
    from objcrop.dali_pipes.load_views import load_views
    from objcrop.proposals import propose
    from objcrop.ssl.evaluation.probe import probe
    from objcrop.ssl.training.recipe import resolve
    from objcrop.ssl.training.run_folder import read_metrics
    from objcrop.ssl.training.trainer import pretrain

    require("cv2", "matplotlib")
    began = time.perf_counter()
    commands: list[str] = []

    def say(what: str, command: str) -> None:
        commands.append(command)
        if quiet():
            return
        console.print(f"[bold]{what}[/bold]")
        console.print(f"  {command}", highlight=False, markup=False)

    folder.mkdir(parents=True, exist_ok=True)
    train = _scenes(folder / "train", scenes, SCENES, 1, say)
    singles = _scenes(folder / "singles", scenes, PROBED, 2, say)
    test = _scenes(folder / "test", scenes // 2, PROBED, 3, say)
    say("boxes", f"objcrop propose {folder}/train.arrow --method gt -o {folder}/gt.arrow")
    boxes = propose(train, "gt")
    boxes.save(folder / "gt.arrow")

    results: dict[str, Any] = {}
    for policy in POLICIES:
        sheet = folder / f"{policy}.png"
        drawn = boxes if crop_policy(policy).needs_boxes else None
        given = f" --boxes {folder}/gt.arrow" if drawn is not None else ""
        scale = TRAINING["scale"]
        say("contact sheet", f"objcrop show {folder}/train.arrow{given} --crops {policy} --scale {scale} -o {sheet}")
        options: dict[str, Any] = {"boxes": drawn, "crops": policy, "scale": scale, "size": 128}
        options |= {"batch_size": 4, "prefetch": 1}
        options |= {"rank": 0, "world_size": 1}
        with load_views(train, **options) as loader:
            batch = next(iter(loader))
        contact_sheet(train, batch.index.numpy(), batch.plan, batch.views, sheet, policy_name=policy, boxes=drawn)

        flags = {"crops": policy, **TRAINING, "steps": steps, "batch_size": min(TRAINING["batch_size"], scenes)}
        shown = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in flags.items())
        run = folder / f"run-{policy}"
        command = f"objcrop pretrain --catalog {folder}/train.arrow{given} {shown} --output {run}"
        say(f"pretrain, {policy}", command)
        shutil.rmtree(run, ignore_errors=True)
        checkpoint = pretrain(resolve(None, flags), train, drawn, run)
        say("probe", f"objcrop probe {checkpoint} --train {folder}/singles.arrow --test {folder}/test.arrow")
        results[policy] = {
            **probe(checkpoint, singles, test),
            "metrics": read_metrics(run / "metrics.jsonl"),
            "sheet": sheet,
        }
        console.print(f"  linear mAP {results[policy]['linear_map']:.3f}", highlight=False)
    data = f"--train {folder}/singles.arrow --test {folder}/test.arrow"
    say("probe, untrained", f"objcrop probe untrained:{ARCH} --size {SIZE} {data}")
    results["untrained"] = probe(f"untrained:{ARCH}", singles, test, size=SIZE)
    console.print(f"  linear mAP {results['untrained']['linear_map']:.3f}", highlight=False)

    report = folder / "report.html"
    report.write_text(_page(results, commands, time.perf_counter() - began, len(train), steps), encoding="utf-8")
    console.print(f"\nIn {time.perf_counter() - began:.0f} s. Open {report}.", highlight=False)
    return report


def _scenes(folder: Path, n: int, kind: SceneKind, seed: int, say: Any) -> Catalog:
    """Draw n scenes unless they are there, and index them."""
    from objcrop.formats import index

    say("scenes", f"objcrop index {folder} --format scenes -o {folder}.arrow")
    draw_scenes(folder, n, seed=seed, kind=kind)
    catalog, _ = index(folder, "scenes")
    catalog.save(folder.with_suffix(".arrow"))
    return catalog


def _page(results: dict[str, Any], commands: list[str], seconds: float, scenes: int, steps: int) -> str:
    """Return the report."""
    from objcrop.page import drawn, heading, listing, page, picture, table
    from objcrop.ssl.training.plot_run import curves_figure

    numbers = [[name, f"{results[name]['linear_map']:.3f}"] for name in (*POLICIES, "untrained")]
    numbers.append(["chance", f"{results['untrained']['chance_map']:.3f}"])
    sheets = [(heading(policy), picture(results[policy]["sheet"].read_bytes(), policy)) for policy in POLICIES]
    return page(
        "objcrop demo",
        f"{scenes} drawn scenes, a narrow ResNet-18 at {SIZE} pixels, SimCLR for {steps} steps with each crop "
        "policy, then a linear probe of the frozen features on images of single objects. One seed orders nothing: "
        "objcrop demo --effect repeats it over seeds, beside images that one object fills, and docs/effect.md says "
        f"what it shows and what not. {seconds:.0f} s in all.",
        table(["crops", "linear mAP"], numbers),
        drawn(curves_figure({policy: results[policy]["metrics"] for policy in POLICIES}), "curves of both runs"),
        *(part for sheet in sheets for part in sheet),
        heading("The same on your own photos"),
        listing(commands),
    )
