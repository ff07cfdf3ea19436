"""Crop policies: which role each view plays and the region its crop is drawn from.

Sources: OAC = "Object-Aware Cropping for Self-Supervised Learning" (section 3, Implementation Details, Table 11);
CIB = "Coarse Is Better" (sections 3.2 and 3.3). Where the papers leave a choice, this file makes it:

- Boxes become integers outwards (floor, ceil), clipped to the image.
- Small boxes first, then dilation or shift. The rule acts on each axis by itself.
- The object view of obj-scene is the box whole, as OAC 3(d) has it ("The first view is the BING proposal") and its
  released code resizes it; the passage on random crops in boxes names dilate and shift only. `random_crop=True` crops
  there too.
- A shift counts as undone when sliding the box back into the image leaves less than half the distance drawn; then
  another distance and direction are drawn, ten times at most; if all are undone, the one that keeps most is taken.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from objcrop.dali_pipes.augment import SOCO_CROP, SOCO_WHOLE, Augment
from objcrop.dali_pipes.philox import blocks
from objcrop.dali_pipes.random_resized_crop import RATIO
from objcrop.errors import UsageError, one_of, shown

SHIFT_TRIES = 10
MOST_VIEWS = 16


@dataclass(frozen=True)
class ViewSpec:
    """One view of a policy.

    Attributes:
        role: "object" or "scene"; chooses the projection head (OAC 3).
        region: "image", "box", "dilated", "shifted" or "centre": what the crop is drawn from.
        scale: smallest and largest share of the region's area; None stands for the option `scale`, "auto" for
            `scale_min` to its second number.
        whole: the region is taken as it is, resized to the view without regard to its aspect, and nothing is drawn.
        size: side of the view, pixels; None stands for the option `size`, a number below 1 for that share of it.
        aspect: smallest and largest width / height of the crop.
        augment: what happens to its colours; None stands for the option `augment`.
        local: a small crop beside the views that a policy is named after (multi-crop: Caron et al. 2020, SwAV).
    """

    role: str
    region: str
    scale: tuple[float, float] | str | None = None
    whole: bool = False
    size: float | None = None
    aspect: tuple[float, float] = RATIO
    augment: Augment | None = None
    local: bool = False

    def __post_init__(self) -> None:
        one_of(self.role, ("object", "scene"), "a view's role")
        one_of(self.region, ("image", "box", "dilated", "shifted", "centre"), "a view's region")
        sound = self.scale in (None, "auto") or (
            isinstance(self.scale, tuple) and len(self.scale) == 2 and 0 < self.scale[0] <= self.scale[1] <= 1
        )
        if not sound:
            raise UsageError(f"a view's scale is {shown(self.scale)}, but it must be two shares, 'auto' or None.")
        if not 0 < self.aspect[0] <= self.aspect[1]:
            raise UsageError(f"a view's aspect is {shown(self.aspect)}, but it must be two numbers above 0.")
        in_pixels = isinstance(self.size, int) and 8 <= self.size <= 8192
        if not (self.size is None or in_pixels or 0 < self.size < 1):
            raise UsageError(
                f"a view's size is {shown(self.size)}, but it must be 8 to 8192 as a whole number, or a share below 1."
            )

    def side(self, size: int) -> int:
        """Return the view's side in pixels where the option `size` is this."""
        if self.size is None:
            return size
        return int(self.size) if self.size >= 1 else max(8, int(self.size * size))


@dataclass(frozen=True)
class CropPolicy:
    """A list of view specs and what an epoch counts.

    Attributes:
        name: as given on the command line.
        views: one spec a view.
        per_box: True when a sample is (image, box) and not an image (CIB 3.2).
        small_box_rule: whether small boxes are enlarged first (OAC, Implementation Details).
        heads_shared: whether all roles share one projection head (OAC 3: for scene-scene always).
    """

    name: str
    views: tuple[ViewSpec, ...]
    per_box: bool = False
    small_box_rule: bool = True
    heads_shared: bool = False

    def __post_init__(self) -> None:
        if not 1 <= len(self.views) <= MOST_VIEWS:
            raise UsageError(f"crops '{self.name}' have {len(self.views)} views, but there can be 1 to {MOST_VIEWS}.")

    @property
    def roles(self) -> tuple[str, ...]:
        """The role of each view."""
        return tuple(view.role for view in self.views)

    @property
    def needs_boxes(self) -> bool:
        """Whether any view is drawn from a box."""
        return any(view.region in ("box", "dilated", "shifted") for view in self.views)


