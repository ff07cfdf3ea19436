"""The options of views: where their crops are drawn, how large they are, and what happens to their colours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from objcrop.dali_pipes.augment import RECIPES, Augmentation, augmentation
from objcrop.dali_pipes.crop_policy import MOST_VIEWS, POLICIES, CropPolicy, crop_policy, with_local_views
from objcrop.option import Options, option
from objcrop.option_value import Unfit, flag, number, offering, or_auto, pair, whole, word


def _box_is_drawn(at: Crops) -> str | None:
    return None if at.policy.needs_boxes else f"crops '{at.policy.name}' are not drawn from boxes"


def _small_boxes_are_enlarged(at: Crops) -> str | None:
    if at.policy.needs_boxes and not at.policy.small_box_rule:
        return f"crops '{at.policy.name}' take boxes as they are"
    return _box_is_drawn(at)


def _some_view_is(region: str) -> Callable[[Crops], str | None]:
    def idle(at: Crops) -> str | None:
        has = any(view.region == region for view in at.policy.views)
        return None if has else f"no view of crops '{at.policy.name}' is {region}"

    return idle


def _cropped_at_random(at: Crops) -> str | None:
    has = any(not view.whole and not isinstance(view.scale, tuple) for view in at.policy.views)
    return None if has else f"no view of crops '{at.policy.name}' is cropped at random"


def _smallest_is_open(at: Crops) -> str | None:
    if any(view.scale == "auto" and not view.whole for view in at.policy.views):
        return None
    return _cropped_at_random(at) or f"the smallest crop of crops '{at.policy.name}' is the first number of scale"


def _there_are_local_views(at: Crops) -> str | None:
    return None if at.local_views else "there are no local_views"


def _size_is_open(at: Crops) -> str | None:
    has = any(not isinstance(view.size, int) for view in at.policy.views) or at.policy.needs_boxes  # min_side: too
    return None if has else f"every view of crops '{at.policy.name}' has a size of its own"


def _some_view_takes_it(at: Crops) -> str | None:
    has = any(view.augment is None for view in at.policy.views)
    return None if has else f"every view of crops '{at.policy.name}' has an augmentation of its own"


def _region_is_a_choice(at: Crops) -> str | None:
    is_centre = any(view.region == "centre" for view in at.policy.views)
    return f"crops '{at.policy.name}' are never drawn" if is_centre else None


@offering(*POLICIES)
def policy_or_name(value: Any) -> str | CropPolicy:
    """The kind of crop policies: a name, or a policy of one's own."""
    if isinstance(value, CropPolicy):
        return value
    try:
        return word(*POLICIES)(value)
    except Unfit as must:
        raise Unfit(f"a CropPolicy, or {must}") from None


@dataclass(frozen=True)
class Crops(Options):
    """What views are; the sources are OAC and CIB (see `crop_policy`)."""

    group: ClassVar[str] = "crops"

    crops: str | CropPolicy = option(
        "scene-scene",
        policy_or_name,
        f"crop policy: {', '.join(POLICIES)}, or from Python a CropPolicy",
        key="policy",
    )
    size: int = option(
        224, whole(8, 8192), "side of the views, pixels; at 96 and less networks get a smaller stem", idle=_size_is_open
    )
    augment: Augmentation = option(
        "moco-v2",
        augmentation,
        f"augmentation: {', '.join(RECIPES)}; or from Python an Augment, one a view, or a function that gets a view's "
        "bytes, uint8 (N, 3, S, S) on the loader's device, and returns what the batch is to hold",
        idle=_some_view_takes_it,
    )
    local_views: int = option(
        0,
        whole(0, MOST_VIEWS - 1),
        "small crops beside the policy's views, all from one decode (multi-crop: Caron et al. 2020, SwAV)",
        idle=_region_is_a_choice,
    )
    local_size: int = option(96, whole(8, 8192), "their side, pixels", idle=_there_are_local_views)
    local_scale: tuple[float, float] = option(
        (0.05, 0.14),
        pair(number(0, 1, above=True)),
        "smallest and largest of them as shares of what they are drawn from",
        idle=_there_are_local_views,
    )
    local_from: str = option(
        "region",
        word("region", "image"),
        "region draws them in turn from the regions of the policy's views, image from the image",
        idle=_there_are_local_views,
    )
    local_overlap: float = option(
        0.0,
        number(0, 1),
        "a local crop is redrawn up to ten times until so much of its area lies in the crop of the view in whose turn "
        "it is, else its first draw stands (constrained cropping: Van Gansbeke et al. 2021, who take 0.1)",
        idle=_there_are_local_views,
    )
    random_crop: bool | None = option(
        None,
        flag,
        "true makes every view a random-resized crop of its region, false takes each region whole (CIB Table 15); by "
        "default the object view of obj-scene is whole and all others are cropped",
        idle=_region_is_a_choice,
    )
    scale: tuple[float, float] = option(
        (0.2, 1.0),
        pair(number(0, 1, above=True)),
        "smallest and largest crop as shares of the region it is drawn from; BYOL's is 0.08,1",
        idle=_cropped_at_random,
    )
    scale_min: float | str = option(
        "auto",
        or_auto(number(0, 1, above=True)),
        "the smallest share inside a box for obj-obj, dilate and shift; auto after OAC 3",
        idle=_smallest_is_open,
    )
    min_side: int | str = option(
        "auto",
        or_auto(whole(1, 65536)),
        "smallest side of a box in pixels; auto is min(size, half the image's shorter side), OAC's letter 224",
        idle=_small_boxes_are_enlarged,
    )
    dilate: float = option(
        0.1,
        number(0, 2),
        "growth of each axis in total, a share of the image (OAC: .1 for COCO, .2 for OpenImages)",
        idle=_some_view_is("dilated"),
    )
    dilate_by: str = option(
        "image", word("image", "box"), "image or box: what dilate is a share of", idle=_some_view_is("dilated")
    )
    shift: tuple[float, float] = option(
        (80.0, 100.0),
        pair(number(0, 65536)),
        "smallest and largest distance, pixels of the original image",
        idle=_some_view_is("shifted"),
    )
    max_boxes: int | None = option(
        None,
        whole(1, 2**31 - 1),
        "one of the first so many boxes of an image is drawn, and each of them for within-box; default: 10, OAC's "
        "number of proposals, and all for within-box",
        idle=_box_is_drawn,
    )

    @property
    def boxes_drawn(self) -> int | None:
        """How many of an image's boxes are drawn from, the first ones; None for all."""
        return 10 if self.max_boxes is None and not self.policy.per_box else self.max_boxes

    @property
    def policy(self) -> CropPolicy:
        """The crop policy, `random_crop` and local views taken into account."""
        policy = crop_policy(self.crops, self.random_crop)
        if not self.local_views:
            return policy
        return with_local_views(policy, self.local_views, self.local_size, self.local_scale, self.local_from)


def why_no_boxes(at: Any) -> str | None:
    """Return why boxes cannot act beside these `Crops`, None where they do."""
    return None if getattr(at, "view_boxes", False) else _box_is_drawn(at)
