"""The plan: every random decision for a batch, as arrays, before any pixel is touched.

It is a pure function of (seed, epoch, sample, view). It does not know batch size, backend, threads, rank or restart,
which is why loaders can be swapped, runs resumed and bad files stepped over without changing any other view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import Augment, augment_recipe
from objcrop.dali_pipes.batch import SamplePlan
from objcrop.dali_pipes.crop_policy import (
    centre_square,
    dilate,
    enlarge_small,
    outward,
    resolve_min_side,
    shift,
    with_scale,
)
from objcrop.dali_pipes.crops import Crops
from objcrop.dali_pipes.epoch_order import permute
from objcrop.dali_pipes.philox import PURPOSES, philox4x32, uniforms
from objcrop.dali_pipes.random_resized_crop import RATIO, random_resized_crop
from objcrop.dali_pipes.running_total import kth, running_total
from objcrop.dali_pipes.view_boxes import ViewBoxes, view_boxes
from objcrop.errors import UsageError
from objcrop.kernels.colour_decisions import Decisions
from objcrop.option_value import seed_of

_SCALE_SAMPLE = 20_000  # images that the mean box share is taken over: enough for two digits, no wait on millions


@dataclass
class ViewPlan(SamplePlan):
    """Decisions for N samples of V views each.

    Attributes:
        sample: int64 (N,) position in the sample space of the epoch.
        row: int64 (N,) catalog row.
        box: int32 (N,) which box of the row; -1 where the image has none and its whole frame stands in.
        regions: int32 (N, V, 4) x0, y0, x1, y1, half-open pixels of the upright image: what the crop is drawn from.
        windows: int32 (N, V, 4) the crop itself, inside its region; the region where the view is whole.
        flip: bool (N, V) mirrored left to right.
        jitter: bool (N, V) whether `factors` are applied.
        factors: float32 (N, V, 4) brightness, contrast, saturation (1 = unchanged), hue (turns, 0 = unchanged).
        order: uint8 (N, V, 4) the order of these four, first applied first.
        grey: bool (N, V).
        sigma: float32 (N, V) blur in pixels of the view; 0 = none.
        solarise: bool (N, V).
    """

    sample: NDArray[np.int64]
    row: NDArray[np.int64]
    box: NDArray[np.int32]
    regions: NDArray[np.int32]
    windows: NDArray[np.int32]
    flip: NDArray[np.bool_]
    jitter: NDArray[np.bool_]
    factors: NDArray[np.float32]
    order: NDArray[np.uint8]
    grey: NDArray[np.bool_]
    sigma: NDArray[np.float32]
    solarise: NDArray[np.bool_]

    def decisions(self, i: int | slice, v: int) -> Decisions:
        """Return what happens to the colours of sample i's view v, or of some samples'."""
        return Decisions(*(getattr(self, name)[i, v] for name in Decisions._fields))


class ViewPlanner:
    """Catalog, boxes, policy and options, bound together: samples in, `ViewPlan` out.

    Args:
        catalog: the images.
        boxes: made for this catalog; needed by policies that crop in boxes.
        crops: what views are. Its `scale_min` "auto" is `scale[0]` / mean share of the image a box covers after the
            small-box rule, at most 0.9 (OAC 3, S_min). The mean is over boxes, first of each image, then over images
            that have some.
        seed: the run's seed.
        view_boxes: whether batches carry the boxes of each view.

    Raises:
        UsageError: a box policy without boxes, or scales that do not fit each other.
    """

    def __init__(
        self, catalog: Catalog, boxes: BoxTable | None, crops: Crops, *, seed: int = 0, view_boxes: bool = False
    ) -> None:
        policy = crops.policy
        if policy.needs_boxes and boxes is None:
            raise UsageError(
                f"crops '{policy.name}' are drawn from boxes, but none were given: pass --boxes, "
                "made by `objcrop propose`."
            )
        self.catalog, self.boxes, self.crops = catalog, boxes, crops
        recipe = augment_recipe(crops.augment, len(policy.views))
        self.augment = tuple(view.augment or each for view, each in zip(policy.views, recipe))
        # Of a recipe that says one thing of one view and another of the other, a draw says which gets which.
        turns = isinstance(crops.augment, str) and len(set(recipe)) > 1
        self._take_turns = np.flatnonzero([turns and view.augment is None for view in policy.views])
        self.transform = crops.augment if callable(crops.augment) else None
        self.sizes = tuple(view.side(crops.size) for view in policy.views)
        self.size, self.seed, self.view_boxes = crops.size, seed_of(seed), view_boxes
        self.policy = policy
        self._ends = self._sample_ends() if policy.per_box else None
        self.samples = len(catalog) if self._ends is None else int(self._ends[-1])
        self._drawn = np.flatnonzero([not view.whole for view in policy.views])  # views cropped at random
        needs_auto = any(policy.views[v].scale == "auto" for v in self._drawn)
        scale, scale_min = crops.scale, crops.scale_min
        if scale_min == "auto":
            scale_min = self._scale_min(scale[0]) if needs_auto else scale[0]
        self.policy = with_scale(policy, scale, float(scale_min))
        self._scales = np.array([view.scale for view in self.policy.views], dtype=np.float64)
        aspects = [view.aspect for view in policy.views]
        self._aspects = None if set(aspects) == {RATIO} else np.array(aspects, dtype=np.float64)
        self._local = np.flatnonzero([view.local for view in policy.views])
        self.scale_min = float(scale_min) if needs_auto else None  # None: no view asks for it

    def set_boxes(self, boxes: BoxTable) -> None:
        """Draw from other boxes of the same catalog; `scale_min` stays what it was resolved to."""
        self.boxes = boxes
        if self._ends is not None:
            self._ends = self._sample_ends()
            self.samples = int(self._ends[-1])

    def _sample_ends(self) -> NDArray[np.int64]:
        """Where the samples of blocks of rows end, when every box is a sample (`running_total`)."""
        assert self.boxes is not None
        return running_total(self.boxes.offsets, self._samples_of)

    def _samples_of(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many samples images of so many boxes are; one without any counts once."""
        return np.maximum(self._drawn_from(counts), 1)

    def _drawn_from(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return how many boxes of each image are drawn from, of so many."""
        most = self.crops.boxes_drawn
        return counts if most is None else np.minimum(counts, most)

    def _scale_min(self, smallest: float) -> float:
        """Solve OAC's S_min to three digits on a sample of the images with boxes: smallest / mean share, at most 0.9.

        `permute` draws the sample, with a key of its own: evenly spaced rows would see one class of a sorted catalog,
        and the run's seed shall not change the crops' sizes. The sum is exact (fsum), so that no processor's order of
        adding moves the last digit.
        """
        assert self.boxes is not None

        def has(counts: NDArray[np.int64]) -> NDArray[np.int64]:
            return (counts > 0).astype(np.int64)

        having = running_total(self.boxes.offsets, has)
        many = int(having[-1])
        if not many:
            return smallest  # every region is a whole frame
        some = np.sort(permute(np.arange(min(many, _SCALE_SAMPLE)), many, seed=0, epoch=0))
        rows = kth(some, having, len(self.boxes), self.boxes.counts, has)[0]
        counts = self._drawn_from(self.boxes.counts(rows))
        row = np.repeat(rows, counts)
        which = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
        window = self._box_windows(row, which)
        share = (window[:, 2:] - window[:, :2]).prod(axis=1) / self.catalog.sizes_of(row).astype(np.int64).prod(axis=1)
        mean = math.fsum((share / np.repeat(counts, counts)).tolist()) / len(rows)
        return round(min(smallest / mean, 0.9), 3)

    @property
    def boxes_left_out(self) -> int:
        """How many boxes are never drawn, because enough of their image stand before them."""
        if self.boxes is None or not self.policy.needs_boxes or self.crops.boxes_drawn is None:
            return 0
        return int(running_total(self.boxes.offsets, lambda counts: counts - self._drawn_from(counts))[-1])

    def _box_windows(self, rows: NDArray[np.int64], which: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return integer windows (N, 4) of the boxes drawn, after the small-box rule; which -1: the whole image."""
        sizes = self.catalog.sizes_of(rows)
        window = np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int64)
        has = np.flatnonzero(which >= 0)
        if has.size:
            assert self.boxes is not None
            window[has] = outward(self.boxes.gather(rows[has], which[has]), sizes[has])
            if self.policy.small_box_rule:
                smallest = resolve_min_side(sizes[has], self.crops.min_side, self.size)
                window[has] = enlarge_small(window[has], sizes[has], smallest)
        return window

    def locate(self, samples: NDArray[np.int64], epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return row (N,) and box (N,) of each sample; box -1: the image has none, or the policy draws none.

        The draw leaves out the view: both views share the box (OAC 3).
        """
        if self._ends is not None:
            assert self.boxes is not None
            rows, within = kth(samples, self._ends, len(self.boxes), self.boxes.counts, self._samples_of)
            return rows, np.where(self.boxes.counts(rows) > 0, within, -1)
        if self.boxes is None or not self.policy.needs_boxes:
            return samples, np.full(len(samples), -1, dtype=np.int64)
        counts = self._drawn_from(self.boxes.counts(samples))
        drawn = (uniforms(self.seed, epoch, samples, 0, "box")[:, 0] * counts).astype(np.int64)
        return samples, np.where(counts > 0, drawn, -1)

    def plan(self, samples: NDArray[np.int64], epoch: int) -> ViewPlan:
        """Make every decision for these samples of this epoch."""
        samples = np.asarray(samples, dtype=np.int64)
        rows, which = self.locate(samples, epoch)
        regions = self._regions(samples, rows, which, epoch)
        windows, drawn = regions, self._drawn
        if len(drawn) == len(self.policy.views):
            windows = self._crops(regions, samples, epoch, drawn)
        elif drawn.size:
            windows = regions.copy()
            windows[:, drawn] = self._crops(regions, samples, epoch, drawn)
        if self._local.size and self.crops.local_overlap:
            self._redraw_local(windows, regions, samples, epoch)
        return ViewPlan(
            sample=samples,
            row=rows,
            box=which.astype(np.int32),
            regions=regions,
            windows=windows,
            **colour_decisions(samples, self.augment, seed=self.seed, epoch=epoch, take_turns=self._take_turns),
        )

    def _crops(
        self,
        regions: NDArray[np.int32],
        samples: NDArray[np.int64],
        epoch: int,
        views: NDArray[np.int64],
        redraw: int = 0,
    ) -> NDArray[np.int32]:
        """Return windows of these views (N, views, 4), random-resized crops of their regions."""
        every = len(views) == regions.shape[1]
        aspect = None if self._aspects is None else self._aspects[views]
        how: dict[str, Any] = {"seed": self.seed, "epoch": epoch, "views": views, "aspect": aspect, "redraw": redraw}
        return random_resized_crop(regions if every else regions[:, views], self._scales[views], samples, **how)

    def _redraw_local(
        self, windows: NDArray[np.int32], regions: NDArray[np.int32], samples: NDArray[np.int64], epoch: int
    ) -> None:
        """Draw local crops anew that lie too little in the crop of the view in whose turn they are."""
        local, large = self._local, len(self.policy.views) - len(self._local)
        turn = np.arange(len(local)) % large
        far = _inside(windows[:, local], windows[:, turn]) < self.crops.local_overlap
        for redraw in range(1, 11):
            rows = np.flatnonzero(far.any(1))
            if not rows.size:
                return
            again = self._crops(regions[rows], samples[rows], epoch, local, redraw)
            takes = far[rows] & (_inside(again, windows[rows][:, turn]) >= self.crops.local_overlap)
            at = rows[:, None].repeat(len(local), 1)[takes], local[None].repeat(len(rows), 0)[takes]
            windows[at] = again[takes]
            far[rows] &= ~takes

    def _regions(
        self, samples: NDArray[np.int64], rows: NDArray[np.int64], which: NDArray[np.int64], epoch: int
    ) -> NDArray[np.int32]:
        """Return what each view's crop is drawn from, int32 (N, V, 4)."""
        sizes = self.catalog.sizes_of(rows)
        image = np.concatenate([np.zeros_like(sizes), sizes], axis=1).astype(np.int64)
        box = self._box_windows(rows, which)
        made = {"image": image, "box": box}
        for region in {view.region for view in self.policy.views} - made.keys():
            if region == "dilated":
                made[region] = dilate(box, sizes, self.crops.dilate, self.crops.dilate_by)
            elif region == "shifted":
                made[region] = shift(box, sizes, self.crops.shift, samples, seed=self.seed, epoch=epoch)
            else:
                made[region] = centre_square(sizes)
        return np.stack([made[view.region] for view in self.policy.views], axis=1).astype(np.int32)

    def boxes_in_views(self, plan: ViewPlan) -> tuple[ViewBoxes, ...]:
        """Return the boxes of each view of a plan, where they were asked for."""
        if not self.view_boxes or self.boxes is None:
            return ()
        return view_boxes(plan, self.boxes, self.sizes)

    def substitute(self, samples: NDArray[np.int64], epoch: int, attempt: int) -> NDArray[np.int64]:
        """Return the samples shown instead of these when their files are bad: a pure draw, one per attempt."""
        return (uniforms(self.seed, epoch, samples, attempt, "substitute")[..., 0] * self.samples).astype(np.int64)


def _inside(windows: NDArray[np.int32], others: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return the share of each window's area that lies in the other, (N, V) of two (N, V, 4)."""
    low, high = np.maximum(windows[..., :2], others[..., :2]), np.minimum(windows[..., 2:], others[..., 2:])
    meets = np.maximum(high - low, 0).astype(np.int64).prod(-1)
    return meets / (windows[..., 2:] - windows[..., :2]).astype(np.int64).prod(-1)


_COLOUR = ("flip", "jitter", "jitter_factors", "jitter_order", "grey", "blur", "solarise")


def colour_decisions(
    samples: NDArray[np.int64],
    augment: tuple[Augment, ...],
    *,
    seed: int,
    epoch: int,
    take_turns: NDArray[np.int64] | None = None,
) -> dict[str, NDArray]:
    """Draw flip, jitter, its factors and order, grey, blur and solarise for every (sample, view).

    Where the entries of a recipe differ (BYOL's), a draw per sample turns them round, so that none goes with a view's
    role: BYOL's two views are exchangeable, and a policy's object view is always the first.

    Args:
        samples: int64 (N,).
        augment: one recipe a view, before the turn.
        take_turns: the views that the turn is among; by default all where recipes differ.
        seed: the run's seed.
        epoch: the epoch.

    Returns:
        The fields of `ViewPlan` from `flip` on.
    """
    words = np.array([PURPOSES[name] << 16 for name in _COLOUR], dtype=np.uint64)
    counter = (samples[:, None, None], epoch, np.arange(len(augment))[:, None], words)
    drawn = np.stack(philox4x32(counter, (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF)), axis=-1) * 2.0**-32
    flip, jitter, factors, order, grey, blur, solarise = np.moveaxis(drawn, 2, 0)  # each N, V, 4

    gets = np.arange(len(augment))  # which recipe each view gets: (V,), or (N, V) where they take turns
    if take_turns is None:
        take_turns = gets if len(set(augment)) > 1 else gets[:0]
    if len(take_turns) > 1:
        turn = (uniforms(seed, epoch, samples, 0, "augment_turn") * len(take_turns)).astype(np.int64)
        gets = np.tile(gets, (len(samples), 1))
        gets[:, take_turns] = take_turns[(np.arange(len(take_turns)) + turn) % len(take_turns)]

    def happens(u: NDArray, probability: str) -> NDArray[np.bool_]:
        return u[..., 0] < np.array([getattr(a, probability) for a in augment])[gets]

    strength = np.array([(a.brightness, a.contrast, a.saturation, a.hue) for a in augment])
    low = np.stack([*np.maximum(1 - strength[:, :3], 0).T, -strength[:, 3]], axis=-1)[gets]
    high = np.stack([*(1 + strength[:, :3]).T, strength[:, 3]], axis=-1)[gets]
    sigma = np.array([a.sigma for a in augment])[gets]
    drawn_sigma = sigma[..., 0] + blur[..., 1] * (sigma[..., 1] - sigma[..., 0])
    return {
        "flip": happens(flip, "flip_p"),
        "jitter": happens(jitter, "jitter_p"),
        "factors": (low + factors * (high - low)).astype(np.float32),
        "order": np.argsort(order, axis=-1, kind="stable").astype(np.uint8),
        "grey": happens(grey, "grey_p"),
        "sigma": np.where(happens(blur, "blur_p"), drawn_sigma, 0).astype(np.float32),
        "solarise": happens(solarise, "solarise_p"),
    }
