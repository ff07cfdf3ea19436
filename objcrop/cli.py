"""The command line: each command reads its options, calls one function of the library and prints what came out.

Exit codes: 0 done, 1 failed, 2 wrong use. An error is one sentence on standard error. An output's place is tried while
the options are read, before any work (`cli_options.writes`).
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from objcrop import __version__
from objcrop.cli_bench import bench_app
from objcrop.cli_errors import run
from objcrop.cli_index import index, join, subset
from objcrop.cli_loudness import QuietOption, VerboseOption
from objcrop.cli_options import (
    RESUMES,
    SEEDS,
    BoxesOption,
    CatalogFile,
    Commands,
    JsonOption,
    RayOption,
    RecipeOption,
    ResumeOption,
    RootOption,
    assignments,
    crops_alone,
    every_recipe,
    named_recipes,
    note_options,
    of_recipe,
    offers,
    probe_options,
    takes,
    view_options,
    writes,
    writes_folder,
)
from objcrop.cli_propose import propose, train_bing
from objcrop.cli_report import report
from objcrop.cli_reproduce import reproduce
from objcrop.cli_transfer import transfer
from objcrop.errors import ObjcropError, UsageError
from objcrop.option import options_of
from objcrop.progress import quiet
from objcrop.whole_file import refuse_overwriting, refuse_unwritable, whole_file


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"objcrop {__version__}")
        raise typer.Exit


def of_all_commands(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is, and exit.", callback=_version, is_eager=True)
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Object-aware views for self-supervised pretraining, fed at the speed of the GPU."""
    note_options(context)


app = typer.Typer(
    name="objcrop",
    invoke_without_command=True,
    callback=of_all_commands,
    cls=Commands,
    pretty_exceptions_enable=False,
)
app.add_typer(bench_app, name="bench")
console = Console(soft_wrap=True)
MEASURES = ("linear_map", "linear_top1", "knn_map", "knn_top1")  # of a probe, in a line


@app.command()
def doctor(output: JsonOption = None) -> None:
    """Say what works on this machine: driver, DALI, CuPy, decoders, shared memory; on a GPU each way of decoding."""
    from objcrop.bench.machine import write_result
    from objcrop.doctor import examine, examine_decoding, found, print_findings

    findings = examine()
    probed = examine_decoding(findings)
    print_findings(findings, probed, console)
    if output is not None:
        write_result(output, found(findings, probed))
    if any(finding.needed and not finding.ok for finding in findings):
        raise ObjcropError("objcrop cannot run here: see the lines marked 'missing'.")


app.command()(index)
app.command()(join)
app.command()(subset)
app.command()(propose)
app.command("train-bing")(train_bing)


@app.command()
@takes(crops_alone)
def stats(
    catalog: CatalogFile,
    options: dict[str, Any],
    boxes: BoxesOption = None,
    recipe: RecipeOption = None,
    seed: Annotated[int, typer.Option(**SEEDS, help="The run's seed.")] = 0,
    images: Annotated[int | None, typer.Option(min=1, help="Look at so many only.")] = None,
    draws: Annotated[int, typer.Option(min=1, help="Epochs of views to look at.")] = 1,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="JSON to write; a PNG beside it.", callback=writes(".json", beside=".png")),
    ] = None,
    ray: RayOption = None,
    root: RootOption = None,
) -> None:
    """Objectness, coverage and recall of boxes and policies against ground truth."""
    import json

    from objcrop.box_stats import stats as run_stats
    from objcrop.catalog import catalog_at
    from objcrop.ray_cluster import ray_cluster
    from objcrop.stats_picture import draw_stats
    from objcrop.stats_table import stats_table

    asked = of_recipe(recipe, options)
    crops = asked.pop("crops", None)
    asked.pop("augment", None)  # windows are measured, whose colours are nobody's
    with ray_cluster(ray):
        result = run_stats(catalog_at(catalog, root), boxes, crops, seed=seed, images=images, draws=draws, **asked)
    stats_table(result, console)
    if output is not None:
        with whole_file(output) as part:
            part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
        name = " ".join(part for part in (boxes.stem if boxes else None, crops) if part) or Path(catalog).stem
        draw_stats({name: result}, output.with_suffix(".png"))
        console.print(f"→ {output}, {output.with_suffix('.png')}", highlight=False)


