"""Where an image's boxes lie in each of its views: what losses on regions pair (SoCo, Wei et al. 2021; DenseCL's kind).

Cropping, resizing and mirroring move a box as they move pixels; colour does not. All of it is in the plan, so this is
arithmetic on arrays, and no pixel is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from objcrop.boxes import BoxTable
from objcrop.dali_pipes.batch import Batch

if TYPE_CHECKING:
    import torch


class Plan(Protocol):
    """What of a `ViewPlan` says where pixels go."""

    row: NDArray[np.int64]
    windows: NDArray[np.int32]
    flip: NDArray[np.bool_]


@dataclass
class ViewBoxes(Batch):
    """The M boxes that show in one view of a batch, in the order of its samples and of their boxes.

    Attributes:
        corners: float32 (M, 4) x0, y0, x1, y1 in pixels of the view, half-open, clipped to it; not empty.
        sample: int64 (M,) which of the batch's N samples.
        box: int64 (M,) which box of the image, its number in the box table: a box shows in two views where both have
            its sample and its number (`shared`).
        visible: float32 (M,) share of the box's area inside the view's window, above 0.
    """

    corners: torch.Tensor
    sample: torch.Tensor
    box: torch.Tensor
    visible: torch.Tensor

    def __len__(self) -> int:
        return len(self.box)

    def moved(self, place: torch.Tensor) -> ViewBoxes:
        """Return the boxes of the batch whose sample i now stands at place[i], int64 (N,) on the CPU."""
        from objcrop.dali_pipes.to_device import sent

        at = sent(place, self.sample.device)[self.sample]
        order = at.argsort(stable=True)
        return ViewBoxes(self.corners[order], at[order], self.box[order], self.visible[order])

    def shared(self, other: ViewBoxes) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the boxes lie that show in both views: int64 (K,) into these, int64 (K,) into the other's."""
        import torch

        most = max((int(boxes.box.max()) for boxes in (self, other) if len(boxes)), default=0) + 1
        here, there = (boxes.sample * most + boxes.box for boxes in (self, other))
        at = torch.searchsorted(there, here).clamp(max=max(len(there) - 1, 0))
        both = there[at] == here if len(there) else torch.zeros_like(here, dtype=torch.bool)
        return both.nonzero()[:, 0], at[both]


def view_boxes(plan: Plan, boxes: BoxTable, sizes: Sequence[int]) -> tuple[ViewBoxes, ...]:
    """Return the boxes of each view.

    Args:
        plan: N samples of V views.
        boxes: of the catalog's images; all of an image's boxes count, not the one alone that its crops were drawn from.
        sizes: side of each view, pixels.

    Returns:
        V `ViewBoxes`, on the CPU.
    """
    import torch

    counts = boxes.counts(plan.row)
    sample = np.repeat(np.arange(len(plan.row)), counts)
    which = np.arange(len(sample)) - np.repeat(np.cumsum(counts) - counts, counts)
    whole = boxes.gather(plan.row[sample], which).astype(np.float64)
    area = (whole[:, 2:] - whole[:, :2]).prod(1)
    found = []
    for v, size in enumerate(sizes):
        window = plan.windows[sample, v].astype(np.float64)
        sides = window[:, 2:] - window[:, :2]
        corners = (whole - np.tile(window[:, :2], 2)) / np.tile(sides, 2)  # as shares of the window
        corners = corners.clip(0, 1)
        mirrored = plan.flip[sample, v]
        corners[mirrored] = corners[mirrored][:, [2, 1, 0, 3]] * (-1, 1, -1, 1) + (1, 0, 1, 0)
        seen = (corners[:, 2:] - corners[:, :2]).prod(1)
        shows = np.flatnonzero(seen > 0)
        visible = seen[shows] * sides[shows].prod(1) / area[shows]
        arrays = ((corners[shows] * size).astype(np.float32), sample[shows], which[shows], visible.astype(np.float32))
        found.append(ViewBoxes(*map(torch.from_numpy, arrays)))
    return tuple(found)
