"""The bench commands of the command line: `objcrop bench plan | loader | train | …`."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from objcrop.cli_options import (
    BoxesOption,
    CatalogFile,
    Commands,
    JsonOption,
    assignments,
    note_options,
    writes,
    writes_folder,
)
from objcrop.errors import UsageError, one_of

bench_app = typer.Typer(
    help="Measure; a table on screen, JSON in bench/results.",
    invoke_without_command=True,
    callback=note_options,
    cls=Commands,
)
console = Console(soft_wrap=True)


@bench_app.command("plan")
def bench_plan(
    output: JsonOption = None,
    images: Annotated[int, typer.Option(min=256, help="Images an epoch.")] = 20_000,
) -> None:
    """How many images a processor second the planner decides on, alone and with DALI fed by it."""
    from objcrop.bench.machine import write_result
    from objcrop.bench.plan import bench_plan as run_bench
    from objcrop.bench.table import print_table

    result = run_bench(images=images)
    print_table(result["policies"], "policy", console)
    print_table(result["feeding"], "planned and fed", console)
    if output is not None:
        write_result(output, result)


@bench_app.command("scenes")
def bench_scenes(
    catalog: CatalogFile,
    output: JsonOption = None,
    batches: Annotated[int, typer.Option(min=1, help="Batches in each measurement.")] = 8,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each, taken in turn.")] = 5,
) -> None:
    """How fast whole images with boxes and masks come, beside torchvision's reference transforms."""
    from objcrop.bench.machine import write_result
    from objcrop.bench.scenes import bench_scenes as run_bench
    from objcrop.bench.table import print_table

    result = run_bench(catalog, batches=batches, repeats=repeats)
    print_table(result["rows"], "whole images", console)
    if output is not None:
        write_result(output, result)


@bench_app.command("sources")
def bench_sources(
    output: JsonOption = None,
    catalog: Annotated[Path | None, typer.Option(help="Catalog of local files; default: drawn scenes.")] = None,
    images: Annotated[int, typer.Option(min=1, help="Images in each measurement.")] = 512,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch.")] = 64,
    size: Annotated[int, typer.Option(min=8, help="Side of the views, pixels.")] = 224,
    delay: Annotated[float, typer.Option(min=0, help="Seconds that each answer of the bucket is late.")] = 0.03,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each source, taken in turn.")] = 5,
) -> None:
    """How fast the same views come from a folder, a tar and a bucket that is far away."""
    from objcrop.bench.machine import write_result
    from objcrop.bench.sources import bench_sources as run_bench
    from objcrop.bench.table import print_sources

    options: dict[str, Any] = {"images": images, "batch_size": batch_size, "size": size}
    result = run_bench(catalog, delay=delay, repeats=repeats, **options)
    print_sources(result["sources"], console)
    if output is not None:
        write_result(output, result)


@bench_app.command("loader")
def bench_loader(
    catalog: Annotated[Path | None, typer.Option(help="Catalog; default: drawn scenes.")] = None,
    boxes: BoxesOption = None,
    crops: Annotated[str, typer.Option(help="Crop policy.")] = "obj-obj+dilate",
    size: Annotated[int, typer.Option(help="Side of the views, pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each loader, taken in turn.")] = 5,
    images: Annotated[int, typer.Option(min=1, help="Images in each measurement.")] = 256,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda: where the views must lie in the end.")] = "auto",
    workers: Annotated[int | None, typer.Option(min=0, help="Processes; default: one a core.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of DALI; default: one a core.")] = None,
    tune: Annotated[bool, typer.Option("--tune", help="Only find the best options of the DALI loader.")] = False,
    where: Annotated[bool, typer.Option("--where", help="Only the DALI loader, stage by stage.")] = False,
    sameness: Annotated[
        bool, typer.Option("--sameness", help="Also audit each: does it feed what it says? Takes minutes.")
    ] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Name of a loader or ceiling to measure; again for more. Default: all.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON to write; a PNG beside it.", callback=writes(".json", beside=".png")),
    ] = None,
) -> None:
    """Compare loaders on the same files and the same plan, in one run."""
    from objcrop.bench.loader import asked_for, plot_loader
    from objcrop.bench.loader import bench_loader as run_bench
    from objcrop.bench.machine import write_result
    from objcrop.bench.table import print_loaders, print_stages, print_tried
    from objcrop.bench.tune import bench_tune
    from objcrop.bench.where import bench_where

    if tune and where:
        raise UsageError("--tune and --where are two benches; give one of them.")
    if (tune or where) and (sameness or only):
        raise UsageError("--sameness and --only are of many loaders, --tune and --where of one; leave either out.")
    options: dict[str, Any] = {"crops": crops, "size": size, "batch_size": batch_size, "device": device}
    options |= {"threads": threads, "workers": workers, "images": images}
    with asked_for(catalog, boxes, **options) as wanted:
        report = (lambda result: None) if output is None else partial(write_result, output)
        if tune:
            result = bench_tune(wanted, repeats=repeats, images=images, report=report)
            print_tried(result, console)
        elif where:
            result = bench_where(wanted, repeats=repeats, images=images)
            print_stages(result, console)
        else:
            result = run_bench(
                wanted, repeats=repeats, images=images, sameness=sameness, only=only or (), report=report
            )
            print_loaders(result["loaders"], "loader", console)
            print_loaders(result["ceilings"], "ceiling", console)
            for name, reason in result["left_out"].items():
                console.print(f"{name}: {reason}", highlight=False)
    for line in result["verdict"]:
        console.print(line, highlight=False)
    if output is not None:
        write_result(output, result)
        if not where and not tune:
            plot_loader(result, output.with_suffix(".png"))


