"""The linear probe: how much a linear classifier gets out of frozen features.

Multi-label: one logistic regression a class on standardised features of the centre crop, L2, fitted to its optimum by
full-batch L-BFGS (no learning rate, no epochs, no luck), measured as mean average precision over the classes that the
test images have. A box marked difficult counts as its class.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import binary_cross_entropy_with_logits

from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.backbones import backbone, backbone_weights
from objcrop.ssl.checkpoint import load_checkpoint


def frozen_backbone(checkpoint: str | os.PathLike[str], size: int | None = None) -> tuple[nn.Module, int]:
    """Return an encoder without heads, and the side of its views.

    Args:
        checkpoint: a last.pt, or "untrained:ARCH" for random weights (seed 0): the floor of any probe.
        size: side of the views, pixels; None is the run's (224 for an untrained one).
    """
    name = str(checkpoint)
    if name.startswith("untrained:"):
        torch.manual_seed(0)
        return backbone(name.split(":", 1)[1], size or 224)[0], size or 224
    saved = load_checkpoint(checkpoint)
    trained = int(saved["recipe"]["size"])
    network, _ = backbone(saved["recipe"]["arch"], trained)
    network.load_state_dict(backbone_weights(saved))
    return network, size or trained


@torch.no_grad()
def features(
    network: nn.Module, catalog: Catalog, size: int, *, backend: str = "dali", device: str = "cpu", batch_size: int = 64
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features float32 (N, width) and labels float32 (N, C) of every image's centre crop, on the CPU.

    Unreadable images are left out.
    """
    network = network.eval().to(device)
    found, labels = [], []
    loader = load_views(
        catalog,
        crops="centre",
        augment="none",
        size=size,
        batch_size=min(batch_size, len(catalog)),
        backend=backend,
        device=device,
        shuffle=False,
        drop_last=False,
    )
    with loader:
        for batch in loader:
            good = ~batch.substituted.cpu()
            found.append(network(batch.views[0]).float().cpu()[good])
            labels.append(batch.labels.cpu()[good])
    return torch.cat(found), torch.cat(labels)


def fit_linear(
    x: torch.Tensor, y: torch.Tensor, weight_decay: float = 1e-3, iterations: int = 200
) -> tuple[torch.Tensor, torch.Tensor]:
    """Fit one logistic regression a class; x (N, D) standardised, y (N, C) in {0, 1}; return (D, C) and (C,)."""
    weight = torch.zeros(x.shape[1], y.shape[1], requires_grad=True)
    bias = torch.zeros(y.shape[1], requires_grad=True)
    solver = torch.optim.LBFGS([weight, bias], max_iter=iterations, history_size=20, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        solver.zero_grad()
        value = binary_cross_entropy_with_logits(x @ weight + bias, y, reduction="none").mean(0).sum()
        value = value + 0.5 * weight_decay * weight.square().sum()
        value.backward()
        return value

    solver.step(loss)
    return weight.detach(), bias.detach()


def mean_average_precision(scores: torch.Tensor, labels: torch.Tensor) -> tuple[float, list[float]]:
    """Return mAP over the classes that occur, and the average precision of each class (NaN where none occurs).

    Args:
        scores: float (N, C).
        labels: {0, 1} (N, C).
    """
    from torchmetrics.functional.classification import multilabel_average_precision

    per_class = multilabel_average_precision(scores, labels.int(), num_labels=labels.shape[1], average="none")
    present = labels.any(0)
    per_class = torch.where(present, per_class, torch.nan)
    return float(per_class[present].mean()), per_class.tolist()


def linear_probe(
    checkpoint: str | os.PathLike[str],
    train: Catalog,
    test: Catalog,
    *,
    size: int | None = None,
    backend: str = "dali",
    device: str = "cpu",
) -> dict[str, Any]:
    """Measure a backbone by its linear multi-label mAP.

    Args:
        checkpoint: see `frozen_backbone`.
        train: labelled images that the classifier learns from.
        test: labelled images that it is measured on, with the same classes.
        size: side of the views, pixels.
        backend: see `load_views`.
        device: see `load_views`.

    Raises:
        UsageError: the catalogs have different classes.
        ObjcropError: no labels, or an unusable checkpoint.
    """
    if train.classes != test.classes:
        raise UsageError("the two catalogs have different classes; index both from annotations of one set.")
    if not train.classes:
        raise ObjcropError(f"the catalog of {train.root} has no labels to learn; index it with its annotations.")
    network, size = frozen_backbone(checkpoint, size)
    x, y = features(network, train, size, backend=backend, device=device)
    x_test, y_test = features(network, test, size, backend=backend, device=device)
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias = fit_linear((x - mean) / std, y)
    score = (x_test - mean) / std @ weight + bias
    value, per_class = mean_average_precision(score, y_test)
    return {
        "checkpoint": str(checkpoint),
        "linear_map": round(value, 5),
        "chance_map": round(float(y_test.mean(0)[y_test.any(0)].mean()), 5),
        "per_class": {
            name: None if np.isnan(ap) else round(ap, 5) for name, ap in zip(test.classes, per_class, strict=True)
        },
        "train_images": len(x),
        "test_images": len(x_test),
        "size": size,
    }
