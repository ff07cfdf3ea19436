"""Which row holds the k-th of many things, of which each row has some: the boxes of images that are samples each.

A running total over all rows would take more memory than the rows themselves; this one has an entry for 256 of them.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Weigh = Callable[[NDArray[np.int64]], NDArray[np.int64]]
BLOCK = 256  # rows that share an entry
PART = BLOCK << 12  # rows looked at at a time


def running_total(offsets: NDArray[np.integer], weigh: Weigh) -> NDArray[np.int64]:
    """Return how many things the rows before each block have, int64 (blocks + 1,); the last is the number of all.

    Args:
        offsets: (N + 1,); row r has offsets[r + 1] - offsets[r] boxes.
        weigh: from how many boxes rows have to how many things, neither negative; of integer arrays of any shape.
    """
    totals = [np.zeros(1, np.int64)]
    for begin in range(0, len(offsets) - 1, PART):
        bounds = offsets[begin : begin + PART + 1].astype(np.int64)
        things = weigh(bounds[1:] - bounds[:-1])
        totals.append(np.add.reduceat(things, np.arange(0, len(things), BLOCK)))
    return np.cumsum(np.concatenate(totals))


def kth(
    k: NDArray[np.int64], total: NDArray[np.int64], rows: int, counts: Weigh, weigh: Weigh
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the row (n,) that holds each of these things, and which of that row's things it is (n,).

    Args:
        k: (n,) things, 0 up to the number of all.
        total: what `running_total` returned.
        rows: how many there are.
        counts: from rows, of any shape, to how many boxes they have.
        weigh: as `running_total` has it.
    """
    block = np.searchsorted(total, k, side="right") - 1
    row = block[:, None] * BLOCK + np.arange(BLOCK)
    there = row < rows
    things = np.where(there, weigh(counts(np.where(there, row, 0))), 0)
    ends = total[block][:, None] + np.cumsum(things, axis=1)
    at = (ends <= k[:, None]).sum(axis=1)
    each = np.arange(len(k))
    return block * BLOCK + at, k - (ends - things)[each, at]