_AUTO = "auto"  # OAC 3: the smallest crop of a box should match the smallest crop of a scene
POLICIES = {
    policy.name: policy
    for policy in (
        CropPolicy("scene", (ViewSpec("scene", "image"),), heads_shared=True),
        CropPolicy("scene-scene", (ViewSpec("scene", "image"),) * 2, heads_shared=True),
        CropPolicy("obj-scene", (ViewSpec("object", "box", whole=True), ViewSpec("scene", "image"))),
        CropPolicy("obj-obj", (ViewSpec("object", "box", _AUTO),) * 2, heads_shared=True),
        CropPolicy("obj-obj+dilate", (ViewSpec("object", "box", _AUTO), ViewSpec("scene", "dilated", _AUTO))),
        CropPolicy("dilate-dilate", (ViewSpec("scene", "dilated", _AUTO),) * 2, heads_shared=True),
        CropPolicy("obj-obj+shift", (ViewSpec("object", "box", _AUTO), ViewSpec("scene", "shifted", _AUTO))),
        CropPolicy(
            "within-box", (ViewSpec("object", "box"),) * 2, per_box=True, small_box_rule=False, heads_shared=True
        ),
        # One view of within-box, as scene is one of scene-scene, for methods that look at one (MAE, labels). It is a
        # policy and not within-box cut short by the method, so that the policy alone says what views there are.
        CropPolicy("box", (ViewSpec("object", "box"),), per_box=True, small_box_rule=False, heads_shared=True),
        # SoCo's (Wei et al. 2021): the whole image, and two crops of it, one at half the side. Boxes are no regions:
        # the method looks them up in the views. The method's `scale` is .5 to 1.
        CropPolicy(
            "soco",
            (
                ViewSpec("scene", "image", whole=True, augment=SOCO_WHOLE),
                ViewSpec("scene", "image", augment=SOCO_CROP),
                ViewSpec("scene", "image", size=0.5, augment=SOCO_CROP),
            ),
            heads_shared=True,
        ),
        CropPolicy("centre", (ViewSpec("scene", "centre", whole=True),), heads_shared=True),
    )
}


def crop_policy(crops: str | CropPolicy, random_crop: bool | None = None) -> CropPolicy:
    """Return a policy by name, or one of your own.

    Args:
        crops: of `POLICIES`, or a policy.
        random_crop: whether its views are random-resized crops of their regions (True) or the regions whole (False,
            CIB Table 15: "w/o RRC"); None leaves each view as the policy has it.

    Raises:
        UsageError: no policy has that name.
    """
    policy = crops if isinstance(crops, CropPolicy) else POLICIES[one_of(crops, POLICIES, "crops")]
    if random_crop is None or policy.views[0].region == "centre":
        return policy
    return replace(policy, views=tuple(replace(view, whole=not random_crop) for view in policy.views))


def with_local_views(policy: CropPolicy, count: int, size: int, scale: tuple[float, float], source: str) -> CropPolicy:
    """Return the policy with small crops beside its views (multi-crop: Caron et al. 2020, SwAV, section 3.3).

    Args:
        policy: a policy.
        count: of small crops.
        size: their side, pixels.
        scale: smallest and largest share of what they are drawn from.
        source: "region" draws them in turn from the regions of the policy's views, "image" from the image.
    """
    large = policy.views
    added = (large[i % len(large)] for i in range(count))
    region_of = {"region": None, "image": "image"}
    local = (
        replace(view, region=region_of[source] or view.region, scale=scale, size=size, whole=False, local=True)
        for view in added
    )
    return replace(policy, views=(*large, *local))


def with_scale(policy: CropPolicy, scale: tuple[float, float], scale_min: float) -> CropPolicy:
    """Return the policy with the scales filled in that its views leave to the options.

    Args:
        policy: a policy.
        scale: for views without one.
        scale_min: for views whose scale is "auto".
    """
    if not 0 < scale[0] <= scale[1] <= 1:
        raise UsageError(f"scale is {scale}, but it must be two shares with 0 < smallest <= largest <= 1.")
    if not 0 < scale_min <= scale[1]:
        raise UsageError(f"scale_min is {scale_min}, but it must lie above 0 and at most at {scale[1]}.")
    filled = {None: scale, "auto": (scale_min, scale[1])}
    views = (
        view if isinstance(view.scale, tuple) else replace(view, scale=filled[view.scale]) for view in policy.views
    )
    return replace(policy, views=tuple(views))


