"""What the trainer asks of a method: targets without gradient, a loss, and what to do after a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from objcrop.dali_pipes.view_boxes import ViewBoxes
from objcrop.dali_pipes.view_plan import ViewPlan
from objcrop.ssl.networks.heads import RoleHeads
from objcrop.ssl.networks.shuffle_bn import VirtualDevices
from objcrop.ssl.training.recipe import Recipe


class Encoder(nn.Module):
    """Backbone and projection heads; `width` is that of the backbone's features."""

    def __init__(self, backbone: nn.Module, heads: RoleHeads, width: int) -> None:
        super().__init__()
        self.backbone, self.heads, self.width = backbone, heads, width

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


class Data(NamedTuple):
    """What a method is built for.

    Attributes:
        roles: of the views.
        heads_shared: the policy's word on whether its roles share a head.
        sizes: side of each view, pixels.
        classes: of the catalog.
        samples: in an epoch; `Batch.plan.sample` counts them.
    """

    roles: tuple[str, ...]
    heads_shared: bool = False
    sizes: tuple[int, ...] = ()
    classes: int = 0
    samples: int = 0


class Batch(NamedTuple):
    """This rank's N rows of a step, dealt to virtual devices, or a part of them; tensors lie on the run's device.

    Attributes:
        views: V tensors (N, 3, S, S).
        labels: float32 (N, C).
        row: int64 (N,), the catalog row shown.
        plan: the decisions behind the views, `plan.sample` among them; NumPy arrays on the host. None in a part.
        boxes: each view's boxes where the method asks for them (`needs_boxes`); in the whole only.
    """

    views: tuple[torch.Tensor, ...]
    labels: torch.Tensor
    row: torch.Tensor
    plan: ViewPlan | None = None
    boxes: tuple[ViewBoxes, ...] = ()

    def part(self, rows: slice) -> Batch:
        """Return some of the rows."""
        if rows == slice(0, len(self.labels)):
            return self
        return Batch(tuple(view[rows] for view in self.views), self.labels[rows], self.row[rows])


class Method(nn.Module, ABC):
    """A pretraining method. Rows arrive dealt to virtual devices, and whole devices at a time.

    A step is: `targets` of all rows, `forward` on one or more parts of them with a backward pass each, `before_step`,
    the optimiser, `after_step`. Buffers, of whatever size, are kept in checkpoints.

    Attributes:
        options: the class of its recipe.
        takes: numbers of views that it can be trained on.
        multi_crop: whether the first two of them must be large and all others local.
        needs_boxes: whether `Batch.boxes` are made for it.
        exact_views: whether views come in float32 whatever a step computes in, for losses that pixels are targets of.
        encoder: what is trained and probed.
        devices: how rows lie.

    Args:
        recipe: its options.
        data: what it is built for.
    """

    options: ClassVar[type[Recipe]] = Recipe
    takes: ClassVar[range] = range(2, 3)
    multi_crop: ClassVar[bool] = False
    needs_boxes: ClassVar[bool] = False
    exact_views: ClassVar[bool] = False
    encoder: Encoder
    devices: VirtualDevices

    def __init__(self, recipe: Any, data: Data) -> None:
        super().__init__()
        self.recipe, self.data = recipe, data

    @abstractmethod
    def targets(self, batch: Batch, step: int) -> tuple[torch.Tensor, ...]:
        """Return what the views of this rank are trained towards, rows as those of the views, without gradient."""

    @abstractmethod
    def forward(self, batch: Batch, targets: Sequence[torch.Tensor], step: int) -> Output:
        """Return the mean loss over these rows."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what is trained, as torch's optimisers take it; a group's `lr_scale` is a factor on the rate."""
        return [{"params": [p for p in self.parameters() if p.requires_grad]}]

    def parts_to_compile(self) -> list[nn.Module]:
        """Return what `--compile` lets torch.compile work on: the backbones of its encoders."""
        return [part.backbone for part in self.children() if isinstance(part, Encoder)]

    def before_step(self, step: int) -> None:
        """Look at the gradients, on all ranks the same, before the optimiser does; one set to None stays as it is."""

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
