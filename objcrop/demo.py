"""The demo: all of objcrop, small, on drawn scenes, without a download.

    objcrop demo            about five minutes on two cores without a GPU

It draws scenes, indexes them, makes boxes, shows a contact sheet, pretrains a ResNet-18 with MoCo-v2 on scene-scene and
on obj-obj+dilate crops, probes both and the untrained network, and writes one page with whatever numbers came out. Each
step prints the command that does the same on a user's own photos.
"""

from __future__ import annotations

import base64
import html
import io
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from objcrop.catalog import Catalog
from objcrop.extras import from_extra, require

POLICIES = ("scene-scene", "obj-obj+dilate")
# The queue stays well below the number of scenes: else it holds the positives' own images as negatives.
SIZE, ARCH, BATCH, QUEUE = 64, "resnet18", 64, 256


def run_demo(folder: Path, *, scenes: int, epochs: int, console: Console) -> Path:
    """Do everything in `folder` and return the report page; what is there already is made anew.

    Args:
        folder: for scenes, catalogs, boxes, runs and report.html.
        scenes: images to train on; a quarter more are drawn to test on.
        epochs: of each run.
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
        console.print(f"[bold]{what}[/bold]")
        console.print(f"  {command}", highlight=False, markup=False)

    folder.mkdir(parents=True, exist_ok=True)
    train = _scenes(folder / "train", scenes, 1, say)
    test = _scenes(folder / "test", max(scenes // 4, 16), 2, say)
    say("boxes", f"objcrop propose {folder}/train.arrow --method gt -o {folder}/gt.arrow")
    boxes = propose(train, "gt")
    boxes.save(folder / "gt.arrow")

    results: dict[str, Any] = {}
    for policy in POLICIES:
        sheet = folder / f"{policy}.png"
        drawn = boxes if crop_policy(policy).needs_boxes else None
        given = f" --boxes {folder}/gt.arrow" if drawn is not None else ""
        say("contact sheet", f"objcrop show {folder}/train.arrow{given} --crops {policy} -o {sheet}")
        options: dict[str, Any] = {"boxes": drawn, "crops": policy, "size": 128, "batch_size": 4, "prefetch": 1}
        options |= {"rank": 0, "world_size": 1}
        with load_views(train, **options) as loader:
            batch = next(iter(loader))
        contact_sheet(train, batch.index.numpy(), batch.plan, batch.views, sheet, policy_name=policy, boxes=drawn)

        flags = {"crops": policy, "arch": ARCH, "size": SIZE, "batch_size": BATCH, "queue": QUEUE, "epochs": epochs}
        # A short run: the momentum encoder must follow within it, and the rate is the highest that does not collapse.
        flags |= {"base_lr": 0.12, "ema": 0.99}
        shown = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in flags.items())
        run = folder / f"run-{policy}"
        command = f"objcrop pretrain --catalog {folder}/train.arrow{given} {shown} --output {run}"
        say(f"pretrain, {policy}", command)
        shutil.rmtree(run, ignore_errors=True)
        checkpoint = pretrain(resolve(None, flags), train, drawn, run)
        say("probe", f"objcrop probe {checkpoint} --train {folder}/train.arrow --test {folder}/test.arrow")
        results[policy] = {
            **probe(checkpoint, train, test),
            "metrics": read_metrics(run / "metrics.jsonl"),
            "sheet": sheet,
        }
        console.print(f"  linear mAP {results[policy]['linear_map']:.3f}", highlight=False)
    data = f"--train {folder}/train.arrow --test {folder}/test.arrow"
    say("probe, untrained", f"objcrop probe untrained:{ARCH} --size {SIZE} {data}")
    results["untrained"] = probe(f"untrained:{ARCH}", train, test, size=SIZE)
    console.print(f"  linear mAP {results['untrained']['linear_map']:.3f}", highlight=False)

    report = folder / "report.html"
    report.write_text(_page(results, commands, time.perf_counter() - began, len(train), epochs), encoding="utf-8")
    console.print(f"\nIn {time.perf_counter() - began:.0f} s. Open {report}.", highlight=False)
    return report


def _scenes(folder: Path, n: int, seed: int, say: Any) -> Catalog:
    """Draw n scenes unless they are there, and index them."""
    from objcrop.formats import index
    from objcrop.sample_scenes import draw_scenes

    say("scenes", f"objcrop index {folder} --format scenes -o {folder}.arrow")
    draw_scenes(folder, n, seed=seed)
    catalog, _ = index(folder, "scenes")
    catalog.save(folder.with_suffix(".arrow"))
    return catalog


def _loss_curves(results: dict[str, Any]) -> str:
    """Return the loss of both runs over their steps as a PNG in base64."""
    Figure = from_extra("matplotlib.figure").Figure

    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for policy in POLICIES:
        lines = results[policy]["metrics"]
        axes.plot([line["step"] for line in lines], [line["loss"] for line in lines], label=policy)
    axes.set(xlabel="step", ylabel="InfoNCE")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return base64.b64encode(file.getvalue()).decode()


def _page(results: dict[str, Any], commands: list[str], seconds: float, scenes: int, epochs: int) -> str:
    """Return the report: one HTML page with its pictures inside."""

    def picture(data: str, what: str) -> str:
        return f'<img alt="{html.escape(what)}" src="data:image/png;base64,{data}">'

    rows = "".join(
        f"<tr><td>{name}</td><td>{results[name]['linear_map']:.3f}</td></tr>" for name in (*POLICIES, "untrained")
    )
    sheets = "".join(
        f"<h2>{policy}</h2>" + picture(base64.b64encode(Path(results[policy]["sheet"]).read_bytes()).decode(), policy)
        for policy in POLICIES
    )
    chance = results["untrained"]["chance_map"]
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>objcrop demo</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .25rem 1.5rem .25rem 0; text-align: left }}
img {{ max-width: 100% }} pre {{ background: #f4f4f2; padding: 1rem; overflow-x: auto; font-size: 13px }}
</style>
<h1>objcrop demo</h1>
<p>{scenes} drawn scenes, {ARCH} at {SIZE} pixels, MoCo-v2 for {epochs} epochs with each crop policy, then a linear
multi-label probe on frozen features. {seconds:.0f} s in all. A run this small shows that everything works, not which
policy is better: the numbers are whatever came out of one seed.</p>
<table><tr><th>crops</th><th>linear mAP</th></tr>{rows}<tr><td>chance</td><td>{chance:.3f}</td></tr></table>
{picture(_loss_curves(results), "loss curves")}
{sheets}
<h2>The same on your own photos</h2>
<pre>{html.escape(chr(10).join(commands))}</pre>
</html>
"""
