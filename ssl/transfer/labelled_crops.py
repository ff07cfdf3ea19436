"""Batches of crops with their label maps, by the rules of every loader: pure order, state, ranks, bad images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.batch import Batch
from objcrop.dali_pipes.dali_loader import DaliLoader
from objcrop.dali_pipes.photo import Photo
from objcrop.dali_pipes.torch_loader import Batches, TorchLoader
from objcrop.dali_pipes.view_loader import GlobalBatches
from objcrop.dali_pipes.view_plan import ViewPlan
from objcrop.kernels.crop_resize import Windows, pixels_of
from objcrop.ssl.transfer.label_map import label_map
from objcrop.ssl.transfer.scaled_crops import ScaledCrops, scaled_crop


@dataclass
class LabelledCrops(Batch):
    """One rank's part of a global batch.

    Attributes:
        images: (N, 3, h, w), normalised, channels_last.
        labels: uint8 (N, h, w), class ids or `IGNORED`.
        index: int64 (N,) catalog row shown.
        requested: int64 (N,) catalog row that the epoch asked for.
        substituted: bool (N,), where another sample stands in for a bad image.
        plan: the decisions behind the crops.
    """

    images: torch.Tensor
    labels: torch.Tensor
    index: torch.Tensor
    requested: torch.Tensor
    substituted: torch.Tensor
    plan: ViewPlan

    def __len__(self) -> int:
        return len(self.index)


class DaliCropLoader(DaliLoader):
    """Yields `LabelledCrops`, decoded by DALI on the CPU, scaled and coloured on threads.

    Args:
        planner: of the crops.
        bad_images: what cannot be read.
        background: whether pixels of no mask have a class.
        dtype: of the crops.
        **contract: as of `DaliLoader`.
    """

    planner: ScaledCrops

    def __init__(
        self, planner: ScaledCrops, bad_images: BadImages, *, background: bool, dtype: torch.dtype, **contract: Any
    ) -> None:
        super().__init__(planner, bad_images, device="cpu", dtype=dtype, decode="whole", **contract)
        self._crops = _CropBatches(self.batches, "float", dtype, background)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "crops": _name_of(self.planner)}

    def _finished(self, plan: Any, asked: Any, windows: Windows, images: Any) -> Any:
        """Return the batch whose images are these, which are held until they are read."""
        of_image = Windows(*(part[0] for part in windows))
        out = self._crops.blank(len(plan))

        def one(i: int) -> None:
            image = Image.fromarray(np.ascontiguousarray(pixels_of(of_image, i)))
            self._crops.put(out, i, Photo(image), plan)

        for _ in self._pool.map(one, range(len(plan))):
            pass
        return self._crops.together(plan, asked, out)


class CropLoader(TorchLoader):
    """Yields `LabelledCrops`, decoded by PIL in worker processes.

    Args:
        planner: of the crops.
        *arguments: as of `TorchLoader`.
        background: whether pixels of no mask have a class.
        **contract: as of `TorchLoader`.
    """

    planner: ScaledCrops

    def __init__(self, planner: ScaledCrops, *arguments: Any, background: bool, **contract: Any) -> None:
        self.background = background
        super().__init__(planner, *arguments, **contract)

    def _dataset(self) -> Batches:
        return _CropBatches(self.batches, self.colour, self.dtype, self.background)

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "crops": _name_of(self.planner)}


def _name_of(planner: ScaledCrops) -> str:
    return f"{planner.crop} × {planner.scales}"


class _CropBatches(Batches):
    def __init__(self, batches: GlobalBatches, colour: str, dtype: torch.dtype, background: bool) -> None:
        super().__init__(batches, colour, dtype)
        self.background = background

    @property
    def _planner(self) -> ScaledCrops:
        planner = self.batches.planner
        assert isinstance(planner, ScaledCrops)
        return planner

    def blank(self, n: int) -> list[torch.Tensor]:
        """Return room for n crops and their labels."""
        height, width = self._planner.crop
        return [torch.empty(n, height, width, 3), torch.empty(n, height, width, dtype=torch.uint8)]

    def put(self, out: list[torch.Tensor], i: int, photo: Photo, plan: Any) -> None:
        """Fill in sample i."""
        labels = label_map(self._planner.catalog, int(plan.row[i]), self.background)
        crop, classes = scaled_crop(photo.image, labels, plan, i, self._planner.augment[0])
        out[0][i], out[1][i] = crop.permute(1, 2, 0), classes

    def together(self, plan: ViewPlan, asked: ViewPlan, out: list[torch.Tensor]) -> Any:
        """Return the batch."""
        return LabelledCrops(
            images=out[0].permute(0, 3, 1, 2).to(self.dtype),
            labels=out[1],
            index=torch.from_numpy(plan.row),
            requested=torch.from_numpy(asked.row),
            substituted=torch.from_numpy(np.asarray(plan.sample != asked.sample)),
            plan=plan,
        )
