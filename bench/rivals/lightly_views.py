"""lightly's own `MoCoV2Transform` on PIL images in DataLoader workers, as its examples have it.

Not the same views: no boxes, crops anywhere in the image, random numbers of its own; EXIF is not looked at.
"""

from __future__ import annotations

from objcrop.bench.rivals.data_loader import Photos, data_loader
from objcrop.bench.rivals.pil_chain import decoded
from objcrop.bench.rivals.wanted import Epochs, Wanted


def loader(wanted: Wanted) -> Epochs:
    """Return the loader."""
    from lightly.transforms import MoCoV2Transform

    normalise = {"mean": [*wanted.mean], "std": [*wanted.std]}
    views = MoCoV2Transform(input_size=wanted.size, gaussian_blur=wanted.blur_p, normalize=normalise)
    return data_loader(Photos(wanted.paths(), decoded, views), wanted)
