"""What the trainer asks of a method: targets without gradient, a loss, and what to do after a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import nn

from objcrop.ssl.heads import RoleHeads
from objcrop.ssl.recipe import Recipe
from objcrop.ssl.shuffle_bn import VirtualDevices


class Encoder(nn.Module):
    """Backbone and projection heads."""

    def __init__(self, backbone: nn.Module, heads: RoleHeads) -> None:
        super().__init__()
        self.backbone, self.heads = backbone, heads

    def forward(self, views: torch.Tensor, role: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features (N, width) and unnormalised embeddings (N, dim) of views (N, 3, S, S)."""
        features = self.backbone(views)
        return features, self.heads(features, role)


class Output(NamedTuple):
    """What a forward pass gives, all on the device.

    Attributes:
        loss: a scalar with gradient.
        features: (N, width) of one view, without gradient, for the online probe.
        watch: scalars to report.
    """

    loss: torch.Tensor
    features: torch.Tensor
    watch: dict[str, torch.Tensor]


class Method(nn.Module, ABC):
    """A pretraining method. Rows arrive dealt to virtual devices, and whole devices at a time.

    A step is: `targets` of all rows, `forward` on one or more parts of them with a backward pass each, the optimiser,
    `after_step`.

    Attributes:
        options: the class of its recipe.
        takes: numbers of views that it can be trained on.
        encoder: what is trained and probed.
        devices: how rows lie.
    """

    options: ClassVar[type[Recipe]] = Recipe
    takes: ClassVar[range] = range(2, 3)
    encoder: Encoder
    devices: VirtualDevices

    @abstractmethod
    def targets(self, views: Sequence[torch.Tensor], labels: torch.Tensor, step: int) -> tuple[torch.Tensor, ...]:
        """Return what the views of this rank are trained towards, rows as those of the views, without gradient."""

    @abstractmethod
    def forward(self, views: Sequence[torch.Tensor], targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the mean loss over these rows."""

    def after_step(self, progress: float) -> None:
        """Follow the step that the optimiser took; `progress` is the share of the run done, 0 to 1."""


@torch.no_grad()
def similarities(query: torch.Tensor, key: torch.Tensor, others: torch.Tensor) -> dict[str, torch.Tensor]:
    """Measure how well views of one image meet and how well images are told apart.

    Args:
        query: (N, dim), of length 1.
        key: (N, dim), the positive of each query, of length 1.
        others: (K, dim), embeddings of other images, of length 1; K may be 0.

    Returns:
        positive_similarity and negative_similarity: mean inner products (OAC, appendix C: 0.81 and 0.005 at the end of
        MoCo-v2); alignment: mean squared distance of positives, and uniformity: log of the mean Gaussian potential
        exp(-2 d²) over pairs of queries (Wang and Isola 2020); embedding_std: mean over the dimensions of the standard
        deviation over the batch, 1/√dim at best and 0 when all embeddings are one.
    """
    n = len(query)
    positive = (query * key).sum(1).mean()
    pairs = torch.exp(-2 * (2 - 2 * query @ query.T))
    return {
        "positive_similarity": positive,
        "negative_similarity": (query.mean(0) * others.mean(0)).sum() if len(others) else query.new_zeros(()),
        "alignment": 2 - 2 * positive,
        "uniformity": torch.log((pairs.sum() - pairs.diagonal().sum()) / (n * (n - 1))),
        "embedding_std": query.std(0).mean(),
    }
