"""How likely what was seen is by chance alone: the two tests that an audit needs."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike


def binomial_p(hits: int, tries: int, chance: float) -> float:
    """Return the two-sided exact p-value of `hits` of `tries`: all outcomes that are no likelier, added up."""

    def log_of(k: int) -> float:
        ways = math.lgamma(tries + 1) - math.lgamma(k + 1) - math.lgamma(tries - k + 1)
        return ways + k * math.log(chance) + (tries - k) * math.log1p(-chance)

    seen = log_of(hits) + 1e-7
    return min(1.0, math.fsum(math.exp(log) for k in range(tries + 1) if (log := log_of(k)) <= seen))


def smirnov(one: ArrayLike, two: ArrayLike) -> tuple[float, float]:
    """Return the largest distance of two samples' distribution functions, and its asymptotic p-value.

    With ties, as rounded values have, the p-value errs towards 1. Source: Smirnov, "Table for estimating the goodness
    of fit of empirical distributions", 1948.
    """
    a, b = np.sort(np.ravel(one)), np.sort(np.ravel(two))
    both = np.concatenate([a, b])
    apart = np.searchsorted(a, both, "right") / len(a) - np.searchsorted(b, both, "right") / len(b)
    distance = float(np.abs(apart).max())
    reach = distance * math.sqrt(len(a) * len(b) / (len(a) + len(b)))
    if reach < 0.2:  # the sum converges slowly there, and is 1 to ten digits
        return distance, 1.0
    total = math.fsum((-1) ** (k - 1) * math.exp(-2 * (k * reach) ** 2) for k in range(1, 101))
    return distance, min(1.0, max(0.0, 2 * total))
