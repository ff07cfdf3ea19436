"""Philox 4x32-10: random numbers as a pure function of where they are used.

A counter-based generator has no state: number = f(key, counter). Here the key is the run's seed, and the counter
holds (sample, epoch, view, purpose), so every random decision of a run can be made again from its coordinates, in any
order, on any rank, by any loader. `PURPOSES` names what a number is for; a new augmentation takes a new name and
never shifts the draws of the old ones.

Source: Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3", SC 2011. The published test vectors are in
tests/dali_pipes/test_philox.py.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# The fourth counter word is `number << 16 | block`. Numbers are for ever: append, never renumber or reuse.
PURPOSES = {
    "epoch_order": 0,
    "box": 1,
    "crop": 2,
    "shift": 3,
    "flip": 4,
    "jitter": 5,
    "jitter_factors": 6,
    "jitter_order": 7,
    "grey": 8,
    "blur": 9,
    "solarise": 10,
    "substitute": 11,
    "query_view": 12,
    "batch_shuffle": 13,
    "random_box": 14,
    "augment_turn": 15,
    "mask": 16,
    "negatives": 17,
    "shared_box": 18,
    "box_jitter": 19,
    "cutout": 20,
    "scene_side": 21,
}


def philox4x32(counter: Sequence[ArrayLike], key: tuple[int, int]) -> list[NDArray[np.uint64]]:
    """Ten rounds of Philox 4x32.

    Args:
        counter: four arrays (or ints) that broadcast together, values below 2**32.
        key: two ints below 2**32.

    Returns:
        Four uint64 arrays of the broadcast shape, values below 2**32.
    """
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _M0 * c0, _M1 * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _32) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _W0) & 0xFFFFFFFF, (k1 + _W1) & 0xFFFFFFFF
    return list(np.broadcast_arrays(c0, c1, c2, c3))


def blocks(
    seed: int, epoch: int, sample: ArrayLike, view: ArrayLike, purpose: str, block: ArrayLike = 0
) -> NDArray[np.float64]:
    """Four uniform numbers in [0, 1) for every (sample, view, block).

    Args:
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        sample: int array, values below 2**32.
        view: int array that broadcasts against `sample`.
        purpose: a name in `PURPOSES`.
        block: which four numbers of the purpose, below 2**16; broadcasts too.

    Returns:
        float64 array of the broadcast shape with a last axis of 4.
    """
    word = np.asarray(block, dtype=np.uint64) + np.uint64(PURPOSES[purpose] << 16)
    key = (seed & 0xFFFFFFFF, (seed >> 32) & 0xFFFFFFFF)
    drawn = np.stack(philox4x32((sample, epoch, view, word), key), axis=-1)
    return drawn.astype(np.float64) * 2.0**-32


def uniforms(
    seed: int, epoch: int, sample: ArrayLike, view: ArrayLike, purpose: str, n: int = 1
) -> NDArray[np.float64]:
    """`n` uniform numbers in [0, 1) for every (sample, view); a longer `n` begins with the same numbers.

    Returns:
        float64 array of the shape `sample` and `view` broadcast to, with a last axis of `n`.
    """
    sample, view = np.asarray(sample), np.asarray(view)
    count = -(-n // 4)
    drawn = blocks(seed, epoch, sample[..., None], view[..., None], purpose, np.arange(count))
    return drawn.reshape(*drawn.shape[:-2], count * 4)[..., :n]