@bench_app.command("audit")
def bench_audit(
    factory: Annotated[
        str,
        typer.Argument(
            help="The function that makes the loader, or a contender's name in bench loader.", metavar="MODULE:FUNCTION"
        ),
    ],
    output: JsonOption = None,
    size: Annotated[int, typer.Option(min=32, help="Side of the views, pixels.")] = 64,
    epochs: Annotated[int, typer.Option(min=2, help="Epochs of 96 images whose views are measured.")] = 8,
) -> None:
    """Does anybody's loader feed what it says: order, ranks, resumption, bad files, crops, colours?

    FUNCTION(folder, *, batch_size, size, seed, rank, world_size, blur_p) makes an iterable of pairs (views, index) of
    an epoch: MoCo-v2's views of folder/0000.jpg, 0001.jpg, …, uint8 or float in 0..1, and the numbers in their names.
    `objcrop.bench.our_factory:make_loader` is ours; its file shows how one looks, bench/audit.py says all.
    """
    from objcrop.bench.audit import bench_audit as run_bench
    from objcrop.bench.machine import write_result
    from objcrop.bench.table import print_checks

    result = run_bench(factory, size=size, epochs=epochs)
    print_checks(result["checks"], console)
    for line in result["verdict"]:
        console.print(line, highlight=False)
    if output is not None:
        write_result(output, result)


@bench_app.command("train")
def bench_train(
    catalog: Annotated[Path | None, typer.Option(help="Catalog; default: drawn scenes.")] = None,
    boxes: BoxesOption = None,
    crops: Annotated[
        str | None, typer.Option(help="Crop policy; default: obj-obj+dilate, beside a rival the method's own.")
    ] = None,
    method: Annotated[str, typer.Option(help="As of pretrain.")] = "moco-v2",
    arch: Annotated[str, typer.Option(help="Any ResNet of torchvision, or timm/NAME.")] = "resnet50",
    size: Annotated[int, typer.Option(help="Side of the views, pixels.")] = 224,
    batch_size: Annotated[int, typer.Option(min=1, help="Batch.")] = 256,
    steps: Annotated[int, typer.Option(min=1, help="Steps of each measurement.")] = 20,
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each kind, taken in turn.")] = 5,
    loader: Annotated[str, typer.Option(help="dali or torch.")] = "dali",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Further option of a recipe.")
    ] = None,
    rival: Annotated[str | None, typer.Option(help="lightly: only the step, beside that library's.")] = None,
    output: JsonOption = None,
) -> None:
    """Does the GPU wait for its loader? The real step, with the loader and on one batch kept on the device."""
    from objcrop.bench.machine import write_result
    from objcrop.bench.table import print_figures
    from objcrop.bench.train import bench_train as run_bench

    crops = crops or (None if rival else "obj-obj+dilate")
    flags: dict[str, Any] = {"crops": crops, "method": method, "arch": arch, "size": size, "batch_size": batch_size}
    flags |= {"loader": loader, "device": device, **assignments(set_)}
    if rival is not None:
        from objcrop.bench.rival_steps import bench_rival

        one_of(rival, ("lightly",), "--rival")
        result = bench_rival(catalog, boxes, flags=flags, steps=steps, repeats=repeats)
    else:
        result = run_bench(catalog, boxes, flags=flags, steps=steps, repeats=repeats)
        print_figures(result["figures"], console)
    for line in result["verdict"]:
        console.print(line, highlight=False)
    if output is not None:
        write_result(output, result)


@bench_app.command("policies")
def bench_policies(
    train: Annotated[Path, typer.Option(help="Catalog with boxes, to pretrain and to fit probes on.")],
    test: Annotated[Path, typer.Option(help="Catalog to measure on.")],
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="JSON to write; a PNG beside it.", callback=writes(".json", beside=".png")),
    ],
    runs: Annotated[
        Path, typer.Option(help="Folder for the run folders; gone on with if there.", callback=writes_folder)
    ] = Path("runs"),
    steps: Annotated[int, typer.Option(min=1, help="Steps of each run.")] = 500,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each contender.")] = 2,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="Option of a recipe for all runs.")
    ] = None,
) -> None:
    """Compare crop policies: pretrain with each for the same number of steps, probe, plot."""
    from objcrop.bench.policies import bench_policies as run_bench
    from objcrop.catalog import Catalog

    flags: dict[str, Any] = {"arch": "resnet18", "size": 64, "batch_size": 64, "queue": 1024}
    flags |= {"base_lr": 0.12, "ema": 0.99, **assignments(set_)}
    catalogs = Catalog.load(train), Catalog.load(test)
    run_bench(*catalogs, runs, steps=steps, seeds=seeds, flags=flags, output=output, console=console)
    console.print(f"→ {output}, {output.with_suffix('.png')}", highlight=False)


