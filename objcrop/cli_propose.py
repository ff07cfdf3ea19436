"""The commands that make boxes: `objcrop propose` and `objcrop train-bing`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from objcrop.cli_options import JSON, SEEDS, TABLE, CatalogFile, RayOption, RootOption, offers
from objcrop.errors import UsageError
from objcrop.whole_file import refuse_overwriting

console = Console(soft_wrap=True)


def _proposal_methods() -> list[str]:
    from objcrop.proposals import METHODS

    return list(METHODS)


def propose(
    catalog: CatalogFile,
    method: Annotated[
        str,
        typer.Option(
            help="gt, gt-pad, grid, random, image, import, bing, edge-boxes, selective-search, anchors, discovery; "
            "controls: centre-prior, poor.",
            autocompletion=offers(_proposal_methods),
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Boxes to write, .arrow or .parquet.", callback=TABLE)],
    source: Annotated[
        Path | None, typer.Option(help="import: COCO results JSON, CSV, npy, or boxes of another catalog.")
    ] = None,
    annotations: Annotated[
        Path | None, typer.Option(help="import: instances JSON that names image_id; or that catalog.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="import: end at the first entry that cannot be used.")
    ] = False,
    padding: Annotated[float | None, typer.Option(help="gt-pad: padding a side, share of the box's side.")] = None,
    count: Annotated[int | None, typer.Option(min=1, help="Boxes an image, at most.")] = None,
    seed: Annotated[int | None, typer.Option(**SEEDS, help="random, poor, discovery: the seed.")] = None,
    model: Annotated[
        str | None, typer.Option(help="bing, edge-boxes: a model of one's own; anchors: last.pt or untrained:ARCH.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="selective-search: all, or soco for the boxes SoCo keeps.")] = None,
    rank: Annotated[str | None, typer.Option(help="anchors: mean-sqrt-area, mean or per-size.")] = None,
    nms: Annotated[float | None, typer.Option(help="bing, anchors: boxes that overlap more are one.")] = None,
    device: Annotated[str | None, typer.Option(help="bing, anchors: auto, cpu, cuda or cuda:N.")] = None,
    proposals: Annotated[Path | None, typer.Option(help="discovery: boxes to choose from; EdgeBoxes if none.")] = None,
    neighbours: Annotated[int | None, typer.Option(help="discovery: images that each is matched with.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; default: the number of cores.")] = None,
    ray: RayOption = None,
    root: RootOption = None,
) -> None:
    """Make boxes for a catalog; those that look at the images go on where a broken run stopped."""
    from objcrop.catalog import catalog_at
    from objcrop.proposals import propose as propose_boxes
    from objcrop.proposals import takes
    from objcrop.ranks import rank_and_world_size
    from objcrop.ray_cluster import ray_cluster

    refuse_overwriting(output, catalog)
    given: dict[str, Any] = {"source": source, "annotations": annotations, "padding": padding}
    given |= {"count": count, "seed": seed, "strict": strict or None, "proposals": proposals, "neighbours": neighbours}
    given |= {"keep": keep, "model": model, "rank": rank, "nms": nms, "device": device, "workers": workers}
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if takes(method, "parts"):
        options["parts"] = output.with_suffix(".parts")
    elif ray is not None:
        raise UsageError(f"--ray cannot act here: method '{method}' works in one process; leave it out.")
    if ray is not None and workers is not None:
        raise UsageError("--workers cannot act beside --ray, whose cluster has its own; leave one out.")
    with ray_cluster(ray):
        boxes = propose_boxes(catalog_at(catalog, root), method, **options)
    if rank_and_world_size()[0] > 0:  # rank 0 puts the parts together
        return
    boxes.save(output)
    for line in boxes.lines():
        console.print(line, markup=False, highlight=False)
    console.print(f"{len(boxes.values)} boxes on {len(boxes)} images → {output}", highlight=False)


def train_bing(
    catalog: CatalogFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="JSON to write.", callback=JSON)],
    canvas: Annotated[int, typer.Option(min=64, help="Side that images are resized to, pixels.")] = 320,
    images: Annotated[int, typer.Option(min=1, help="How many to learn from, at most.")] = 1500,
    seed: Annotated[int, typer.Option(**SEEDS, help="Of the sample and the negatives.")] = 0,
    root: RootOption = None,
) -> None:
    """Train BING on a catalog's boxes; `propose --method bing --model` uses it."""
    from objcrop.catalog import catalog_at
    from objcrop.proposals.train_bing import train_bing as run_training

    model = run_training(catalog_at(catalog, root), canvas=canvas, images=images, seed=seed)
    options = f"--canvas {canvas} --images {images} --seed {seed}"
    model.save(output, f"objcrop train-bing {Path(catalog).name} {options} -o {output.name}")
    console.print(f"BING, canvas of {canvas} px → {output}", highlight=False)
