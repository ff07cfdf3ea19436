"""A table in miniature: drawn scenes, the smallest networks, two steps: every stage runs for real, in seconds."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

from objcrop.catalog import Catalog

SCENES, CLASSES, SIZE = 24, 3, 32
ARCH = "timm/test_resnet"


def tiny_pretraining(method: str) -> dict[str, Any]:
    """Return the options of a method's run."""
    common = {"arch": ARCH, "size": SIZE, "batch_size": 8, "steps": 2, "log_every_steps": 1}
    heads = {"dim": 16, "hidden": 32}
    of_method: dict[str, dict[str, Any]] = {
        "byol": heads,
        "simclr": heads,
        "soco": heads,
        "moco-v2": {**heads, "queue": 8},
        "densecl": {**heads, "queue": 8},
        "swav": {**heads, "queue": 8, "local_size": 16},
        "cmc": {"arch": "lab/resnet18", "dim": 16},
        "mae": {"arch": "timm/test_vit", "size": 64, "decoder_dim": 32},
    }
    return common | of_method.get(method, {})


def tiny_transfer(task: str) -> dict[str, Any]:
    """Return the options of a transfer."""
    if task == "probe":
        return {"linear_epochs": 2, "linear_batch_size": 8}
    common = {"batch_size": 8, "steps": 2, "log_every_steps": 1}
    if task == "segmentation":
        return {**common, "batch_size": 2, "crop": [64, 64]}
    if task == "detection":
        sides = {"sides": [64, 96], "test_side": 64, "longest": 128}
        return {**common, "batch_size": 2, **sides, "width": 16, "anchor": 8, "regions": 32}
    return common


def tiny_data(
    names: Collection[str], one_class: Collection[str], tests: Collection[str], folder: Path
) -> dict[str, str]:
    """Draw scenes and return a catalog for each data name.

    Args:
        names: of data.
        one_class: those in which an image has one class: of each scene that of its largest object.
        tests: those to be tested on.
        folder: for scenes and catalogs; what is there is taken.
    """
    from objcrop.formats import index
    from objcrop.sample_scenes import SceneKind, draw_scenes

    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, str] = {}
    for part, count, seed in (("train", SCENES, 1), ("test", SCENES // 2, 2)):
        several, one = folder / f"{part}.arrow", folder / f"{part}-one-class.arrow"
        if not one.exists():
            draw_scenes(folder / part, count, seed=seed, kind=SceneKind((160, 120), CLASSES), masks=True, workers=0)
            catalog, _ = index(folder / part, "scenes")
            catalog.save(several)
            _largest(catalog).save(one)
        mine = [name for name in names if (name in tests) == (part == "test")]
        found |= {name: str(one if name in one_class else several) for name in mine}
    return found


def _largest(catalog: Catalog) -> Catalog:
    """Return the same images, each with the class of its largest object."""
    labels = []
    for row in range(len(catalog)):
        held = catalog.annotations(row)
        sides = held.boxes[:, 2:] - held.boxes[:, :2]
        labels.append(catalog.classes[int(held.classes[sides.prod(1).argmax()])])
    return Catalog.from_files([catalog.path(row) for row in range(len(catalog))], labels)
