"""Object discovery as optimisation (Vo et al. 2019, section 3): which boxes to keep, which images to compare.

Find x (which boxes of an image are kept, ν at most) and e (which images are its neighbours, τ at most) that maximise
Σ e_ij · x_iᵀ S_ij x_j over images i and j, where S_ij holds the scores of their boxes' matches.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

KEPT = 50  # ν; the paper ends with 5, but parts of the object are kept before the whole
NEIGHBOURS = 20  # τ
SWEEPS = 10  # over all images, at most


class Matches(NamedTuple):
    """The best matches of P pairs of images, m a pair; S_ij is symmetric, S_ji its transpose.

    pairs int32 (P, 2), images i < j; boxes int16 (P, 2, m), a box of i and one of j; scores float32 (P, m), 0 or more,
    0 where there are fewer.
    """

    pairs: npt.NDArray[np.int32]
    boxes: npt.NDArray[np.int16]
    scores: npt.NDArray[np.float32]


class BlockAscent:
    """A solution, made better image by image.

    Every block update takes the best of its block for what the others are, so the objective cannot fall, once all
    blocks keep their limits.

    Args:
        matches: of the images.
        counts: boxes of each image, (n,).
        kept: ν.
        neighbours: τ.

    Attributes:
        x: bool (n, p), the boxes kept; at first all.
        e: bool (P, 2), whether the pair's first image has the second as a neighbour, and the reverse; at first all.
    """

    def __init__(self, matches: Matches, counts: npt.NDArray[np.int64], kept: int, neighbours: int) -> None:
        self.matches, self.counts, self.kept, self.neighbours = matches, counts, kept, neighbours
        self.x = np.arange(max(counts, default=0)) < counts[:, None]
        self.e = np.ones(matches.pairs.shape, bool)
        # The pairs of each image, and whether it is their first (0) or second (1).
        by_image = np.argsort(matches.pairs.reshape(-1), kind="stable")
        ends = np.searchsorted(matches.pairs.reshape(-1)[by_image], np.arange(len(counts) + 1))
        self.pairs_of = [np.divmod(by_image[a:b], 2) for a, b in pairwise(ends)]

    def objective(self) -> float:
        """Return Σ e_ij · x_iᵀ S_ij x_j."""
        (i, j), boxes = self.matches.pairs.T[..., None], self.matches.boxes
        both = self.x[i, boxes[:, 0]] & self.x[j, boxes[:, 1]]
        return float((self.e.sum(1) * (self.matches.scores * both).sum(1, dtype=np.float64)).sum())

    def update_boxes(self, image: int) -> None:
        """Keep the ν boxes that match the neighbours' boxes best, Σ_j (e_ij + e_ji) S_ij x_j."""
        pair, side = self.pairs_of[image]
        linked = self.e[pair].any(1)
        pair, side = pair[linked], side[linked]
        own, theirs = self._sides(pair, side)
        worth = self.matches.scores[pair] * theirs * self.e[pair].sum(1)[:, None]
        gain = np.bincount(own.reshape(-1), worth.reshape(-1), minlength=self.counts[image])
        self.x[image] = False
        self.x[image, np.argsort(-gain[: self.counts[image]], kind="stable")[: self.kept]] = True

    def update_neighbours(self, image: int) -> None:
        """Take the τ images whose kept boxes match this one's best, x_iᵀ S_ij x_j."""
        pair, side = self.pairs_of[image]
        own, theirs = self._sides(pair, side)
        worth = (self.matches.scores[pair] * (self.x[image, own] & theirs)).sum(1, dtype=np.float64)
        best = np.argsort(-worth, kind="stable")[: self.neighbours]
        self.e[pair, side] = False
        self.e[pair[best], side[best]] = True

    def run(self, rng: np.random.Generator) -> None:
        """Update images in random orders until nothing changes, at most `SWEEPS` times."""
        for _ in range(SWEEPS):
            before = self.x.copy(), self.e.copy()
            for image in rng.permutation(len(self.counts)):
                self.update_boxes(image)
                self.update_neighbours(image)
            if np.array_equal(before[0], self.x) and np.array_equal(before[1], self.e):
                return

    def _sides(
        self, pair: npt.NDArray[np.int64], side: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int16], npt.NDArray[np.bool_]]:
        """Return an image's boxes in the matches of its pairs, and whether the others' boxes are kept, (., m) each."""
        others = self.matches.pairs[pair, 1 - side]
        return self.matches.boxes[pair, side], self.x[others[:, None], self.matches.boxes[pair, 1 - side]]


def solutions(
    matches: Matches, counts: npt.NDArray[np.int64], starts: int, seed: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Return how many of several solutions keep a box and have a neighbour (the ensemble of section 3.4).

    Args:
        matches: of the images.
        counts: boxes of each image, (n,).
        starts: solutions, each from another random order of the images.
        seed: of the orders.

    Returns:
        Shares of the solutions, float32 (n, p) for boxes and (P, 2) for neighbours.
    """
    found = []
    for start in range(starts):
        ascent = BlockAscent(matches, counts, KEPT, NEIGHBOURS)
        ascent.run(np.random.default_rng((seed, start)))
        found.append(ascent)
    kept, linked = np.mean([ascent.x for ascent in found], 0), np.mean([ascent.e for ascent in found], 0)
    return kept.astype(np.float32), linked.astype(np.float32)
