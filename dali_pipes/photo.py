"""An image's pixels, of a large photo at half or a quarter of its size where the windows of all its views allow it.

libjpeg can leave out the high frequencies of each block of 8×8 pixels and so decode to 4×4 or 2×2, for a fraction of
the work (libjpeg.txt, "scale_num"). Pixel i then stands for the photo's pixels from i·scale to (i + 1)·scale, whatever
the photo's size; the last ones may reach beyond its edge. A window's edges seldom fall between such pixels, and to
round them would change views four times as much as the scaling does: resizing begins and ends inside a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SCALES = (4, 2)  # an eighth is the mean of each block: blocky, and hardly cheaper than a quarter
ROOM = 2  # pixels a side left for each of a view: Pillow's reducing_gap for what is "very close to fair resampling"
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


class Photo(NamedTuple):
    """An image, upright.

    Attributes:
        image: RGB.
        scale: 1, 2 or 4: pixels of the photo that one of these stands for, a side.
        before: x, y in pixels of the photo: how far it begins outside, where what reached beyond the edge of a mirrored
            photo comes first.
    """

    image: Image.Image
    scale: int = 1
    before: tuple[int, int] = (0, 0)

    def view(self, window: Sequence[int], side: int, interpolation: str) -> Image.Image:
        """Return a window, x0, y0, x1, y1 in pixels of the photo, resized to side × side pixels.

        Of a scaled photo the pixels at its edges may stand for up to 3 of the photo's beyond it.
        """
        x0, y0, x1, y1 = ((c + b) / self.scale for c, b in zip(window, self.before * 2))  # exact in binary
        left, top = math.floor(x0), math.floor(y0)
        cut = self.image.crop((left, top, math.ceil(x1), math.ceil(y1)))
        return cut.resize((side, side), FILTERS[interpolation], box=(x0 - left, y0 - top, x1 - left, y1 - top))


def scales_of(windows: NDArray[np.int32], sides: Sequence[int]) -> NDArray[np.int64]:
    """Return at which part of its size, 1/4, 1/2 or 1/1, each photo is decoded for its views.

    Args:
        windows: int32 (N, V, 4) x0, y0, x1, y1.
        sides: of the V views, pixels.

    Returns:
        (N,) 4, 2 or 1, by whole numbers alone: the same on every machine.
    """
    room = (windows[..., 2:] - windows[..., :2]).min(-1) // (ROOM * np.array(sides))
    return np.select([room.min(1) >= scale for scale in SCALES], SCALES, 1)
