"""What a task says: its options, its batches, the losses of one, and what was learnt.

    class Segmentation(Task):
        options = SegmentationOptions                     # a dataclass, subclass of `Transfer`

        def __init__(self, how, origin, train, test): …   # refuse catalogs that do not fit, make the model
        def loader(self, **where): …                      # a `ViewLoader` of training batches
        def forward(self, batch): …                       # {"loss_name": scalar, …}, their sum is learnt
        def evaluate(self, folder): …                     # {"miou": …}; pictures go into the folder

`objcrop.ssl.transfer.transfer` does the rest: steps, rates, ranks, checkpoints, reports. A new task takes a line in
`objcrop.ssl.transfer.by_name`, and its published settings a file each in `presets/`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from objcrop.catalog import Catalog
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.ssl.transfer.options import Transfer
from objcrop.ssl.transfer.origin import Origin


class Task(nn.Module, ABC):
    """A network on its way to a task. Its weights are what checkpoints keep, its mode is set by the loop.

    Args:
        how: the options.
        origin: the backbone that it begins with.
        train: images to learn from; its classes are the network's.
        test: images to be measured on, with the same list of classes.

    Attributes:
        options: the class of `how`.
        headline: the figures that the command line prints, where it does not print all.
        size: side of the views that `origin` is asked for, None for the checkpoint's own; read of the options.
    """

    options: ClassVar[type[Transfer]] = Transfer
    headline: ClassVar[tuple[str, ...]] = ()

    def __init__(self, how: Transfer, origin: Origin, train: Catalog, test: Catalog) -> None:
        super().__init__()
        self.how, self.origin, self.train_images, self.test_images = how, origin, train, test

    @abstractmethod
    def loader(self, device: torch.device, dtype: str, bad_images: Path) -> ViewLoader:
        """Return the loader of training batches, by the rules of `ViewLoader`: pure order, state, ranks.

        A batch has `.to(device)` and `.plan.row`, the catalog rows that it shows.

        Args:
            device: that batches come to; one that lie elsewhere is moved.
            dtype: "fp32" or "bf16", what steps compute in.
            bad_images: text file that lists unreadable images.
        """

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, torch.Tensor]:
        """Return the losses of this rank's part of a batch, scalars by name; their sum is learnt."""

    @abstractmethod
    def evaluate(self, folder: Path) -> dict[str, Any] | None:
        """Return the figures of the test images, as JSON holds them, and put pictures into the folder.

        Asked of all ranks when all steps are taken, each on its device. They share the images
        (`objcrop.ssl.evaluation.on_all_ranks`), the first has the figures, which do not depend on how many ranks there
        are, and the others return None.
        """

    def weights(self) -> list[dict[str, Any]]:
        """Return what is learnt, in groups as torch's optimisers take them; "scale" is a group's share of the rate."""
        return [{"params": [weight for weight in self.parameters() if weight.requires_grad]}]

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        return next(self.parameters()).device
