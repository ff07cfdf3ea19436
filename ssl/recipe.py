"""Everything a pretraining run is told, and where it is told: defaults, then a recipe file, then flags.

A recipe (`ssl/recipes/*.yaml`, or a user's file) holds differences only; the run folder keeps the resolved whole.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from objcrop.dali_pipes.crop_policy import CropPolicy, crop_policy
from objcrop.dali_pipes.view_options import VIEW_OPTIONS, Option, Setting, read_options, refuse_idle
from objcrop.errors import ObjcropError, UsageError, shown
from objcrop.option_value import flag, number, text, whole, word
from objcrop.plain_yaml import read_yaml

FOLDER = Path(__file__).resolve().parent / "recipes"


# What a method's own paper trains it with, where that is not the dataclass's default.
OWN: dict[str, dict[str, Any]] = {
    "moco-v2": {},
    "byol": {
        "augment": "byol",
        "scale": (0.08, 1.0),
        "optimiser": "lars",
        "base_lr": 0.2,
        "weight_decay": 1.5e-6,
        "warmup_epochs": 10.0,
        "dim": 256,
        "ema": 0.996,
    },
    # One crop an image and its mirror image, as networks are trained on labels (He et al. 2016, torchvision).
    "supervised": {
        "crops": "scene",
        "augment": "flip",
        "scale": (0.08, 1.0),
        "optimiser": "adam",
        "base_lr": 1e-3,
        "weight_decay": 0.0,
    },
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
        steps: stop after so many, whatever `epochs` says; None for all epochs. The schedule ends there too.
        seed: of weights, views and everything else.
        crops: crop policy.
        random_crop: see `load_views`; None is the policy's own.
        augment: augmentation recipe.
        loader: "dali" or "torch".
        device: "cuda" or "cpu".
        optimiser: "sgd", "lars" or "adam".
        base_lr: learning rate at batch 256; the rate is base_lr × batch_size / 256, as facebookresearch/moco scales it,
            for every optimiser (for adam that is a choice of ours).
        weight_decay: L2.
        warmup_epochs: linear rise of the rate; at most a tenth of the run.
        momentum: of the optimiser (sgd, lars).
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
        precision: "bf16" (autocast) or "fp32"; None is bf16 on a GPU that computes it (Ampere and later), else fp32.
        compile: let torch.compile work on the encoder and the momentum encoder.
        online_probe: train a linear classifier on the labels alongside, without touching the encoder.
        tensorboard: write TensorBoard's files into the run folder.
        wandb: project of Weights & Biases to report to; None for none.
        checkpoint_every_steps: beside each epoch's end; None for epochs only.
        log_every_steps: a line in metrics.jsonl.
        workers: processes of the torch loader; None is this process's share of the cores.
        threads: threads of the dali loader; None is the same share, on a GPU at most 24.
        prefetch: see `load_views`, as the next three.
        decode: "union" or "whole"; None is whole on a GPU and union on a CPU.
        hw_decoder_load: share of the JPEGs that the GPU's own decoder takes.
        decoder_padding: MiB of GPU memory that each thread sets aside to decode in.
        cache: "device" or "host": where decoded images are kept, so that later epochs decode nothing; None for nowhere.
        cache_side: see `load_views`.
        max_bad: share of unreadable images to step over.
        rescore_every: epochs between two scorings of `--boxes online:anchors`; None is 10 there.
        colour: see `load_views`, as the rest.
        scale: see `load_views`.
        min_side: see `load_views`.
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
    random_crop: bool | None = None
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
    decode: str | None = None
    hw_decoder_load: float = 0.0
    decoder_padding: int = 16
    cache: str | None = None
    cache_side: int | None = None
    max_bad: float = 0.01
    rescore_every: int | None = None
    colour: str = "float"
    scale: tuple[float, float] = (0.2, 1.0)
    min_side: int | str = "auto"
    dilate: float = 0.1
    dilate_by: str = "image"
    shift: tuple[float, float] = (80.0, 100.0)
    scale_min: float | str = "auto"
    max_boxes: int = 10

    def __post_init__(self) -> None:
        for name, value in read_options({name: getattr(self, name) for name in OPTIONS}, OPTIONS).items():
            object.__setattr__(self, name, value)
        if self.method == "moco-v2" and self.queue % self.batch_size:
            raise UsageError(
                f"queue is {self.queue}, but it must be a multiple of the batch_size {self.batch_size}: "
                f"take {max(self.queue // self.batch_size, 1) * self.batch_size}."
            )

    def acts(self, name: str) -> bool:
        """Whether an option changes anything in this recipe."""
        idle = OPTIONS[name].idle
        return idle is None or idle(self) is None

    @property
    def policy(self) -> CropPolicy:
        """The crop policy."""
        return crop_policy(self.crops, self.random_crop)

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


def _only(*methods: str) -> Callable[[Recipe], str | None]:
    def idle(recipe: Recipe) -> str | None:
        return None if recipe.method in methods else f"it is an option of method {' and '.join(methods)}"

    return idle


def _until(recipe: Recipe) -> str | None:
    return None if recipe.steps is None else f"the run stops after {recipe.steps} steps"


def _roles_differ(recipe: Recipe) -> str | None:
    shared = f"the views of crops '{recipe.crops}' share one head"
    return shared if recipe.policy.heads_shared else _only("moco-v2", "byol")(recipe)


def _has_momentum(recipe: Recipe) -> str | None:
    return "optimiser 'adam' has moments of its own" if recipe.optimiser == "adam" else None


def _learns_labels(recipe: Recipe) -> str | None:
    learns = recipe.method == "supervised" or recipe.online_probe
    return None if learns else "no labels are learnt (by method 'supervised' or online_probe)"


def _of_views(option: Option) -> Option:
    """Return an option of `load_views` as one of a recipe."""
    if option.idle is None:
        return option
    idle = option.idle
    return Option(option.kind, lambda r: idle(Setting(r.policy, r.loader, r.device, r.cache, r.workers)))


COUNT = whole(1, 2**31 - 1)
RATE = number(0, 1000)
OPTIONS: dict[str, Option] = {
    "method": Option(word(*OWN)),
    "arch": Option(text()),
    "init": Option(text()),
    "epochs": Option(whole(1, 10**6), _until),
    "steps": Option(COUNT),
    "loader": VIEW_OPTIONS["backend"],
    "optimiser": Option(word("sgd", "lars", "adam")),
    "base_lr": Option(RATE),
    "weight_decay": Option(RATE),
    "warmup_epochs": Option(number(0, 10**6)),
    "momentum": Option(number(0, 1, below=True), _has_momentum),
    "temperature": Option(number(1e-4, 100), _only("moco-v2")),
    "queue": Option(whole(1, 2**24), _only("moco-v2")),
    "dim": Option(whole(1, 65536), _only("moco-v2", "byol")),
    "hidden": Option(whole(1, 65536), _only("moco-v2", "byol")),
    "ema": Option(number(0, 1), _only("moco-v2", "byol")),
    "bn_groups": Option(whole(1, 2**24)),
    "heads": Option(word("per-role", "shared"), _roles_differ),
    "single_label": Option(flag, _learns_labels),
    "accumulate": Option(whole(1, 2**24)),
    "precision": Option(word("bf16", "fp32")),
    "compile": Option(flag),
    "online_probe": Option(flag),
    "tensorboard": Option(flag),
    "wandb": Option(text()),
    "checkpoint_every_steps": Option(COUNT),
    "log_every_steps": Option(COUNT),
    "rescore_every": Option(whole(1, 10**6)),
    **{field.name: _of_views(VIEW_OPTIONS[field.name]) for field in fields(Recipe) if field.name in VIEW_OPTIONS},
}


def resolve(recipe: str | os.PathLike[str] | None, flags: Mapping[str, Any]) -> Recipe:
    """Return defaults, overridden by the method's own, by a recipe, by flags.

    None stands for "not given", and takes back what a recipe says. `steps` as a flag takes the place of a recipe's
    `epochs`.

    Args:
        recipe: a YAML file, or the name of one in `ssl/recipes` without its suffix; None for none. The file that a run
            folder keeps is one too.
        flags: field names to values.

    Raises:
        UsageError: no such recipe; a key that is no field, the nearest is named; a value that is none of its field; an
            option that cannot act.
        ObjcropError: the file is no YAML mapping.
    """
    said = {} if recipe is None else _read(recipe)
    for key in (*said, *flags):
        if key not in OPTIONS:
            near = difflib.get_close_matches(str(key), OPTIONS, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known are: {', '.join(sorted(OPTIONS))}."
            raise UsageError(f"{shown(key)} is not an option of a recipe: {hint}")
    flags = read_options(flags, OPTIONS) | {name: None for name, value in flags.items() if value is None}
    said = {name: value for name, value in read_options(said, OPTIONS).items() if name not in flags}
    if "steps" in flags and "epochs" not in flags:
        said.pop("epochs", None)
    given = said | {name: value for name, value in flags.items() if value is not None}
    made = Recipe(**(OWN[given.get("method", Recipe.method)] | given))
    refuse_idle({name: value for name, value in given.items() if name in flags}, OPTIONS, made)
    refuse_idle(said, OPTIONS, made, " (--set {}=null takes back what a recipe says)")
    return made


def _read(recipe: str | os.PathLike[str]) -> dict[Any, Any]:
    path = Path(recipe)
    try:
        if not path.is_file():
            path = FOLDER / f"{recipe}.yaml"
        if not path.is_file():
            names = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
            raise UsageError(f"recipe {shown(os.fspath(recipe))} is neither a file nor one of: {names}.")
        content = read_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ObjcropError(f"{path} is not YAML ({error}).") from None
    except OSError as error:
        raise ObjcropError(f"recipe {shown(os.fspath(recipe))} cannot be read ({error.strerror}).") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ObjcropError(f"{path} must hold `option: value` lines.")
    content.pop("resolved", None)  # what a run folder's recipe tells of its run
    return content


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the options that act in a recipe, as YAML and checkpoints can hold them."""
    held = {name: value for name, value in asdict(recipe).items() if recipe.acts(name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in held.items()}
