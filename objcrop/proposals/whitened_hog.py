"""Whitened histograms of oriented gradients (WHO; Hariharan, Malik and Ramanan 2012): what a box looks like.

Every gradient of a box is likely next to another one like it; whitening takes out what is to be expected of any
window, so that the inner product of two boxes says how much of what is special about them they share.

Looks are whole numbers, made in float64 and rounded far above its last digits, so that their inner products are exact
and no number of threads changes what resembles what.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from objcrop.extras import from_extra
from objcrop.proposals.from_images import Image

CELLS = 8  # a box is cut into 8×8 cells
PIXELS = 8  # side of a cell, after resizing
SIDE = (CELLS + 2) * PIXELS  # with a cell of surroundings, which the outer cells are normalised with
ORIENTATIONS = 18  # of 20°, light-to-dark apart from dark-to-light
CHANNELS = ORIENTATIONS + 4
KEPT = 256  # directions of greatest variance; those after hold noise and cost memory
STEPS, MOST = 32, 255  # of a look from 0 to 1; the most: KEPT · MOST² lies below 2^24, what float32 sums exactly
RIDGE = 0.05  # of the mean variance, added to each: rare directions are not blown up

Windows = npt.NDArray[np.float32]
NO_WINDOWS: Windows = np.zeros((0, CELLS, CELLS, CHANNELS), np.float32)
Whitening = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]  # mean (D,) and projection (D, KEPT)


def hog(image: Image, boxes: npt.NDArray[np.float32]) -> Windows:
    """Return the gradient histograms of boxes that are stretched to a square.

    A cell has 18 orientations, the mean over its four block normalisations, and 4 texture energies, one a
    normalisation (Felzenszwalb et al. 2010, section 6.2, without the unsigned orientations, which are sums of these).

    Args:
        image: uint8 (H, W, 3), upright.
        boxes: float32 (k, 4) x0, y0, x1, y1, half-open pixels inside the image.

    Returns:
        float32 (k, CELLS, CELLS, CHANNELS), by row, column and channel.
    """
    cv2 = from_extra("cv2")

    block, cell = (2 * PIXELS, 2 * PIXELS), (PIXELS, PIXELS)
    descriptor = cv2.HOGDescriptor((SIDE, SIDE), block, cell, cell, ORIENTATIONS, 1, -1, 0, 0.2, False, 64, True)
    margin = max(image.shape[:2]) // CELLS + 1
    wide = cv2.copyMakeBorder(image, margin, margin, margin, margin, cv2.BORDER_REPLICATE)
    surroundings = (boxes[:, 2:] - boxes[:, :2]) / CELLS
    corners = np.rint(np.concatenate([boxes[:, :2] - surroundings, boxes[:, 2:] + surroundings], 1)).astype(int)
    found = np.empty((len(boxes), CELLS, CELLS, CHANNELS), np.float32)
    for window, (x0, y0, x1, y1) in zip(found, corners + margin):
        crop = wide[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        square = cv2.resize(crop, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        # OpenCV's order: blocks by column and row, in each its four cells by column and row.
        blocks = np.asarray(descriptor.compute(square)).reshape(CELLS + 1, CELLS + 1, 2, 2, ORIENTATIONS)
        four = [blocks[1 - x : CELLS + 1 - x, 1 - y : CELLS + 1 - y, x, y] for x in (0, 1) for y in (0, 1)]
        normalised = np.stack(four, 2).transpose(1, 0, 2, 3)  # row, column, normalisation, orientation
        window[..., :ORIENTATIONS] = normalised.sum(2) / 2
        window[..., ORIENTATIONS:] = normalised.sum(3) / np.sqrt(ORIENTATIONS)
    return found


def whitening(windows: Windows) -> Whitening:
    """Learn from windows what is to be expected of any window.

    Mean and covariance are taken to be the same all over a window, the covariance of two cells to depend on the step
    from one to the other only (Hariharan et al., section 2.1): otherwise a catalog of one kind of object would whiten
    that object away.

    Args:
        windows: float32 (n, CELLS, CELLS, CHANNELS), n may be 0.

    Returns:
        The mean (D,) and the projection (D, KEPT) to uncorrelated values of variance 1, where
        D = CELLS · CELLS · CHANNELS.
    """
    import torch

    size = CELLS * CELLS * CHANNELS
    if not len(windows):
        return np.zeros(size), np.zeros((size, KEPT))
    mean = windows.mean((0, 1, 2), dtype=np.float64)
    off = (windows - mean).reshape(-1, size)
    measured = (off.T @ off / len(off)).reshape(CELLS, CELLS, CHANNELS, CELLS, CELLS, CHANNELS)
    known = np.empty_like(measured)
    for down, right in np.ndindex(2 * CELLS - 1, 2 * CELLS - 1):
        step = np.array([[down - CELLS + 1], [right - CELLS + 1]])
        cells = np.indices((CELLS, CELLS)).reshape(2, -1)
        (y, x), (v, u) = np.stack([cells, cells + step])[:, :, ((cells + step) // CELLS == 0).all(0)]
        known[y, x, :, v, u] = measured[y, x, :, v, u].mean(0)
    # NumPy's takes thirty times as long where other programs run.
    variances, directions = (part.numpy() for part in torch.linalg.eigh(torch.from_numpy(known.reshape(size, size))))
    variances = np.maximum(variances, 0)  # what was averaged may miss being a covariance by a little
    spread = np.sqrt(variances[-KEPT:] + max(RIDGE * float(variances.mean()), 1e-6))
    return np.tile(mean, CELLS * CELLS), directions[:, -KEPT:] / spread


def whiten(windows: Windows, learned: Whitening) -> npt.NDArray[np.int16]:
    """Return windows (k, CELLS, CELLS, CHANNELS) as int16 (k, KEPT); inner products are likenesses times STEPS²."""
    mean, projection = learned
    looks = (windows.reshape(-1, len(mean)) - mean) @ projection
    return np.rint(looks * STEPS).clip(-MOST, MOST).astype(np.int16)
