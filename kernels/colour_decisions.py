"""What the plan decides of a view's colours, and what every implementation of colour is handed."""

from __future__ import annotations

from typing import Any, NamedTuple


class Decisions(NamedTuple):
    """Of one view, or of N views, each an array or tensor with a first axis of N.

    Attributes:
        flip: bool, mirror left to right.
        jitter: bool, whether the four factors apply.
        factors: float32 (4,): brightness, contrast, saturation (1 leaves as is) and hue (turns of the colour circle).
        order: uint8 (4,), a permutation of 0..3: the four in the order they are applied; each clamps to 0..1.
        grey: bool, turn grey (ITU-R 601).
        sigma: float32, blur in pixels; 0 is none. Kernel `blur_kernel_size(S)`, reflect padding.
        solarise: bool, invert values from 0.5 up.
    """

    flip: Any
    jitter: Any
    factors: Any
    order: Any
    grey: Any
    sigma: Any
    solarise: Any
