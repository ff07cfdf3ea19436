"""Semantic segmentation: the class of every pixel, by FCN, PSPNet or PSANet on a dilated ResNet (CIB Table 6).

Training sees random crops of images scaled at random (`scaled_crops`), testing the images as they are, whole or by
windows. The classes are the catalog's; pixels of no mask are left out of learning and measuring, or with `background`,
for catalogs of objects such as COCO's, are a class of their own. The figures are mIoU, mean accuracy and accuracy.

mmsegmentation, whose 40k schedule CIB's presets follow, differs: its rate falls to 1e-4 and not to 0, crops of which
one class fills three quarters are drawn anew, and its photometric distortion draws each step's happening by itself.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torchvision.transforms.v2 import functional as tv

from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import Augment
from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.load_views import TENSOR_TYPES
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.errors import UsageError
from objcrop.launcher import cores_here
from objcrop.option import cannot_act
from objcrop.ranks import gather_on_first
from objcrop.ssl.evaluation.on_all_ranks import share, walked
from objcrop.ssl.transfer.confusion import confusion, segmentation_scores
from objcrop.ssl.transfer.dilated_resnet import DilatedResNet
from objcrop.ssl.transfer.fcn import fcn_head
from objcrop.ssl.transfer.label_map import label_map, pixel_classes
from objcrop.ssl.transfer.labelled_crops import CropLoader, DaliCropLoader, LabelledCrops
from objcrop.ssl.transfer.options import Transfer
from objcrop.ssl.transfer.origin import Origin
from objcrop.ssl.transfer.pictures import draw_confusion
from objcrop.ssl.transfer.psanet import psanet_head
from objcrop.ssl.transfer.pspnet import pspnet_head
from objcrop.ssl.transfer.scaled_crops import ScaledCrops
from objcrop.ssl.transfer.segmentation_options import SegmentationOptions
from objcrop.ssl.transfer.segmented_sheet import draw_segmented
from objcrop.ssl.transfer.segmenter import Segmenter
from objcrop.ssl.transfer.task import Task
from objcrop.ssl.transfer.windows import by_windows

MIRRORED = Augment(flip_p=0.5)
SHOWN = 8  # test images in the picture
# The ranges of the photometric distortion that SSD and mmsegmentation have.
JITTERED = Augment(brightness=0.125, contrast=0.5, saturation=0.5, hue=0.05, jitter_p=0.5, flip_p=0.5)


class Segmentation(Task):
    """A dilated ResNet and its heads; see `Task`."""

    options = SegmentationOptions
    how: SegmentationOptions

    def __init__(self, how: Transfer, origin: Origin, train: Catalog, test: Catalog) -> None:
        super().__init__(how, origin, train, test)
        self.classes = pixel_classes(train, self.how.background)
        pixel_classes(test, self.how.background)
        how.refuse_what_cpus_lack()
        if self.how.colour != "float":
            raise cannot_act("colour", self.how.colour, "crops are jittered in floating point alone")
        if self.how.head == "psanet" and self.how.test_by == "whole":
            _refuse_larger(test, self.how.crop)
        backbone = DilatedResNet(origin.network, origin.arch, 16 if self.how.head == "fcn-moco" else 8)
        (c4, c5), many = backbone.channels, len(self.classes)
        match self.how.head:
            case "fcn":
                head = fcn_head(c5, many)
            case "fcn-moco":
                head = fcn_head(c5, many, width=256, convolutions=2, dilation=6)
            case "pspnet":
                head = pspnet_head(c5, many)
            case _:
                head = psanet_head(c5, many, _cells(backbone, self.how.crop))
        aux = fcn_head(c4, many) if self.how.aux_weight else None
        self.network = Segmenter(backbone, head, aux, self.how.aux_weight)

    def loader(self, device: torch.device, dtype: str, bad_images: Path) -> ViewLoader:
        """Return crops with their label maps; see `Task`."""
        how = self.how
        augment = JITTERED if how.jitter else MIRRORED
        images = self.train_images
        if how.disk_cache is not None:
            images = images.cached_on_disk(how.disk_cache, how.disk_cache_gb)
        planned = (
            ScaledCrops(images, how.crop, how.scales, augment, how.seed),
            BadImages(images, how.max_bad, bad_images),
        )
        contract: dict[str, Any] = {"background": how.background, "dtype": TENSOR_TYPES[dtype]}
        contract |= {"batch_size": how.batch_size, "prefetch": how.prefetch, "shuffle": True, "drop_last": True}
        if how.backend == "dali":
            return DaliCropLoader(*planned, threads=how.threads or cores_here(), **contract)
        workers = cores_here() if how.workers is None else how.workers
        return CropLoader(*planned, workers=workers, colour="float", device=str(device), **contract)

    def forward(self, batch: LabelledCrops) -> dict[str, torch.Tensor]:
        """Return the losses of a batch; see `Task`."""
        return self.network.losses(batch.images, batch.labels)

    @torch.no_grad()
    def evaluate(self, folder: Path) -> dict[str, Any] | None:
        """Return mIoU, mean accuracy and accuracy, and each class's IoU; see `Task`."""
        images, many = self.test_images, len(self.classes)
        matrix, bad = torch.zeros(many, many, dtype=torch.int64), 0
        found: dict[int, NDArray[np.uint8]] = {}
        for row in walked(share(len(images)), "segmenting"):
            try:
                predicted = self.predict(images, row)
            except BadImage:
                bad += 1
                continue
            labels = torch.from_numpy(label_map(images, row, self.how.background))
            matrix += confusion(predicted, labels, many)
            if len(found) < SHOWN:
                found[row] = predicted.to(torch.uint8).numpy()
        parts = gather_on_first((matrix, bad, found))
        if parts is None:
            return None
        matrices, bads, predictions = zip(*parts)
        matrix, bad = torch.stack(matrices).sum(0), sum(bads)
        first = sorted((row, ids) for some in predictions for row, ids in some.items())[:SHOWN]
        if first:
            background = self.how.background
            shown = [(open_upright(images, row), label_map(images, row, background), ids) for row, ids in first]
            draw_segmented(shown, folder / "segmented.png")
        draw_confusion(matrix, self.classes, folder / "confusion.png")
        figures = segmentation_scores(matrix.numpy(), self.classes)
        return figures | {"tested": len(images) - bad, "bad_images": bad}

    def predict(self, images: Catalog, row: int) -> torch.Tensor:
        """Return the class of every pixel of an image, int64 (H, W), on the host.

        Raises:
            BadImage: it cannot be decoded.
        """
        pixels = torch.from_numpy(np.array(open_upright(images, row))).permute(2, 0, 1)
        image = tv.normalize(pixels.float() / 255, list(MIRRORED.mean), list(MIRRORED.std))[None].to(self.device)
        windows = self.how.test_by == "windows"
        scores = by_windows(self.network, image, self.how.crop) if windows else self.network(image)
        return scores[0].argmax(0).cpu()


def _refuse_larger(test: Catalog, crop: tuple[int, int]) -> None:
    """Raise a `UsageError` where an image is larger than what PSANet has weights for, before it learns."""
    width, height = test.sizes.max(0).tolist()
    if height > crop[0] or width > crop[1]:
        raise UsageError(
            f"test_by is 'whole', but images of {width}×{height} pixels are tested and PSANet takes no larger ones "
            f"than its crops of {crop[1]}×{crop[0]}; take test_by='windows', or larger crops."
        )


def _cells(backbone: nn.Module, crop: tuple[int, int]) -> tuple[int, int]:
    """Return height and width of the last map of a crop."""
    last = copy.deepcopy(backbone).to("meta").eval()(torch.empty(1, 3, *crop, device="meta"))[1]
    return last.shape[2], last.shape[3]
