"""The order of an epoch: a keyed bijection over the samples, any position in O(1), nothing stored.

An unbalanced Feistel network permutes the next power of two; positions that land beyond the last sample walk the
cycle on until they fall inside (fewer than two steps on average). The key comes from Philox at (seed, epoch).
Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002 (cycle walking, Feistel).
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from objcrop.dali_pipes.philox import uniforms

_ROUNDS = 10


def _mix(half: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Scatter the bits of a half (the finaliser of SplitMix64): a small change in goes everywhere."""
    z = half + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(8)


@lru_cache(maxsize=8)
def _keys(seed: int, epoch: int) -> NDArray[np.uint64]:
    """Return a 64-bit key a round."""
    words = (uniforms(seed, epoch, 0, 0, "epoch_order", 2 * _ROUNDS) * 2.0**32).astype(np.uint64)
    return words[0::2] << np.uint64(32) | words[1::2]


def permute(position: ArrayLike, n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return which sample stands at each position of the epoch.

    Args:
        position: int array, each in [0, n).
        n: number of samples.
        seed: the run's seed.
        epoch: the epoch.

    Returns:
        int64 array of the same shape; over all positions every sample comes exactly once.
    """
    bits = max(int(n - 1).bit_length(), 2)
    low_bits = np.uint64(bits // 2)
    low_mask, high_mask = np.uint64((1 << (bits // 2)) - 1), np.uint64((1 << (bits - bits // 2)) - 1)
    keys = _keys(seed, epoch)
    out = np.array(position, dtype=np.uint64, ndmin=1)
    walking = np.arange(out.size)
    flat = out.reshape(-1)
    with np.errstate(over="ignore"):
        while walking.size:
            low, high = flat[walking] & low_mask, flat[walking] >> low_bits
            for r in range(0, _ROUNDS, 2):
                high = high ^ (_mix(low, keys[r]) & high_mask)
                low = low ^ (_mix(high, keys[r + 1]) & low_mask)
            flat[walking] = high << low_bits | low
            walking = walking[flat[walking] >= n]
    return out.astype(np.int64).reshape(np.shape(position))


def batch_positions(n: int, batch: int, batch_size: int, *, rank: int = 0, world: int = 1) -> NDArray[np.int64]:
    """Return where one rank's samples of one global batch stand in the epoch's order.

    The global batch is a slice of that order; ranks take interleaved rows of it, so the union over ranks does not
    depend on how many there are.

    Args:
        n: number of samples in the epoch.
        batch: index of the global batch.
        batch_size: samples in a global batch, over all ranks.
        rank: this process.
        world: number of processes.

    Returns:
        int64 array, at most ceil(batch_size / world) long (shorter at the end of an evaluation epoch).
    """
    return np.arange(batch * batch_size + rank, min((batch + 1) * batch_size, n), world)
