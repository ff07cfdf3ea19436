"""DALI in the way of solo-learn: all that may happen to a view is computed, and mixed by what was drawn.

Not the same views: no boxes, crops anywhere in the image, random numbers of DALI, hue turned in YIQ, not in HSV.
"""

from __future__ import annotations

from typing import Any

from objcrop.bench.rivals.plain_dali import Dali, normalised
from objcrop.bench.rivals.wanted import Epochs, Wanted
from objcrop.kernels.colour_reference import blur_kernel_size


def loader(wanted: Wanted, device: str) -> Epochs:
    """Return the loader.

    Args:
        wanted: what is asked for.
        device: "cpu" or "gpu", where the views are made.
    """
    return Dali(wanted, device, _view)


def _view(image: Any, wanted: Wanted) -> Any:
    from nvidia.dali import fn, types

    def happens(probability: float) -> Any:
        return fn.random.coin_flip(probability=probability, dtype=types.BOOL)

    def mixed(condition: Any, then: Any, otherwise: Any) -> Any:
        """Both are computed, one is kept."""
        return then * condition + otherwise * (condition ^ True)

    def near(amount: float) -> Any:
        return fn.random.uniform(range=[1 - amount, 1 + amount])

    crop = fn.random_resized_crop(image, size=wanted.size, random_area=[0.2, 1.0], antialias=True)
    hue = fn.random.uniform(range=[-36.0, 36.0])
    twisted = fn.color_twist(crop, brightness=near(0.4), contrast=near(0.4), saturation=near(0.4), hue=hue)
    jittered = mixed(happens(0.8), twisted, crop)
    coloured = fn.saturation(jittered, saturation=fn.cast(happens(0.2) ^ True, dtype=types.FLOAT))
    side, sigma = blur_kernel_size(wanted.size), fn.random.uniform(range=[0.1, 2.0])
    blurred = fn.gaussian_blur(coloured, sigma=sigma, window_size=side)
    return normalised(mixed(happens(wanted.blur_p), blurred, coloured), wanted)
