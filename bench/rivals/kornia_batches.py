"""kornia: crops in DataLoader workers, colour on the batch, where the network computes, as kornia's tutorials advise.

Photos differ in size and batches do not, so the crop comes first, image by image. Not the same views: no boxes, crops
anywhere in the image, random numbers of its own; EXIF is not looked at.
"""

from __future__ import annotations

import torch

from objcrop.bench.rivals.data_loader import Pair, Photos, data_loader
from objcrop.bench.rivals.torchvision_v2 import by_pil
from objcrop.bench.rivals.wanted import Epochs, Wanted
from objcrop.kernels.colour_reference import blur_kernel_size


def loader(wanted: Wanted) -> Epochs:
    """Return the loader."""
    import kornia.augmentation as K

    side = blur_kernel_size(wanted.size)
    colour = K.AugmentationSequential(
        K.ColorJiggle(0.4, 0.4, 0.4, 0.1, p=0.8),
        K.RandomGrayscale(p=0.2),
        K.RandomGaussianBlur((side, side), (0.1, 2.0), p=wanted.blur_p),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(torch.tensor(wanted.mean), torch.tensor(wanted.std)),
        data_keys=["input"],
    )
    crop = K.RandomResizedCrop((wanted.size, wanted.size), scale=(0.2, 1.0))
    photos = Photos(wanted.paths(), _decoded, Pair(Cropped(crop)))
    return data_loader(photos, wanted, finish=colour)


class Cropped:
    """A crop of one image, float32 (3, S, S), by a module that takes batches."""

    def __init__(self, crop: torch.nn.Module) -> None:
        self.crop = crop

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Return it."""
        return self.crop(image[None])[0]


def _decoded(path: str) -> torch.Tensor:
    return by_pil(path) / 255
