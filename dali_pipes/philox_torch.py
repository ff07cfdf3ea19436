"""Philox 4x32-10 (philox.py) in torch, for what would take the host too long: the same numbers, drawn on the device.

Torch has no unsigned words of 64 bits, but the product of two of 32 is right to the bit in signed ones too, since they
wrap; its upper half is what is left of it after a shift, without the copies of the sign.
"""

from __future__ import annotations

import torch

from objcrop.dali_pipes.philox import _M0, _M1, _W0, _W1, PURPOSES

_LOW = 0xFFFFFFFF


def integers(seed: int, epoch: int, sample: torch.Tensor, purpose: str, count: int, below: int) -> torch.Tensor:
    """Return whole numbers from 0 to `below` - 1 for every sample, a function of (seed, epoch, sample).

    Args:
        seed: 0 to 2**64 - 1.
        epoch: 0 to 2**32 - 1.
        sample: int64 (N,), values below 2**32.
        purpose: a name in `PURPOSES`.
        count: numbers a sample, up to 2**18.
        below: up to 2**31.

    Returns:
        int64 (N, count), on the samples' device; a longer `count` begins with the same numbers.
    """
    block = torch.arange(-(-count // 4), device=sample.device)
    c0, c3 = torch.broadcast_tensors(sample[:, None], block + (PURPOSES[purpose] << 16))
    c1, c2 = torch.full_like(c0, epoch), torch.zeros_like(c0)
    k0, k1 = seed & _LOW, seed >> 32 & _LOW
    for _ in range(10):
        p0, p1 = c0 * int(_M0), c2 * int(_M1)
        c0, c1, c2, c3 = (p1 >> 32 & _LOW) ^ c1 ^ k0, p1 & _LOW, (p0 >> 32 & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    words = torch.stack((c0, c1, c2, c3), dim=2).flatten(1)[:, :count]
    return words * below >> 32
