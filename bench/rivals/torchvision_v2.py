"""torchvision's v2 transforms on uint8 tensors in DataLoader workers, as its documentation advises.

Not the same views: no boxes, crops anywhere in the image, random numbers of its own. The whole image is decoded: by
PIL, which does not look at EXIF here, or by torchcodec, where PyTorch's image decoders have gone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from objcrop.bench.rivals.data_loader import Pair, Photos, data_loader
from objcrop.bench.rivals.wanted import Epochs, Wanted
from objcrop.kernels.colour_reference import blur_kernel_size

if TYPE_CHECKING:
    from torchvision.transforms import v2


def loader(wanted: Wanted, decode: str) -> Epochs:
    """Return the loader.

    Args:
        wanted: what is asked for.
        decode: by "pil" or "torchcodec".
    """
    return data_loader(Photos(wanted.paths(), DECODERS[decode], Pair(moco_v2(wanted))), wanted)


def moco_v2(wanted: Wanted) -> v2.Compose:
    """Return the recipe of MoCo-v2, uint8 (3, H, W) to normalised float32 (3, S, S)."""
    from torchvision.transforms import v2

    return v2.Compose(
        [
            v2.RandomResizedCrop(wanted.size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], 0.8),
            v2.RandomGrayscale(0.2),
            v2.RandomApply([v2.GaussianBlur(blur_kernel_size(wanted.size), (0.1, 2.0))], wanted.blur_p),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(wanted.mean, wanted.std),
        ]
    )


def by_pil(path: str) -> torch.Tensor:
    """Decode by PIL, uint8 (3, H, W)."""
    from PIL import Image
    from torchvision.transforms.v2.functional import pil_to_tensor

    return pil_to_tensor(Image.open(path).convert("RGB"))


def by_torchcodec(path: str) -> torch.Tensor:
    """Decode by torchcodec, uint8 (3, H, W)."""
    from torchcodec.decoders import decode_image

    return decode_image(path)


DECODERS = {"pil": by_pil, "torchcodec": by_torchcodec}
