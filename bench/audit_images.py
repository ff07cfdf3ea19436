"""The images of an audit, and what a view of one tells: its window, mirror image, tone, blur and turn of hue.

Even rows are *gauges*: grey, so that saturation and hue leave them alone, and the sum of a random line along x and one
along y, another for every row. The mean over a view's columns is then a piece of the row's own line, whatever the tone,
and the piece that fits best is the window. Odd rows are *swatches*: stripes of four colours on grey. Brightness,
contrast, saturation, blur with grey, they all leave a colour's HSV hue as it is; so what turned it is hue alone.
No value of either leaves 0 to 1 under MoCo-v2's jitter.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from objcrop.kernels.colour_reference import blur_kernel_size
from objcrop.progress import tracked

WIDTH, HEIGHT = 144, 112
SMALLEST = 24  # side of the smallest window that is looked for, pixels
SIGMAS = (0.0, 0.4, 0.8, 1.2, 1.6, 2.0)
HUES = np.array([0.04, 0.29, 0.54, 0.79])  # a quarter of a turn apart: MoCo-v2 turns by a tenth
GREY, CHROMA = 0.38, 0.32
STRIPE, GAP = 10, 6  # pixels


def draw_images(folder: Path, rows: int) -> None:
    """Write 0000.jpg, 0001.jpg, … into a folder."""
    for row in range(rows):
        Image.fromarray(picture(row)).save(folder / f"{row:04d}.jpg", quality=95, subsampling=0)


def picture(row: int) -> NDArray[np.uint8]:
    """Return the image of a row, uint8 (HEIGHT, WIDTH, 3)."""
    if row % 2:
        pixels = np.full((HEIGHT, WIDTH, 3), GREY)
        for stripe, x in enumerate(range(GAP, WIDTH - STRIPE, STRIPE + GAP)):
            pixels[:, x : x + STRIPE] = _colour(HUES[(stripe + row // 2) % len(HUES)])
    else:
        along_x, along_y = _lines(row)
        pixels = np.repeat((0.4 + along_x[None] + along_y[:, None])[..., None], 3, axis=2)
    return np.rint(255 * pixels).astype(np.uint8)


@cache
def _lines(row: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a gauge's lines along x and y, within ±.075: coarse waves tell the place, fine ones are what blur eats."""
    rng = np.random.default_rng(row)
    lines = []
    for n in (WIDTH, HEIGHT):
        line = np.zeros(n)
        for width in (2, 8):
            taps = np.exp(-0.5 * (np.arange(-3 * width, 3 * width + 1) / width) ** 2)
            wave = np.convolve(rng.normal(size=n + 6 * width), taps, "valid")
            line += wave / wave.std()
        line -= line.mean()
        lines.append(0.075 * line / np.abs(line).max())
    return lines[0], lines[1]


