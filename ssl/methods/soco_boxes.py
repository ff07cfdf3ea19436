"""The boxes that SoCo compares: which, how they are jittered, and what is cut out of them (SoCo, section 3.2).

Every draw is a function of (seed, step, sample), made on the host and sent in one copy; what depends on where boxes lie
is computed on the device in shapes that the host knows, so that it never waits. Boxes are shares of a view's side.

By choice, where hologerry/SoCo draws crops anew until two boxes are shared by them: crops are the plan's, and a pair of
views that shares no box, or an image without any, is compared as a whole. Boxes that are repeated because there are
less than K are the same in both views, and each is jittered for itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from objcrop.dali_pipes.philox import uniforms
from objcrop.dali_pipes.to_device import sent
from objcrop.dali_pipes.view_boxes import ViewBoxes

JITTER_P = 0.5
CUT_SHARE = (0.1, 0.3)  # of a box's area


class Draws(NamedTuple):
    """Uniform numbers for K boxes of each pair of views, float64 (N, pairs, K, …)."""

    choice: torch.Tensor  # …
    jitter: torch.Tensor  # …, 5
    cut: torch.Tensor  # …, 4


def draws(seed: int, step: int, sample: NDArray[np.int64], pairs: int, boxes: int, device: torch.device) -> Draws:
    """Draw for these samples (N,) and the pairs of the first view with each of the others."""
    others = np.arange(1, pairs + 1)
    columns = {"shared_box": 1, "box_jitter": 5, "cutout": 4}
    drawn = [
        uniforms(seed, step, sample[:, None], others, purpose, boxes * n).reshape(-1, pairs, boxes, n)
        for purpose, n in columns.items()
    ]
    there = sent(torch.from_numpy(np.concatenate(drawn, -1)), device)
    choice, jitter, cut = there.split(list(columns.values()), -1)
    return Draws(choice[..., 0], jitter, cut)


class SharedBoxes(NamedTuple):
    """K boxes of every sample that show in two views.

    Attributes:
        first: float32 (N, K, 4) x0, y0, x1, y1 in the first view, shares of its side.
        second: float32 (N, K, 4), the same boxes in the second view.
        box: int64 (N, K), their numbers in the box table; -1 stands for both views as a whole.
    """

    first: torch.Tensor
    second: torch.Tensor
    box: torch.Tensor


def shared_boxes(first: ViewBoxes, second: ViewBoxes, sides: tuple[int, int], choice: torch.Tensor) -> SharedBoxes:
    """Choose K of the boxes that show in both views, without replacement; all of less than K, and some of them again.

    Args:
        first: the boxes of one view.
        second: the boxes of the other.
        sides: of the two views, pixels.
        choice: float64 (N, K), uniform draws.
    """
    (n, k), device = choice.shape, choice.device
    ours, theirs = (boxes.sample * 2**32 + boxes.box for boxes in (second, first))
    theirs = torch.cat([theirs, theirs.new_full((1,), -1)])  # where the search ends that finds nothing
    at = torch.searchsorted(theirs[:-1], ours)
    both = theirs[at] == ours
    many = torch.zeros(n, dtype=torch.int64, device=device).index_add_(0, second.sample, both.long())[:, None]
    slot = torch.arange(k, device=device)
    place = (choice * (many - slot).clamp(min=1)).long()  # among those not chosen yet
    for j in range(1, k):
        for before in place[:, :j].sort(1).values.unbind(1):
            place[:, j] += place[:, j] >= before
    place = torch.where(slot < many, place, (choice * many).long())
    ends = both.cumsum(0)
    begin = many.cumsum(0) - many
    found = torch.where(many > 0, torch.searchsorted(ends, begin + place + 1), len(ours))

    def of(boxes: ViewBoxes, side: int, index: torch.Tensor) -> torch.Tensor:
        whole = torch.zeros(1, 4, device=device, dtype=boxes.corners.dtype)
        whole[:, 2:] = 1
        return torch.cat([boxes.corners / side, whole])[index]

    beside = torch.cat([at, at.new_full((1,), len(first))])
    numbers = torch.cat([second.box, second.box.new_full((1,), -1)])
    return SharedBoxes(of(first, sides[0], beside[found]), of(second, sides[1], found), numbers[found])


def jittered(boxes: torch.Tensor, draw: torch.Tensor, most: float) -> torch.Tensor:
    """Move each box and change its sides by up to so much of them, with probability 1/2, and clip it to the view.

    Args:
        boxes: (N, K, 4), shares.
        draw: float64 (N, K, 5): whether; along x, y; width, height.
        most: share of the box's side.
    """
    low, sides = boxes[..., :2], boxes[..., 2:] - boxes[..., :2]
    change = (2 * draw[..., 1:] - 1) * most * (draw[..., :1] < JITTER_P)
    low = low + change[..., :2] * sides
    return torch.cat([low, low + sides * (1 + change[..., 2:])], -1).clamp(0, 1).to(boxes.dtype)


def cut_out(views: torch.Tensor, boxes: torch.Tensor, draw: torch.Tensor, chance: float) -> torch.Tensor:
    """Set a square in some boxes to 0: of 10 to 30 % of the box's area, its centre anywhere in the box.

    Args:
        views: (N, 3, S, S).
        boxes: (N, K, 4), shares of S.
        draw: float64 (N, K, 4): whether; area; the centre's x, y.
        chance: that a box loses a square.
    """
    size = views.shape[-1]
    corners = boxes * size
    sides = corners[..., 2:] - corners[..., :2]
    area = sides.prod(-1) * (CUT_SHARE[0] + (CUT_SHARE[1] - CUT_SHARE[0]) * draw[..., 1])
    side = area.sqrt().round()[..., None]
    low = (corners[..., :2] + sides * draw[..., 2:] - side / 2).round()  # N, K, 2
    pixel = torch.arange(size, device=views.device)[:, None]
    inside = (pixel >= low[..., None, :]) & (pixel < (low + side)[..., None, :])  # N, K, S, 2
    inside &= (draw[..., 0] < chance)[..., None, None]
    square = (inside[..., 1][..., :, None] & inside[..., 0][..., None, :]).any(1)
    return views * ~square[:, None]
