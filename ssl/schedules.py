"""Schedules: pure functions of how far the run is."""

from __future__ import annotations

import math


def cosine_rate(step: int, total: int, warmup: int, peak: float) -> float:
    """Return the learning rate: a linear rise over `warmup` steps, then half a cosine to 0 (Loshchilov et al. 2017).

    Args:
        step: from 0.
        total: steps of the run.
        warmup: steps of the rise.
        peak: the highest rate.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def byol_momentum(progress: float, base: float) -> float:
    """Return the target's momentum, from `base` at progress 0 to 1 at progress 1 (Grill et al. 2020, section 3.1)."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2
