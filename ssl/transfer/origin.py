"""Where a transferred network comes from: a checkpoint, a state dict, or nowhere."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
from torch import nn

from objcrop.errors import UsageError
from objcrop.ssl.evaluation.frozen_features import frozen_backbone
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.training.checkpoint import load_checkpoint


class Origin(NamedTuple):
    """A backbone without a classifier, its name, and the side of the views that it was made for, pixels."""

    network: nn.Module
    arch: str
    size: int


def origin_of(checkpoint: str | os.PathLike[str], arch: str | None = None, size: int | None = None) -> Origin:
    """Return the backbone that a task begins with.

    Args:
        checkpoint: a last.pt; a state dict of torchvision (or of timm), whose classifier is left; or "untrained:ARCH"
            for random weights (seed 0), the floor of any task.
        arch: of a state dict, resnet50 where nothing is said; the others name their own.
        size: side of the views, pixels, where it is not the run's: at 96 and below an untrained network has the stem
            for small views (`backbone`).

    Raises:
        UsageError: `arch` beside a checkpoint that names its own, or a network that cannot take views of this size.
        ObjcropError: weights that cannot be read or are of another network.
    """
    name = str(checkpoint)
    untrained = name.startswith("untrained:")
    if not untrained and not _is_ours(name):
        arch = arch or "resnet50"
        return Origin(backbone(arch, size or 224, name)[0], arch, size or 224)
    if arch is not None:
        raise UsageError(f"arch ({arch}) cannot act here: {name} names its own network; leave it out.")
    network, side = frozen_backbone(checkpoint, size)
    return Origin(network, name.split(":", 1)[1] if untrained else load_checkpoint(name)["recipe"]["arch"], side)


def _is_ours(path: str) -> bool:
    """Whether a file is no state dict: a checkpoint of ours, or one whose sentence `load_checkpoint` has."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        return True
    return isinstance(content, dict) and content.get("kind") == "objcrop checkpoint"
