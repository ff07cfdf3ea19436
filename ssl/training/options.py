"""The options of training that every method has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from objcrop.option import Options, option
from objcrop.option_value import flag, number, pair, text, whole, word

COUNT = whole(1, 2**31 - 1)
RATE = number(0, 1000)
SGD_LIKE = ("sgd", "lars", "larc")


def _until(at: Training) -> str | None:
    return None if at.steps is None else f"the run stops after {at.steps} steps"


def _has_momentum(at: Training) -> str | None:
    return None if at.optimiser in SGD_LIKE else f"optimiser '{at.optimiser}' has moments of its own"


def _has_betas(at: Training) -> str | None:
    return None if at.optimiser not in SGD_LIKE else f"optimiser '{at.optimiser}' has momentum instead"


def _rises(at: Training) -> str | None:
    return None if at.warmup_epochs else "there are no warmup_epochs"


def _in_parts(at: Training) -> str | None:
    return None if at.in_parts else "the method takes a step as a whole"


def _learns_labels(at: Training) -> str | None:
    learns = at.learns_labels or at.online_probe
    return None if learns else "no labels are learnt (by method 'supervised' or online_probe)"


def _has_batch_norm(at: Training) -> str | None:
    return None if at.has_batch_norm else "the method's networks have no BatchNorm"


@dataclass(frozen=True)
class Watched(Options):
    """What is computed in, and what is written while steps are taken: the options of every `Loop`."""

    group: ClassVar[str] = "training"

    precision: str | None = option(
        None,
        word("bf16", "fp32"),
        "bf16 (autocast) or fp32; default: bf16 on a GPU that has it (Ampere and later), else fp32",
    )
    tensorboard: bool = option(False, flag, "write TensorBoard's files into the run folder")
    wandb: str | None = option(None, text(), "project of Weights & Biases to report to; default: none")
    checkpoint_every_steps: int | None = option(None, COUNT, "beside the ends of epochs (of short ones, of every few)")
    log_every_steps: int = option(10, COUNT, "steps between two lines in metrics.jsonl")


@dataclass(frozen=True)
class Training(Watched):
    """How a network is trained, whatever the method; the defaults are MoCo-v2's."""

    group: ClassVar[str] = "training"
    learns_labels: ClassVar[bool] = False  # whether the method itself does
    has_batch_norm: ClassVar[bool] = True  # whether its networks may have some
    in_parts: ClassVar[bool] = True  # whether the method can take a step in parts

    arch: str = option(
        "resnet50",
        text(),
        "any ResNet of torchvision by name, narrow/NAME for a quarter of its channels, timm/NAME, or lab/NAME: two, of "
        "lightness and colour",
    )
    init: str | None = option(
        None,
        text(),
        "weights that the backbone begins with: a checkpoint of objcrop, a state dict of torchvision; default: random",
    )
    epochs: int = option(200, whole(1, 10**6), "passes over the samples", idle=_until)
    steps: int | None = option(
        None, COUNT, "stop after so many, whatever epochs says; the schedule ends there too; default: all epochs"
    )
    optimiser: str = option("sgd", word(*SGD_LIKE, "adam", "adamw"), "sgd, lars, larc, adam or adamw")
    base_lr: float = option(
        0.03,
        RATE,
        "learning rate at batch 256: the rate is base_lr × batch_size / 256, as facebookresearch/moco scales it, for "
        "every optimiser (for adam that is a choice of ours)",
    )
    weight_decay: float = option(1e-4, RATE, "L2")
    warmup_epochs: float = option(0.0, number(0, 10**6), "linear rise of the rate; at most a tenth of the run")
    momentum: float = option(0.9, number(0, 1, below=True), "of sgd, lars and larc", idle=_has_momentum)
    betas: tuple[float, float] = option(
        (0.9, 0.999), pair(number(0, 1, below=True)), "decays of adam's and adamw's two moments", idle=_has_betas
    )
    warmup_lr: float = option(0.0, RATE, "rate that the rise begins above, at batch 256 like base_lr", idle=_rises)
    final_lr: float = option(0.0, RATE, "rate that the cosine ends at, at batch 256 like base_lr")
    bn_groups: int | None = option(
        None,
        whole(1, 2**24),
        "virtual devices that BatchNorm is split over, whatever the number of processes, 1 for SyncBN; default: 8 for "
        "moco-v2 (fewer where that leaves a device less than 4 rows), 1 otherwise",
        idle=_has_batch_norm,
    )
    single_label: bool = option(
        False,
        flag,
        "each image has one class: cross-entropy and top-1 instead of logistic regression and mAP (supervised, online "
        "probe)",
        idle=_learns_labels,
    )
    accumulate: int = option(
        1,
        whole(1, 2**24),
        "parts that a step is taken in, to save memory; the numbers stay the same",
        idle=_in_parts,
    )
    compile: bool = option(
        False,
        flag,
        "let torch.compile work on encoder and momentum encoder, on a GPU as CUDA graphs; the first steps take minutes",
    )
    online_probe: bool = option(
        False, flag, "train a linear classifier on the labels alongside, without touching the encoder"
    )
    rescore_every: int | None = option(
        None, whole(1, 10**6), "epochs between two scorings of `--boxes online:anchors`; default: 10"
    )