@app.command()
@takes(view_options, only=lambda: (*options_of(crops_alone()), "seed", "backend"))
def show(
    catalog: CatalogFile,
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.", callback=writes(".png"))],
    options: dict[str, Any],
    boxes: BoxesOption = None,
    recipe: RecipeOption = None,
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 6,
    epoch: Annotated[int, typer.Option(min=0, help="Which epoch's views.")] = 0,
    root: RootOption = None,
) -> None:
    """Draw a contact sheet: image, box, both windows, both final views."""
    from objcrop.catalog import catalog_at
    from objcrop.contact_sheet import contact_sheet
    from objcrop.dali_pipes.load_views import load_views

    photos = catalog_at(catalog, root)
    asked = of_recipe(recipe, options)
    backend = asked.get("backend", "dali")
    how: dict[str, Any] = {"workers": 0} if backend == "torch" else {"prefetch": 1}
    how |= {"batch_size": min(images, len(photos)), "rank": 0, "world_size": 1}
    with load_views(photos, boxes=boxes, **asked, **how) as loader:
        loader.set_epoch(epoch)
        batch = next(iter(loader))
    chosen, boxes_drawn = loader.planner.crops, loader.planner.boxes
    contact_sheet(
        photos, batch.index.numpy(), batch.plan, batch.views, output, policy_name=chosen.crops, boxes=boxes_drawn
    )
    console.print(f"{len(batch)} images, {chosen.crops}, {chosen.augment} → {output}", highlight=False)


@app.command()
@takes(every_recipe)
def pretrain(
    output: Annotated[Path, typer.Option("--output", "-o", help="Run folder.", callback=writes_folder)],
    options: dict[str, Any],
    recipe: RecipeOption = None,
    catalog: Annotated[
        str | None, typer.Option(help="File that `objcrop index` wrote, or a folder of photos or its address.")
    ] = None,
    boxes: Annotated[str | None, typer.Option(help="File that `objcrop propose` wrote, or online:anchors.")] = None,
    root: RootOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option by name; null takes it back.")
    ] = None,
    resume: ResumeOption = None,
) -> None:
    """Pretrain a backbone; also under torchrun (`torchrun --nproc-per-node N -m objcrop pretrain …`)."""
    from objcrop.catalog import catalog_at
    from objcrop.ranks import rank_and_world_size
    from objcrop.ssl.training.recipe import resolve
    from objcrop.ssl.training.run_folder import what_next
    from objcrop.ssl.training.trainer import pretrain as run_pretraining

    if catalog is None:
        raise UsageError("pretrain needs --catalog, a file that `objcrop index` wrote, or a folder of photos.")
    made = resolve(recipe, {**options, **assignments(set_)})
    run_pretraining(made, catalog_at(catalog, root), boxes, output, resume=RESUMES[resume])
    if rank_and_world_size()[0] == 0:
        for line in what_next(output)[: None if console.is_terminal and not quiet() else 1]:
            console.print(line, markup=False, highlight=False)


@app.command()
def recipes(
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Page to write, .md.", callback=writes(".md"))
    ] = None,
) -> None:
    """List the recipes; as a page, every row of the two papers with its recipe, data and boxes."""
    from objcrop.ssl.recipe_rows import recipe_lines, recipe_page

    if output is None:
        for line in recipe_lines():
            console.print(line, markup=False, highlight=False)
        return
    with whole_file(output) as part:
        part.write_text(recipe_page(), encoding="utf-8")
    console.print(f"→ {output}", highlight=False)


@app.command()
@takes(every_recipe)
def sweep(
    recipe: Annotated[
        str,
        typer.Argument(
            help="A recipe with a sweep: a YAML file, or a name in ssl/recipes.", autocompletion=offers(named_recipes)
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the runs.", callback=writes_folder)],
    options: dict[str, Any],
    catalog: Annotated[Path, typer.Option(help="File that `objcrop index` wrote.")],
    boxes: BoxesOption = None,
    train: Annotated[Path | None, typer.Option(help="Catalog that probes learn from.")] = None,
    test: Annotated[Path | None, typer.Option(help="Catalog they are measured on.")] = None,
    root: RootOption = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="OPTION=VALUE", help="An option of all runs by name.")
    ] = None,
) -> None:
    """Pretrain with each value that a recipe's sweep tries, probe, and put it in a table; goes on where it stopped."""
    from objcrop.catalog import catalog_at
    from objcrop.ssl.training.recipe import name_of
    from objcrop.ssl.training.sweep import RESULT
    from objcrop.ssl.training.sweep import sweep as run_sweep

    def report(run: dict[str, Any]) -> None:
        figures = [f"{key} {run[key]:.4f}" for key in ("loss", *MEASURES) if key in run]
        console.print(f"{name_of(run['setting']):<24}  {'  '.join(figures)}", highlight=False)

    given = {**options, **assignments(set_)}
    photos = catalog_at(catalog, root)
    if run_sweep(recipe, photos, boxes, output, train=train, test=test, report=report, **given)["runs"]:
        console.print(f"→ {output / RESULT}", highlight=False)


