"""PIL in DataLoader workers: the chain of facebookresearch/moco, as most code for self-supervised pretraining has it.

Not the same views: no boxes, crops anywhere in the image, random numbers of its own; EXIF is not looked at.
"""

from __future__ import annotations

import random

from PIL import Image, ImageFilter

from objcrop.bench.rivals.data_loader import Pair, Photos, data_loader
from objcrop.bench.rivals.wanted import Epochs, Wanted


def loader(wanted: Wanted) -> Epochs:
    """Return the loader."""
    from torchvision import transforms

    view = transforms.Compose(
        [
            transforms.RandomResizedCrop(wanted.size, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            transforms.RandomGrayscale(0.2),
            transforms.RandomApply([_blurred], wanted.blur_p),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(wanted.mean, wanted.std),
        ]
    )
    return data_loader(Photos(wanted.paths(), decoded, Pair(view)), wanted)


def decoded(path: str) -> Image.Image:
    """Decode the image of a path."""
    return Image.open(path).convert("RGB")


def _blurred(image: Image.Image) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))
