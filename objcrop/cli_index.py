"""The commands that make catalogs: `objcrop index`, `objcrop join` and `objcrop subset`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from objcrop.cli_options import SEEDS, TABLE, RayOption, RootOption, offers, writes_folder
from objcrop.errors import UsageError
from objcrop.formats_by_name import FORMATS
from objcrop.whole_file import refuse_overwriting

console = Console(soft_wrap=True)


def index(
    source: Annotated[str, typer.Argument(help="Folder of images, or what the format says; a path or an address.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Catalog to write, .arrow or .parquet.", callback=TABLE)
    ],
    format: Annotated[
        str, typer.Option(help=f"{', '.join(FORMATS)}.", autocompletion=offers(lambda: FORMATS))
    ] = "folder",
    annotations: Annotated[Path | None, typer.Option(help="Annotation file, where it lies elsewhere.")] = None,
    root: RootOption = None,
    split: Annotated[str | None, typer.Option(help="The part of a data set: train, test …")] = None,
    classes: Annotated[int | None, typer.Option(min=1, help="Only so many classes, drawn by --seed.")] = None,
    per_class: Annotated[int | None, typer.Option(min=1, help="Only so many images a class, drawn by --seed.")] = None,
    seed: Annotated[int | None, typer.Option(**SEEDS, help="Of --classes and --per-class.")] = None,
    image_labels: Annotated[
        Path | None, typer.Option(help="openimages: CSV of image-level labels, beside the classes of the boxes.")
    ] = None,
    image_column: Annotated[str | None, typer.Option(help="arrow, parquet: the images', of several.")] = None,
    label_column: Annotated[str | None, typer.Option(help="arrow, parquet: the classes', if not label.")] = None,
    box_format: Annotated[
        str | None, typer.Option(help="arrow, parquet: xywh or xyxy, where boxes fit both ways.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(help="arrow, parquet: name images by their path (the default) or row.")
    ] = None,
    unpack: Annotated[
        Path | None,
        typer.Option(help="parquet: folder for uncompressed copies, faster in random order.", callback=writes_folder),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many images.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Decode every image, leave out what fails.")] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="End at the first file, entry or mask that cannot be used.")
    ] = False,
    ray: RayOption = None,
) -> None:
    """Read a source of photos into a catalog; what cannot be used is left out and listed with place and reason."""
    from objcrop.formats import index as run_index
    from objcrop.ray_cluster import ray_cluster

    options: dict[str, Any] = {"annotations": annotations, "root": root}
    options |= {"split": split, "image_labels": image_labels}
    options |= {"classes": classes, "per_class": per_class, "seed": seed}
    options |= {"image_column": image_column, "label_column": label_column}
    options |= {"box_format": box_format, "keys": keys, "unpack": unpack}
    with ray_cluster(ray):
        catalog, report = run_index(source, format, limit=limit, verify=verify, strict=strict, **options)
    catalog.save(output)
    for line in report.lines():
        console.print(line, markup=False, highlight=False)
    console.print(f"{len(catalog)} images, {len(catalog.classes)} classes → {output}", highlight=False)


def join(
    catalogs: Annotated[list[Path], typer.Argument(help="Catalogs to join, two or more.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Catalog to write.", callback=TABLE)],
) -> None:
    """Join catalogs of several sources into one."""
    from objcrop.catalog import Catalog
    from objcrop.joined_catalogs import join_catalogs

    if len(catalogs) < 2:
        raise UsageError("join takes two catalogs or more.")
    joined = join_catalogs([Catalog.load(path) for path in catalogs])
    joined.save(output)
    console.print(f"{len(joined)} images, {len(joined.classes)} classes → {output}", highlight=False)


def subset(
    catalog: Annotated[Path, typer.Argument(help="File that `objcrop index` wrote.", metavar="CATALOG")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Catalog to write.", callback=TABLE)],
    min_classes: Annotated[int, typer.Option(min=1, help="Different classes that an image has at least.")] = 1,
    min_images: Annotated[int, typer.Option(min=1, help="Images that a class has at least.")] = 1,
    classes_of: Annotated[Path | None, typer.Option(help="Catalog whose classes are the only ones to count.")] = None,
    root: RootOption = None,
) -> None:
    """Keep the images that have several classes and the classes that have many images, until both hold."""
    from objcrop.catalog import Catalog
    from objcrop.catalog_subset import subset as run_subset

    refuse_overwriting(output, catalog)
    whole = Catalog.load(catalog, root=root)
    part = run_subset(whole, min_classes=min_classes, min_images=min_images, classes_of=classes_of)
    part.save(output)
    images, classes = f"{len(part)} of {len(whole)} images", f"{len(part.classes)} of {len(whole.classes)} classes"
    console.print(f"{images}, {classes} → {output}", highlight=False)
