"""Classification: every weight fine-tuned on the labels, or a linear classifier on a frozen backbone (`freeze`).

Training sees a random crop of each image (`scale` of its area) and its mirror image, testing the centre crop. Where
each image has one class the loss is cross-entropy and the figures are top-1 and the mean over classes of each one's
(OAC Table 10, CIB Table 7), else logistic regression of each class and mean average precision (CIB's mAP).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.loading import Loading
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.views import Views
from objcrop.errors import ObjcropError, UsageError
from objcrop.option import options_of
from objcrop.ranks import gather_on_first
from objcrop.ssl.evaluation.average_precision import (
    average_precision,
    average_precision_11_point,
    judged_labels,
)
from objcrop.ssl.evaluation.frozen_features import features, joined
from objcrop.ssl.evaluation.probe import refuse_several
from objcrop.ssl.methods.supervised import label_loss
from objcrop.ssl.networks.backbones import width_at
from objcrop.ssl.transfer.classification_options import ClassificationOptions
from objcrop.ssl.transfer.confusion import confusion_of
from objcrop.ssl.transfer.options import Transfer
from objcrop.ssl.transfer.origin import Origin
from objcrop.ssl.transfer.pictures import draw_bars, draw_confusion
from objcrop.ssl.transfer.task import Task


class Classification(Task):
    """A backbone and one linear classifier; see `Task`."""

    options = ClassificationOptions
    how: ClassificationOptions

    def __init__(self, how: Transfer, origin: Origin, train: Catalog, test: Catalog) -> None:
        super().__init__(how, origin, train, test)
        count = train.label_matrix(np.arange(len(train))).sum(1)
        if not count.any():
            raise ObjcropError(f"the catalog of {train.root} has no labels to learn; index it with its annotations.")
        self.single = bool((count == 1).all()) if self.how.single_label is None else self.how.single_label
        if self.single:
            refuse_several(train)
            refuse_several(test)
            if len(train.classes) == 1:
                raise UsageError(f"the catalog of {train.root} has one class only: there is nothing to tell apart.")
        self.backbone = origin.network.requires_grad_(not self.how.freeze)
        self.classifier = nn.Linear(width_at(self.backbone, origin.size, origin.arch), len(train.classes))
        if self.how.freeze:  # begins level, as the released code of MoCo has it
            nn.init.normal_(self.classifier.weight, std=0.01)
            nn.init.zeros_(self.classifier.bias)

    def train(self, mode: bool = True) -> Classification:
        """Set the mode; a frozen backbone stays in that of evaluation."""
        super().train(mode)
        self.backbone.train(mode and not self.how.freeze)
        return self

    def loader(self, device: torch.device, dtype: str, bad_images: Path) -> ViewLoader:
        """Return crops and their mirror images; see `Task`."""
        asked = {name: getattr(self.how, name) for name in options_of(Loading) if self.how.acts(name)}
        crops = {"crops": "scene", "augment": "flip", "size": self.origin.size, "scale": self.how.scale}
        return load_views(
            self.train_images, bad_images=bad_images, **crops, **{**asked, "device": str(device), "dtype": dtype}
        )

    def forward(self, batch: Views) -> dict[str, torch.Tensor]:
        """Return the loss of a batch; see `Task`."""
        return {"label": label_loss(self.classifier(self.backbone(batch.views[0])), batch.labels, self.single)}

    def evaluate(self, folder: Path) -> dict[str, Any] | None:
        """Return top-1 and the mean over classes, or mAP, with each class's; see `Task`."""
        network = nn.Sequential(self.backbone, self.classifier)
        where: dict[str, Any] = {"backend": self.how.backend, "device": str(self.device), "max_bad": self.how.max_bad}
        parts = gather_on_first(features(network, self.test_images, self.origin.size, shared=True, **where))
        if parts is None:
            return None
        scores, labels, rows = joined(parts)
        classes = self.test_images.classes
        if self.single:
            confusion = confusion_of(labels.argmax(1), scores.argmax(1), len(classes))
            draw_confusion(confusion, classes, folder / "confusion.png")
            right, images = confusion.diagonal(), confusion.sum(1)
            shares = [float(r / n) if n else float("nan") for r, n in zip(right.tolist(), images.tolist())]
            figures = {"top1": float(right.sum() / confusion.sum()), "mean_per_class": float(np.nanmean(shares))}
            return figures | _per_class(classes, shares) | {"tested": len(rows)}
        mean, of_each = average_precision(scores, labels)
        mean_11, _ = average_precision_11_point(scores, torch.from_numpy(judged_labels(self.test_images, rows.numpy())))
        draw_bars(of_each, classes, "average precision", folder / "average_precision.png")
        return {"map": mean, "map_11_point": mean_11} | _per_class(classes, of_each) | {"tested": len(rows)}


def _per_class(classes: list[str], figures: list[float]) -> dict[str, Any]:
    return {"per_class": {name: None if np.isnan(f) else f for name, f in zip(classes, figures, strict=True)}}