def _colour(hue: float) -> NDArray[np.float64]:
    """Return RGB of a hue, turns, with its chroma around the common grey."""
    ramp = np.clip(np.abs((hue * 6 + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    return GREY + CHROMA * (ramp - 0.5)


class Windows(NamedTuple):
    """Every window along one axis: its ends, and where in the line's running sum the ends of its S pixels lie."""

    low: NDArray[np.int64]
    length: NDArray[np.int64]
    at: NDArray[np.int64]
    rest: NDArray[np.float32]


@cache
def _windows(n: int, size: int) -> Windows:
    ends = [(low, length) for length in range(SMALLEST, n + 1) for low in range(n - length + 1)]
    low, length = np.array(ends).T
    edges = low[:, None] + length[:, None] * np.arange(size + 1) / size
    at = np.minimum(edges.astype(np.int64), n - 1)
    return Windows(low, length, at, (edges - at).astype(np.float32))


def _fitting(profiles: NDArray[np.float64], line: NDArray[np.float64]) -> tuple[NDArray, NDArray, NDArray]:
    """Return of N profiles, (N, S), the window of the line that each fits best: low, length, correlation."""
    windows = _windows(len(line), profiles.shape[1])
    total = np.concatenate([[0], np.cumsum(line)]).astype(np.float32)
    pieces = np.diff(total[windows.at] + windows.rest * np.diff(total)[windows.at], axis=1)
    fit = _unit(profiles.astype(np.float32)) @ _unit(pieces).T
    best = fit.argmax(axis=1)
    return windows.low[best], windows.length[best], fit[np.arange(len(best)), best]


def _unit(vectors: NDArray) -> NDArray:
    """Return vectors without their mean, of length 1; zeros where they are flat."""
    centred = vectors - vectors.mean(axis=-1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=-1, keepdims=True), 1e-9)


def read_gauges(views: torch.Tensor, rows: NDArray[np.int64]) -> dict[str, NDArray]:
    """Read views of gauges.

    Args:
        views: float32 (N, 3, S, S), 0 to 1.
        rows: (N,) which gauge each is of.

    Returns:
        Arrays (N,): window x, y, w, h (pixels of the image), mirrored, fit (correlation; 1 where the view is of its
        row), brightness and contrast (factors), sigma (of the blur, one of SIGMAS, pixels of the view).
    """
    grey = views.mean(1).double().numpy()
    found = {name: np.zeros(len(rows)) for name in ("x", "y", "w", "h", "mirrored", "fit")}
    gauges = np.unique(rows)
    for row in tracked(gauges, len(gauges), "reading gauges"):
        these = np.flatnonzero(rows == row)
        along_x, along_y = _lines(int(row))
        profiles = grey[these].mean(1)
        straight, mirrored = _fitting(profiles, along_x), _fitting(profiles[:, ::-1], along_x)
        turned = mirrored[2] > straight[2]
        x, w, fit_x = (np.where(turned, m, s) for m, s in zip(mirrored, straight))
        y, h, fit_y = _fitting(grey[these].mean(2), along_y)
        for name, values in zip(found, (x, y, w, h, turned, np.minimum(fit_x, fit_y))):
            found[name][these] = values
    return found | _tones(views.mean(1), rows, found)


def _tones(grey: torch.Tensor, rows: NDArray[np.int64], found: dict[str, NDArray]) -> dict[str, NDArray]:
    """Return brightness, contrast and sigma, by the likeness to the window as torchvision resizes and blurs it."""
    from torchvision.transforms.v2 import functional as tv

    size = grey.shape[-1]
    crops = []
    for row, x, y, w, h, mirrored in zip(rows, *(found[name] for name in ("x", "y", "w", "h", "mirrored"))):
        image = torch.from_numpy(picture(int(row))[..., 0]).float()[None] / 255
        crop = tv.resized_crop(image, int(y), int(x), int(h), int(w), [size, size], antialias=True)
        crops.append(crop.flip(-1) if mirrored else crop)
    crop = torch.stack(crops)  # N, 1, S, S
    side = blur_kernel_size(size)
    blurred = [crop if s == 0 else tv.gaussian_blur(crop, [side, side], [s, s]) for s in SIGMAS]
    flat = torch.stack(blurred)[:, :, 0].flatten(2).double().numpy()  # sigmas, N, S²
    seen = grey.flatten(1).double().numpy()
    best = (_unit(flat) * _unit(seen)).sum(-1).argmax(0)
    like = flat[best, np.arange(len(best))]
    centred = like - like.mean(1, keepdims=True)
    slope = (centred * seen).sum(1) / (centred**2).sum(1)
    brightness = seen.mean(1) / like.mean(1)
    contrast = slope / np.maximum(brightness, 1e-9)
    return {"brightness": brightness, "contrast": contrast, "sigma": np.array(SIGMAS)[best]}


def read_swatches(views: torch.Tensor) -> dict[str, NDArray]:
    """Read views of swatches.

    Args:
        views: float32 (N, 3, S, S), 0 to 1.

    Returns:
        Arrays (N,): chroma (that of the stripes, as a factor), hue (turns) and uneven (turns between the colour whose
        hue was turned most and the one turned least); all are NaN in a grey view.
    """
    found = np.full((len(views), 3), np.nan)
    for n, view in enumerate(views.double().numpy()):
        chroma = np.ptp(view, axis=0)
        most = np.quantile(chroma, 0.9)
        if most < 0.02:
            continue
        strong = chroma > 0.6 * most  # what lies between stripes has their hue, but of few bits
        hue = _hue(view[:, strong])
        away = (hue[None] - HUES[:, None] + 0.5) % 1 - 0.5  # colours, pixels
        colour = np.abs(away).argmin(0)
        turns = [np.median(away[k, colour == k]) for k in range(len(HUES)) if (colour == k).mean() > 0.03]
        found[n] = most / CHROMA, np.median(turns), np.ptp(turns) if len(turns) > 1 else np.nan
    return dict(zip(("chroma", "hue", "uneven"), found.T))


def _hue(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return HSV's hue, turns, of colours (3, N) that are not grey."""
    r, g, b = rgb
    high, spread = rgb.max(0), np.maximum(rgb.max(0) - rgb.min(0), 1e-9)
    sixths = np.where(high == r, (g - b) / spread, np.where(high == g, 2 + (b - r) / spread, 4 + (r - g) / spread))
    return sixths / 6 % 1