@bench_app.command("proposals")
def bench_proposals(
    catalog: CatalogFile,
    output: JsonOption = None,
    images: Annotated[int | None, typer.Option(min=1, help="Look at so many only.")] = None,
    opencv_bing: Annotated[Path | None, typer.Option(help="Folder of OpenCV's BING model.")] = None,
    only: Annotated[list[str] | None, typer.Option(help="Measure this alone; the others stay as in -o.")] = None,
    rate: Annotated[bool, typer.Option("--rate", help="Only how fast propose runs beside decoding alone.")] = False,
    device: Annotated[str, typer.Option(help="Of --rate: auto, cpu or cuda.")] = "auto",
    repeats: Annotated[int, typer.Option(min=1, help="Of --rate: measurements of each.")] = 3,
) -> None:
    """Recall, objectness and price of every box source."""
    from objcrop.bench.machine import machine, read_result, write_result
    from objcrop.bench.proposals import bench_proposals as run_bench
    from objcrop.bench.proposing import bench_proposing
    from objcrop.bench.table import print_table
    from objcrop.catalog import Catalog

    if rate:
        result = bench_proposing(Catalog.load(catalog), device=device, repeats=repeats, images=images or 2048)
        print_table(result["rates"], "propose", console)
        for line in result["verdict"]:
            console.print(line, highlight=False)
        if output is not None:
            write_result(output, result)
        return
    before = read_result(output) if only and output is not None and output.exists() else None
    result = run_bench(Catalog.load(catalog), images=images, opencv_bing=opencv_bing, only=only, console=console)
    if output is not None:
        if before is not None:
            again = {**before.get("again", {}), **dict.fromkeys(result["methods"], machine())}
            result = {**before, "methods": {**before["methods"], **result["methods"]}, "again": again}
        write_result(output, result)


@bench_app.command("kernels")
def bench_kernels(
    output: JsonOption = None,
    device: Annotated[str, typer.Option(help="cuda, or cpu: the torch fallbacks at tiny sizes.")] = "cuda",
    repeats: Annotated[int, typer.Option(min=1, help="Measurements of each.")] = 50,
) -> None:
    """How long colour, anchors and BING take on a GPU, beside plain torch and a copy of the same bytes."""
    from objcrop.bench.kernels import bench_kernels as run_bench
    from objcrop.bench.machine import write_result
    from objcrop.bench.table import print_milliseconds

    result = run_bench(device, repeats=repeats)
    print_milliseconds(result["kernels"], f"on {result['device']}", console)
    for line in result["verdict"]:
        console.print(line, highlight=False)
    if output is not None:
        write_result(output, result)


@bench_app.command("gpu")
def bench_gpu(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.", callback=writes_folder)],
    minutes: Annotated[float, typer.Option(min=1, help="For this call; call again for what is left.")] = 9,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="The same on a CPU, in miniature.")] = False,
    only: Annotated[list[str] | None, typer.Option(help="This step, also if it was done.")] = None,
    catalog: Annotated[Path | None, typer.Option(help="Catalog with boxes; default: drawn scenes.")] = None,
    boxes: BoxesOption = None,
) -> None:
    """Do all that a first hour on a GPU is for, in pieces: doctor, tests, benches; a table and JSON in a folder."""
    from objcrop.bench.gpu import bench_gpu as run_bench
    from objcrop.bench.table import print_steps

    if (catalog is None) != (boxes is None):
        raise UsageError("--catalog and --boxes belong together.")
    photos: dict[str, Any] = {"catalog": catalog, "boxes": boxes}
    summary = run_bench(output, minutes=minutes, dry_run=dry_run, only=only, **photos, console=console)
    print_steps(summary, console)


@bench_app.command("readme")
def bench_readme(
    page: Annotated[
        Path | None,
        typer.Argument(help="Page with tables to fill; default: README.md and docs/numbers.md.", callback=writes()),
    ] = None,
) -> None:
    """Write the numbers of bench/results into the README and docs/numbers.md."""
    from objcrop.bench.readme import PAGES, with_numbers
    from objcrop.whole_file import read_text, whole_file

    for each in PAGES if page is None else (page,):
        text = with_numbers(read_text(each, "text", "name one with tables to fill"))
        with whole_file(each) as part:
            part.write_text(text, encoding="utf-8")
