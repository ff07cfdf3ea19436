"""Fine-tuning: every weight trained on the labels, from a checkpoint on (CIB's mAP beside its linear mAP^l).

It is `pretrain --method supervised --init CHECKPOINT` on random-resized crops of the whole image and their mirror
images, then the network's own classifier is scored on centre crops.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from objcrop.catalog import Catalog
from objcrop.ssl.evaluation.frozen_features import features
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.training.checkpoint import BACKBONE, load_checkpoint
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.trainer import pretrain

# The schedule that transfer of ResNets commonly uses (SGD with momentum, cosine); the papers leave theirs open. One
# crop of 8 to 100 % of the image and its mirror image, the supervised method's own.
RECIPE: dict[str, Any] = {
    "method": "supervised",
    "optimiser": "sgd",
    "base_lr": 0.04,
    "weight_decay": 1e-4,
}


def fine_tuned_scores(
    checkpoint: str | os.PathLike[str],
    train: Catalog,
    test: Catalog,
    output: str | os.PathLike[str],
    *,
    epochs: int = 20,
    single: bool = False,
    backend: str = "dali",
    device: str = "auto",
    **flags: Any,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Fine-tune and score.

    Args:
        checkpoint: a last.pt, or "untrained:ARCH" to train from random weights.
        train: labelled images to learn from.
        test: labelled images to score.
        output: run folder of the fine-tuning.
        epochs: over `train`.
        single: each image has one class.
        backend: see `load_views`.
        device: see `load_views`.
        **flags: further options of a recipe (size, batch_size, base_lr, …).

    Returns:
        Logits (M, C), labels (M, C) and catalog rows (M,) of `test`.
    """
    name = str(checkpoint)
    if name.startswith("untrained:"):
        origin: dict[str, Any] = {"arch": name.split(":", 1)[1]}
    else:
        trained = load_checkpoint(checkpoint, BACKBONE)["recipe"]
        origin = {"init": name, "arch": trained["arch"], "size": trained["size"]}
    options = {**RECIPE, "epochs": epochs, "single_label": single, "backend": backend, "device": device}
    recipe = resolve(None, {**options, **origin, **flags})
    saved = load_checkpoint(pretrain(recipe, train, None, output))
    network, width = backbone(recipe.arch, recipe.size)
    classifier = nn.Linear(width, len(train.classes))
    _take(saved["method"], "encoder.backbone.", network)
    _take(saved["method"], "encoder.heads.heads.label.", classifier)
    x, y, rows = features(network, test, recipe.size, backend=backend, device=device)
    with torch.no_grad():
        return classifier(x), y, rows


def _take(weights: dict[str, torch.Tensor], prefix: str, module: nn.Module) -> None:
    module.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
