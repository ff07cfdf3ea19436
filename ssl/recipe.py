"""Everything a pretraining run is told, and where it is told: defaults, then a recipe file, then flags.

A recipe (`ssl/recipes/*.yaml`, or a user's file) holds differences only; the run folder keeps the resolved whole.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from objcrop.errors import ObjcropError, UsageError, one_of

FOLDER = Path(__file__).resolve().parent / "recipes"


@dataclass(frozen=True)
class Recipe:
    """All options of `objcrop pretrain`.

    Attributes:
        method: "moco-v2" or "byol".
        arch: any ResNet of torchvision, by name.
        size: side of the views, pixels; 96 and less get a stem for small images.
        batch_size: global, over all processes.
        epochs: passes over the samples.
        steps: stop after so many; None for all epochs. The schedule ends there too.
        seed: of weights, views and everything else.
        crops: crop policy.
        augment: augmentation recipe; None is the method's own.
        loader: "dali" or "torch".
        device: "cuda" or "cpu".
        optimiser: "sgd" or "lars"; None is the method's own.
        base_lr: learning rate at batch 256; the rate is base_lr × batch_size / 256.
        weight_decay: L2.
        warmup_epochs: linear rise of the rate.
        momentum: of the optimiser.
        temperature: of InfoNCE (moco-v2).
        queue: number of keys, a multiple of batch_size (moco-v2).
        dim: of the embeddings.
        hidden: width of the projection's and the prediction's hidden layer; None is the feature width.
        ema: momentum of the momentum encoder; BYOL raises it to 1 by a cosine.
        bn_groups: virtual devices that the keys' BatchNorm is split over in one process (moco-v2).
        heads: "per-role" (OAC 3) or "shared"; policies whose views play one role always share.
        checkpoint_every_steps: beside each epoch's end; None for epochs only.
        log_every_steps: a line in metrics.jsonl.
        workers: processes of the torch loader; None is the number of cores.
        threads: threads of the dali loader; None is the number of cores.
        max_bad: share of unreadable images to step over.
        min_side: see `load_views`, as the rest.
        dilate: see `load_views`.
        dilate_by: see `load_views`.
        shift: see `load_views`.
        scale_min: see `load_views`.
        max_boxes: see `load_views`.
    """

    method: str = "moco-v2"
    arch: str = "resnet50"
    size: int = 224
    batch_size: int = 256
    epochs: int = 200
    steps: int | None = None
    seed: int = 0
    crops: str = "scene-scene"
    augment: str | None = None
    loader: str = "dali"
    device: str = "cpu"
    optimiser: str | None = None
    base_lr: float = 0.03
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    temperature: float = 0.2
    queue: int = 65536
    dim: int = 128
    hidden: int | None = None
    ema: float = 0.999
    bn_groups: int = 8
    heads: str = "per-role"
    checkpoint_every_steps: int | None = None
    log_every_steps: int = 10
    workers: int | None = None
    threads: int | None = None
    max_bad: float = 0.01
    min_side: int | str = "auto"
    dilate: float = 0.1
    dilate_by: str = "image"
    shift: tuple[float, float] = (80.0, 100.0)
    scale_min: float | str = "auto"
    max_boxes: int = 10

    def __post_init__(self) -> None:
        one_of(self.method, ("moco-v2", "byol"), "method")
        one_of(self.heads, ("per-role", "shared"), "heads")
        one_of(self.loader, ("dali", "torch"), "loader")
        for name in ("batch_size", "epochs", "queue", "dim", "bn_groups", "log_every_steps"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, but it must be at least 1.")
        if self.optimiser is not None:
            one_of(self.optimiser, ("sgd", "lars"), "optimiser")
        if self.method == "moco-v2" and self.queue % self.batch_size:
            raise UsageError(
                f"queue is {self.queue}, but it must be a multiple of the batch_size {self.batch_size}: "
                f"take {max(self.queue // self.batch_size, 1) * self.batch_size}."
            )

    @property
    def learning_rate(self) -> float:
        """The rate at this batch size (linear scaling, Goyal et al. 2017)."""
        return self.base_lr * self.batch_size / 256


def resolve(recipe: str | os.PathLike[str] | None, flags: dict[str, Any]) -> Recipe:
    """Return defaults, overridden by a recipe, overridden by flags.

    Args:
        recipe: a YAML file, or the name of one in `ssl/recipes` without its suffix; None for none.
        flags: field names to values.

    Raises:
        UsageError: no such recipe, or a key that is no field; the nearest field is named.
        ObjcropError: the file is no YAML mapping.
    """
    differences = {} if recipe is None else _read(recipe)
    known = {field.name for field in fields(Recipe)}
    for key in (*differences, *flags):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(sorted(known))}."
            raise UsageError(f"'{key}' is not an option of a recipe: {hint}")
    merged = {**differences, **flags}
    if "shift" in merged:
        merged["shift"] = tuple(merged["shift"])
    return replace(Recipe(), **merged)


def _read(recipe: str | os.PathLike[str]) -> dict[str, Any]:
    path = Path(recipe)
    if not path.is_file():
        path = FOLDER / f"{recipe}.yaml"
    if not path.is_file():
        names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise UsageError(f"recipe '{recipe}' is neither a file nor one of: {names}.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ObjcropError(f"{path} is not YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(content, dict):
        raise ObjcropError(f"{path} must hold `option: value` lines.")
    return content


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the resolved recipe as YAML and checkpoints can hold it."""
    return {**asdict(recipe), "shift": list(recipe.shift)}