def resolve_min_side(sizes: NDArray[np.int32], min_side: int | str, output_size: int) -> NDArray[np.int64]:
    """Return the smallest side a box may have in each image.

    "auto" is min(output size, half the image's shorter side): OAC's 224 where that side is 448 px or more, less on
    smaller photos (half of COCO's, nearly all of VOC's), so that the policies stay apart there. OAC's letter is
    min_side=224.

    Args:
        sizes: int32 (N, 2) width, height.
        min_side: pixels, or "auto".
        output_size: side of the views, pixels.

    Returns:
        int64 (N,) pixels.
    """
    if min_side == "auto":
        return np.minimum(output_size, sizes.min(axis=1) // 2).astype(np.int64)
    return np.full(len(sizes), int(min_side), dtype=np.int64)


def _slide_inside(start: NDArray, length: NDArray, limit: NDArray) -> NDArray:
    """Return the start of an interval of that length moved the least so that it lies in [0, limit)."""
    return np.clip(start, 0, limit - length)


def outward(boxes: NDArray[np.float32], sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return boxes as integer windows (N, 4): floor and ceil, clipped to the image, at least one pixel a side."""
    limit = sizes.astype(np.int64)
    low = np.clip(np.floor(boxes[:, :2]).astype(np.int64), 0, limit - 1)
    high = np.minimum(np.ceil(boxes[:, 2:]).astype(np.int64), limit)
    return np.concatenate([low, np.maximum(high, low + 1)], axis=1)


def enlarge_small(
    windows: NDArray[np.int64], sizes: NDArray[np.int32], min_side: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Apply OAC's small-box rule: a side shorter than `min_side` becomes that long at the same centre.

    The window is slid inside the image; `min_side` never exceeds the image.

    Args:
        windows: int64 (N, 4).
        sizes: int32 (N, 2) width, height.
        min_side: int64 (N,).

    Returns:
        int64 (N, 4).
    """
    limit = sizes.astype(np.int64)
    side = windows[:, 2:] - windows[:, :2]
    target = np.maximum(side, np.minimum(min_side[:, None], limit))
    start = np.floor_divide(windows[:, :2] + windows[:, 2:] - target, 2)
    low = _slide_inside(start, target, limit)
    return np.concatenate([low, low + target], axis=1)


def dilate(windows: NDArray[np.int64], sizes: NDArray[np.int32], delta: float, by: str) -> NDArray[np.int64]:
    """Grow each axis by `delta` times the image's (or the box's) length in total, centre fixed, then clip (OAC 3a).

    Args:
        windows: int64 (N, 4).
        sizes: int32 (N, 2) width, height.
        delta: 0.1 for COCO, 0.2 for OpenImages in the paper.
        by: "image" or "box".

    Returns:
        int64 (N, 4).
    """
    limit = sizes.astype(np.int64)
    side = limit if by == "image" else windows[:, 2:] - windows[:, :2]
    margin = np.rint(side * (delta / 2)).astype(np.int64)
    return np.concatenate([np.maximum(windows[:, :2] - margin, 0), np.minimum(windows[:, 2:] + margin, limit)], axis=1)


def shift(
    windows: NDArray[np.int64],
    sizes: NDArray[np.int32],
    distance: tuple[float, float],
    samples: NDArray[np.int64],
    *,
    seed: int,
    epoch: int,
) -> NDArray[np.int64]:
    """Move each window by a distance drawn from `distance`, in a random direction, slid inside the image (OAC 3c).

    Args:
        windows: int64 (N, 4).
        sizes: int32 (N, 2) width, height.
        distance: smallest and largest, pixels of the original image (OAC: 80 to 100).
        samples: int64 (N,), a coordinate of the draw.
        seed: the run's seed.
        epoch: the epoch.

    Returns:
        int64 (N, 4), the same sizes as `windows`.
    """
    limit, side = sizes.astype(np.int64), windows[:, 2:] - windows[:, :2]
    start = windows[:, :2]

    def tries(rows: NDArray[np.int64], attempts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return where the boxes of these rows come to lie at each attempt (n, attempts, 2), and how far off."""
        u = blocks(seed, epoch, samples[rows, None], 0, "shift", attempts)
        radius = distance[0] + u[..., 0] * (distance[1] - distance[0])
        angle = 2 * np.pi * u[..., 1]
        step = np.rint(radius[..., None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)).astype(np.int64)
        low = _slide_inside(start[rows, None] + step, side[rows, None], limit[rows, None])
        return low, np.hypot(*np.moveaxis(low - start[rows, None], -1, 0)) / np.maximum(radius, 1e-9)

    first, kept = tries(np.arange(len(windows)), np.arange(1))
    low = first[:, 0]
    undone = np.flatnonzero(kept[:, 0] < 0.5)
    if undone.size:
        others, kept_others = tries(undone, np.arange(1, SHIFT_TRIES))
        kept = np.concatenate([kept[undone], kept_others], axis=1)
        places = np.concatenate([first[undone], others], axis=1)
        stays = kept >= 0.5
        choice = np.where(stays.any(axis=1), stays.argmax(axis=1), kept.argmax(axis=1))
        low[undone] = places[np.arange(len(undone)), choice]
    return np.concatenate([low, low + side], axis=1)


def centre_square(sizes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return the window of the usual evaluation crop (N, 4): shorter side resized to size / 0.875, centre kept."""
    limit = sizes.astype(np.int64)
    side = np.maximum(np.rint(limit.min(axis=1) * 0.875).astype(np.int64), 1)[:, None]
    low = (limit - side) // 2
    return np.concatenate([low, low + side], axis=1)
