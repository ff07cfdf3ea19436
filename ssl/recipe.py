"""Everything a pretraining run is told, and where it is told: defaults, then a recipe file, then flags.

A recipe (`ssl/recipes/*.yaml`, or a user's file) holds differences only; the run folder keeps the resolved whole.
"""

from __future__ import annotations

import difflib
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import yaml

from objcrop.errors import ObjcropError, UsageError, one_of

FOLDER = Path(__file__).resolve().parent / "recipes"


# What a method's own paper trains it with, where that is not the dataclass's default.
OWN: dict[str, dict[str, Any]] = {
    "moco-v2": {},
    "byol": {
        "augment": "byol",
        "optimiser": "lars",
        "base_lr": 0.2,
        "weight_decay": 1.5e-6,
        "warmup_epochs": 10.0,
        "dim": 256,
        "ema": 0.996,
    },
    "supervised": {"optimiser": "adam", "base_lr": 1e-3, "weight_decay": 0.0},
}


@dataclass(frozen=True)
class Recipe:
    """All options of `objcrop pretrain`; the defaults are those of MoCo-v2, `OWN` holds those of the other methods.

    Attributes:
        method: "moco-v2", "byol" or "supervised" (on the catalog's labels).
        arch: any ResNet of torchvision by name, or "timm/NAME".
        init: weights that the backbone begins with: a checkpoint of objcrop or a state dict of torchvision; None for
            random ones.
        size: side of the views, pixels; 96 and less get a stem for small images.
        batch_size: global, over all processes.
        epochs: passes over the samples.
        steps: stop after so many; None for all epochs. The schedule ends there too.
        seed: of weights, views and everything else.
        crops: crop policy.
        augment: augmentation recipe.
        loader: "dali" or "torch".
        device: "cuda" or "cpu".
        optimiser: "sgd", "lars" or "adam".
        base_lr: learning rate at batch 256; the rate is base_lr × batch_size / 256.
        weight_decay: L2.
        warmup_epochs: linear rise of the rate; at most a tenth of the run.
        momentum: of the optimiser.
        temperature: of InfoNCE (moco-v2).
        queue: number of keys, a multiple of batch_size (moco-v2).
        dim: of the embeddings.
        hidden: width of the projection's and the prediction's hidden layer; None is the feature width (moco-v2), 4096
            (byol).
        ema: momentum of the momentum encoder; BYOL raises it to 1 by a cosine.
        bn_groups: virtual devices that BatchNorm is split over, whatever the number of processes, 1 for SyncBN; None
            is 8 for moco-v2 (fewer where that leaves a device less than 4 rows), 1 otherwise.
        heads: "per-role" (OAC 3) or "shared"; policies whose views play one role always share.
        single_label: each image has one class: cross-entropy and top-1 instead of logistic regression and mAP
            (supervised, online probe).
        accumulate: parts that a step is taken in, to save memory; the numbers stay the same.
        precision: "bf16" (autocast) or "fp32"; None is bf16 on a GPU and fp32 on a CPU.
        compile: let torch.compile work on the encoder.
        online_probe: train a linear classifier on the labels alongside, without touching the encoder.
        tensorboard: write TensorBoard's files into the run folder.
        wandb: project of Weights & Biases to report to; None for none.
        checkpoint_every_steps: beside each epoch's end; None for epochs only.
        log_every_steps: a line in metrics.jsonl.
        workers: processes of the torch loader; None is the number of cores.
        threads: threads of the dali loader; None is the number of cores.
        prefetch: see `load_views`, as the next three.
        decode: "union" or "whole".
        hw_decoder_load: share of the JPEGs that the GPU's own decoder takes.
        decoder_padding: MiB of GPU memory that each thread sets aside to decode in.
        cache: "device" or "host": where decoded images are kept, so that later epochs decode nothing; None for nowhere.
        cache_side: see `load_views`.
        max_bad: share of unreadable images to step over.
        rescore_every: epochs between two scorings of `--boxes online:anchors`.
        min_side: see `load_views`, as the rest.
        dilate: see `load_views`.
        dilate_by: see `load_views`.
        shift: see `load_views`.
        scale_min: see `load_views`.
        max_boxes: see `load_views`.
    """

    method: str = "moco-v2"
    arch: str = "resnet50"
    init: str | None = None
    size: int = 224
    batch_size: int = 256
    epochs: int = 200
    steps: int | None = None
    seed: int = 0
    crops: str = "scene-scene"
    augment: str = "moco-v2"
    loader: str = "dali"
    device: str = "cpu"
    optimiser: str = "sgd"
    base_lr: float = 0.03
    weight_decay: float = 1e-4
    warmup_epochs: float = 0.0
    momentum: float = 0.9
    temperature: float = 0.2
    queue: int = 65536
    dim: int = 128
    hidden: int | None = None
    ema: float = 0.999
    bn_groups: int | None = None
    heads: str = "per-role"
    single_label: bool = False
    accumulate: int = 1
    precision: str | None = None
    compile: bool = False
    online_probe: bool = False
    tensorboard: bool = False
    wandb: str | None = None
    checkpoint_every_steps: int | None = None
    log_every_steps: int = 10
    workers: int | None = None
    threads: int | None = None
    prefetch: int = 2
    decode: str = "union"
    hw_decoder_load: float = 0.65
    decoder_padding: int = 16
    cache: str | None = None
    cache_side: int | None = None
    max_bad: float = 0.01
    rescore_every: int = 10
    min_side: int | str = "auto"
    dilate: float = 0.1
    dilate_by: str = "image"
    shift: tuple[float, float] = (80.0, 100.0)
    scale_min: float | str = "auto"
    max_boxes: int = 10

    def __post_init__(self) -> None:
        one_of(self.method, OWN, "method")
        one_of(self.heads, ("per-role", "shared"), "heads")
        one_of(self.loader, ("dali", "torch"), "loader")
        one_of(self.optimiser, ("sgd", "lars", "adam"), "optimiser")
        if self.precision is not None:
            one_of(self.precision, ("fp32", "bf16"), "precision")
        at_least_one = (
            "batch_size",
            "epochs",
            "steps",
            "queue",
            "dim",
            "hidden",
            "bn_groups",
            "accumulate",
            "rescore_every",
        )
        for name in (*at_least_one, "log_every_steps", "checkpoint_every_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}, but it must be at least 1.")
        if self.method == "moco-v2" and self.queue % self.batch_size:
            raise UsageError(
                f"queue is {self.queue}, but it must be a multiple of the batch_size {self.batch_size}: "
                f"take {max(self.queue // self.batch_size, 1) * self.batch_size}."
            )

    @property
    def virtual_devices(self) -> int:
        """How many parts BatchNorm sees of a global batch."""
        return self.bn_groups or (default_bn_groups(self.batch_size) if self.method == "moco-v2" else 1)

    @property
    def learning_rate(self) -> float:
        """The rate at this batch size (linear scaling, Goyal et al. 2017)."""
        return self.base_lr * self.batch_size / 256