@app.command()
@takes(probe_options)
def probe(
    checkpoint: Annotated[str, typer.Argument(help="last.pt of a run, or 'untrained:ARCH' for the floor.")],
    train: Annotated[str, typer.Option(help="Catalog that classifiers learn from.")],
    test: Annotated[str, typer.Option(help="Catalog they are measured on.")],
    options: dict[str, Any],
    output: JsonOption = None,
) -> None:
    """Measure a backbone: linear and nearest-neighbour scores of frozen features, and fine-tuning."""
    import json

    from objcrop.ssl.evaluation.probe import in_lines
    from objcrop.ssl.evaluation.probe import probe as run_probe

    result = run_probe(checkpoint, train, test, **options)
    if output is not None:
        with whole_file(output) as part:
            part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    for line in in_lines(result):
        console.print(line, markup=False, highlight=False)


app.command()(transfer)
app.command()(reproduce)
app.command()(report)


@app.command()
def export(
    checkpoint: Annotated[Path, typer.Argument(help="last.pt of a run.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.", callback=writes())],
    format: Annotated[
        str,
        typer.Option(
            help="torchvision, torchvision-detection, timm or detectron2.",
            autocompletion=offers(lambda: ("torchvision", "torchvision-detection", "timm", "detectron2")),
        ),
    ] = "torchvision",
) -> None:
    """Write a checkpoint's backbone as others load it."""
    from objcrop.ssl.export import export as run_export

    refuse_overwriting(output, checkpoint)
    if format == "detectron2":
        refuse_unwritable(output.with_suffix(".yaml"))
    said = run_export(checkpoint, output, format)
    files = f"{output}, {said['config']}" if said["config"] else output
    console.print(f"{said['arch']}, {said['tensors']} tensors, {said['format']} → {files}", highlight=False)
    if said["small_stem"]:
        console.print(
            "Its first convolution is the 3×3 one for small images: see `objcrop.ssl.networks.backbones.backbone`."
        )


@app.command()
def plot(
    runs: Annotated[list[Path], typer.Argument(help="Run folders; several are drawn over each other.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Default: curves.png in the run.", callback=writes(".png", ".pdf", ".svg")),
    ] = None,
) -> None:
    """Draw a run's curves: loss, similarities, collapse, learning rate, speed."""
    from objcrop.ssl.training.plot_run import plot_run

    if output is None:
        output = runs[0] / "curves.png"
        refuse_unwritable(output)
    plot_run(runs, output)
    console.print(f"→ {output}", highlight=False)


@app.command()
def reconstruct(
    checkpoint: Annotated[Path, typer.Argument(help="last.pt of a run of mae.")],
    catalog: Annotated[Path, typer.Argument(help="Images to draw, a file that `objcrop index` wrote.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="PNG to write.", callback=writes(".png"))],
    images: Annotated[int, typer.Option(min=1, help="How many images.")] = 6,
    seed: Annotated[int, typer.Option(**SEEDS, help="Of the masks.")] = 0,
) -> None:
    """Draw what a run of mae sees of images, what it makes of the rest, and the images."""
    from objcrop.ssl.evaluation.reconstructions import draw_reconstructions

    draw_reconstructions(checkpoint, catalog, output, images=images, seed=seed)
    console.print(f"{checkpoint} → {output}", highlight=False)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for everything it makes.", callback=writes_folder)
    ] = Path("demo"),
    scenes: Annotated[int | None, typer.Option(min=64, help="Scenes to draw for training; default: 2000.")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Steps of each of the two runs; default: 300.")] = None,
    effect: Annotated[
        bool, typer.Option("--effect", help="Compare the two over seeds instead: twenty runs, half an hour.")
    ] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="--effect: runs of each policy on each kind of images.")
    ] = None,
) -> None:
    """Do all of it, small: draw scenes, index, boxes, contact sheet, two runs, probes, one report page."""
    from objcrop.demo import run_demo
    from objcrop.effect import run_effect

    if effect:
        if scenes or steps:
            raise UsageError(f"--{'scenes' if scenes else 'steps'} cannot act beside --effect; leave it out.")
        run_effect(output, seeds=seeds or 5, console=console)
        return
    if seeds:
        raise UsageError("--seeds cannot act without --effect; leave it out.")
    run_demo(output, scenes=scenes or 2000, steps=steps or 300, console=console)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; turns errors into one sentence and an exit code."""
    # PyTorch's threads wait for each other in a loop. Where others need the cores, they spin while the one they wait
    # for does not run, and a small network trains many times slower. OpenMP reads it once, when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    run(app, sys.argv[1:] if arguments is None else arguments)
