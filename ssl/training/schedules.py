"""Schedules: pure functions of how far the run is."""

from __future__ import annotations

import math


def cosine_rate(step: int, total: int, warmup: int, peak: float, *, start: float = 0.0, final: float = 0.0) -> float:
    """Return the learning rate: a linear rise over `warmup` steps, then half a cosine (Loshchilov et al. 2017).

    Args:
        step: from 0.
        total: steps of the run.
        warmup: steps of the rise.
        peak: the highest rate.
        start: what the rise begins above.
        final: what the cosine ends at.
    """
    if step < warmup:
        return start + (peak - start) * (step + 1) / warmup
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def byol_momentum(progress: float, base: float) -> float:
    """Return the target's momentum, from `base` at progress 0 to 1 at progress 1 (Grill et al. 2020, section 3.1)."""
    return 1 - (1 - base) * (math.cos(math.pi * progress) + 1) / 2