def default_bn_groups(batch_size: int, most: int = 8) -> int:
    """Return the largest power of two up to `most` that leaves every virtual device at least 4 rows."""
    groups = most
    while groups > 1 and (batch_size % groups or batch_size // groups < 4):
        groups //= 2
    return groups


def resolve(recipe: str | os.PathLike[str] | None, flags: dict[str, Any]) -> Recipe:
    """Return defaults, overridden by the method's own, by a recipe, by flags.

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
    method = one_of({**differences, **flags}.get("method", "moco-v2"), OWN, "method")
    merged = {**OWN[method], **differences, **flags}
    return replace(Recipe(), **{name: _typed(name, value) for name, value in merged.items()})


def _typed(name: str, value: Any) -> Any:
    """Return the value as the field's type; YAML reads 1e-2 as text, and people write 1 for 1.0."""
    hint = get_type_hints(Recipe)[name]
    kinds = get_args(hint) or (hint,)
    if hint == tuple[float, float]:
        if isinstance(value, (list, tuple)) and len(value) == 2:
            return tuple(_typed("dilate", part) for part in value)
        raise UsageError(f"{name} is {value!r}, but it must be two numbers.")
    if value is None and type(None) in kinds:
        return None
    for kind in kinds:
        if kind is bool and isinstance(value, bool):
            return value
        if kind is int and not isinstance(value, bool) and _is(int, value):
            return int(value)
        if kind is float and not isinstance(value, bool) and _is(float, value):
            return float(value)
        if (
            kind is str
            and isinstance(value, str)
            and ((str in kinds and not {int, float} & set(kinds)) or value == "auto")
        ):
            return value
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "a word", type(None): "null"}
    if {int, float} & set(kinds):
        words[str] = "'auto'"
    raise UsageError(f"{name} is {value!r}, but it must be {' or '.join(words[kind] for kind in kinds)}.")


def _is(kind: type, value: Any) -> bool:
    try:
        return kind(value) == float(value)
    except (TypeError, ValueError):
        return False


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
