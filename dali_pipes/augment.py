"""Augmentation recipes: what may happen to a view's colours, and how likely.

The numbers are those of facebookresearch/moco (`moco-v2`: Chen et al. 2020, "Improved Baselines with Momentum
Contrastive Learning"), of BYOL (`byol`: Grill et al. 2020, Table 6, whose two views differ), of SimCLR (Chen et al.
2020, appendix A) and of SwAV; `flip` is the mirroring that supervised training and fine-tuning have beside their crop,
`mae` the same of crops that are resized by a bicubic filter (He et al. 2022). Crops are not of a recipe: BYOL's are of
.08 to 1 of the image, `scale=(0.08, 1)` in `load_views`. What each step does to pixels is defined once, in
kernels/colour_reference.py. By choice, the steps of `byol` are torchvision's too, as in PixPro, SoCo and lightly:
DeepMind's brightness is added, not multiplied, which changes pixels less (a mean of .08 of their range, not .19).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from objcrop.errors import UsageError
from objcrop.option_value import Unfit, offering, word

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augment:
    """How one view is augmented; `*_p` are probabilities.

    Attributes:
        brightness: factor drawn from [max(0, 1 - b), 1 + b]; contrast and saturation alike.
        contrast: see brightness.
        saturation: see brightness.
        hue: shift drawn from [-h, h], in turns of the colour circle.
        jitter_p: that the four steps above happen, in a random order.
        grey_p: that the view turns grey.
        blur_p: that it is blurred, with sigma (pixels) drawn from `sigma`.
        solarise_p: that values from 0.5 up are inverted.
        flip_p: that it is mirrored left to right.
        sigma: smallest and largest blur, pixels of the view.
        interpolation: "bilinear" or "bicubic", antialiased.
        mean: subtracted, per channel, of values in 0..1.
        std: divided by, per channel.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0
    jitter_p: float = 0.0
    grey_p: float = 0.0
    blur_p: float = 0.0
    solarise_p: float = 0.0
    flip_p: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)
    interpolation: str = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


# What SwAV's own code does, whose first standard deviation is not ImageNet's (Caron et al. 2020, multicropdataset.py).
_SWAV = Augment(0.8, 0.8, 0.8, 0.2, jitter_p=0.8, grey_p=0.2, blur_p=0.5, flip_p=0.5, std=(0.228, 0.224, 0.225))
_SIMCLR = replace(_SWAV, std=IMAGENET_STD, interpolation="bicubic")
_MOCO_V2 = Augment(0.4, 0.4, 0.4, 0.1, jitter_p=0.8, grey_p=0.2, blur_p=0.5, flip_p=0.5)
_BYOL = Augment(0.4, 0.4, 0.2, 0.1, jitter_p=0.8, grey_p=0.2, blur_p=1.0, flip_p=0.5, interpolation="bicubic")
# Of SoCo's whole image, and of its crops (Wei et al. 2021, 4.1; hologerry/SoCo resizes with PIL's bilinear filter).
SOCO_WHOLE = replace(_BYOL, interpolation="bilinear")
SOCO_CROP = replace(SOCO_WHOLE, blur_p=0.1, solarise_p=0.2)
RECIPES = {
    "moco-v2": (_MOCO_V2,),
    "byol": (_BYOL, replace(_BYOL, blur_p=0.1, solarise_p=0.2)),
    "simclr": (_SIMCLR,),
    "swav": (_SWAV,),
    "flip": (Augment(flip_p=0.5),),
    "mae": (Augment(flip_p=0.5, interpolation="bicubic"),),
    "none": (Augment(),),
}


Augmentation = str | Augment | Sequence[Augment] | Callable[[Any], Any]


@offering(*RECIPES)
def augmentation(value: Any) -> Augmentation:
    """The kind of augmentations: a name, one for all views, one a view, or a function of a view's bytes."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(each, Augment) for each in value):
        return tuple(value)
    if isinstance(value, Augment) or (callable(value) and not isinstance(value, type)):
        return value
    try:
        return word(*RECIPES)(value)
    except Unfit as must:
        raise Unfit(f"{must}, an Augment, one a view, or a function of uint8 (N, 3, S, S)") from None


def augment_recipe(augment: Augmentation, views: int) -> tuple[Augment, ...]:
    """Return one `Augment` a view; a recipe with fewer entries than views is repeated in turn.

    Where they differ, a draw per sample says which view gets which (see `colour_decisions`); so all entries of a recipe
    have one interpolation, mean and standard deviation. With a function in their place nothing happens to a view.

    Raises:
        UsageError: there are more entries than views.
    """
    if isinstance(augment, str):
        recipe: Sequence[Augment] = RECIPES[augment]
    elif isinstance(augment, Augment):
        recipe = (augment,)
    elif isinstance(augment, tuple):
        recipe = augment
        if len(recipe) != views:
            raise UsageError(f"augment has {len(recipe)} entries, but the crops have {views} views; give one a view.")
    else:
        recipe = RECIPES["none"]
    return tuple(recipe[v % len(recipe)] for v in range(views))
