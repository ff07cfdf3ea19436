"""The supervised baseline: the same views and trainer, trained on the catalog's labels (OAC 2.1 and Table 1).

Every view is an example with its image's labels. Where each image has one class the loss is cross-entropy, else the
mean over the classes of logistic regression.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from objcrop.errors import UsageError
from objcrop.ssl.methods.method import Batch, Data, Encoder, Method, Output
from objcrop.ssl.methods.supervised_recipe import SupervisedRecipe
from objcrop.ssl.methods.unit_rows import unit_rows
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import RoleHeads
from objcrop.ssl.networks.shuffle_bn import VirtualDevices
from objcrop.ssl.training.recipe import Recipe


def label_loss(logits: torch.Tensor, labels: torch.Tensor, single: bool) -> torch.Tensor:
    """Return cross-entropy (single-label) or logistic regression (multi-label) of (N, C) against {0, 1} (N, C)."""
    if single:
        return cross_entropy(logits.float(), labels.argmax(1))
    return binary_cross_entropy_with_logits(logits.float(), labels)


class Supervised(Method):
    """Encoder and one linear classifier, whatever the roles.

    Args:
        recipe: arch, size, batch_size, bn_groups, single_label.
        data: classes of the catalog.
    """

    options = SupervisedRecipe
    takes = range(1, 17)

    def __init__(self, recipe: Recipe, data: Data) -> None:
        super().__init__(recipe, data)
        if not data.classes:
            raise UsageError("method is 'supervised', but the catalog has no labels; index it with its annotations.")
        network, width = backbone(recipe.arch, recipe.size, recipe.init)
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        heads = RoleHeads(("label",), False, lambda: torch.nn.Linear(width, data.classes))
        self.encoder = Encoder(network, heads, width)
        self.devices.normalise(self.encoder)

    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return the labels."""
        return (batch.labels,)

    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the mean loss over the views."""
        passes = [self.encoder(view, "label") for view in batch.views]
        losses = [label_loss(logits, targets[0], self.recipe.single_label) for _, logits in passes]
        features = passes[0][0].detach()
        with torch.no_grad():
            spread = unit_rows(features).std(0).mean()
        return Output(torch.stack(losses).mean(), features, {"embedding_std": spread})
