"""What is behind the objects of drawn scenes, and the colours and noise that it and they are painted with."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from objcrop.extras import from_extra

# What OpenCV returns has no exact type: a picture is uint8 (H, W, 3) or (H, W), a plane float32 (H, W).
Picture = npt.NDArray[Any]
Plane = npt.NDArray[Any]


def random_colour(
    rng: np.random.Generator, hue: float, saturation: tuple[float, float], value: tuple[float, float]
) -> Plane:
    """Return an RGB colour, float32 (3,) in 0..255, of the given hue (degrees) and ranges."""
    s, v = rng.uniform(*saturation), rng.uniform(*value)
    sector = (hue / 60 + np.array([5, 3, 1])) % 6
    return np.asarray(255 * v * (1 - s * np.minimum(sector, 4 - sector).clip(0, 1)), np.float32)


def smooth_noise(rng: np.random.Generator, width: int, height: int, cell: int) -> Plane:
    """Return smooth noise in about -1..1, float32 (height, width), with blotches of about `cell` pixels."""
    cv2 = from_extra("cv2")

    grid = rng.uniform(-1, 1, (height // cell + 3, width // cell + 3)).astype(np.float32)
    return cv2.resize(grid, (width, height), interpolation=cv2.INTER_LINEAR if cell < 10 else cv2.INTER_CUBIC)


def themed_background(rng: np.random.Generator, width: int, height: int, hue: float) -> Picture:
    """Return a gradient of two kindred colours with noise, stripes or blotches over it, uint8 (H, W, 3)."""
    near = hue + rng.normal(0, 30)
    first = random_colour(rng, near, (0.05, 0.6), (0.25, 0.9))
    second = random_colour(rng, near + rng.normal(0, 40), (0.05, 0.6), (0.25, 0.9))
    turn = rng.uniform(0, 2 * math.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)[None, :]
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    blend = 0.5 + 0.7 * (math.cos(turn) * x + math.sin(turn) * y)
    kind = rng.integers(4)
    if kind == 1:  # blotches
        blend += rng.uniform(0.3, 0.9) * smooth_noise(rng, width, height, int(rng.integers(20, 90)))
    elif kind == 2:  # stripes
        across = rng.uniform(0, math.pi)
        period = rng.uniform(12, 70)
        phase = 2 * math.pi / period * (math.cos(across) * x * width + math.sin(across) * y * height)
        blend += rng.uniform(0.1, 0.4) * np.sin(phase)
    elif kind == 3:  # grass, water, gravel
        for cell in (rng.integers(3, 8), rng.integers(10, 30)):
            blend += rng.uniform(0.1, 0.35) * smooth_noise(rng, width, height, int(cell))
    return _between(first, second, blend)


def wallpaper(rng: np.random.Generator, width: int, height: int) -> Picture:
    """Return two waves, smooth or striped, of random direction and period in two random colours, uint8 (H, W, 3)."""
    shorter = min(width, height)
    x = np.arange(width, dtype=np.float32)[None, :] / shorter
    y = np.arange(height, dtype=np.float32)[:, None] / shorter
    blend = np.full((height, width), 0.5, np.float32)
    for strength in (0.35, 0.25):
        across, waves = rng.uniform(0, math.pi), math.exp(rng.uniform(math.log(2), math.log(16)))
        wave = np.sin(2 * math.pi * (waves * (math.cos(across) * x + math.sin(across) * y) + rng.random()))
        blend += strength * (np.sign(wave) if rng.random() < 0.5 else wave)
    first = random_colour(rng, rng.uniform(0, 360), (0.05, 0.9), (0.1, 0.9))
    second = random_colour(rng, rng.uniform(0, 360), (0.05, 0.9), (0.3, 1.0))
    return _between(first, second, blend)


def _between(first: Plane, second: Plane, blend: Plane) -> Picture:
    """Return pixels between two colours, uint8 (H, W, 3): the first up to `blend` 0, the second from 1 on."""
    cv2 = from_extra("cv2")

    step = np.linspace(0, 1, 256, dtype=np.float32)[:, None]
    colours = (first + (second - first) * step).astype(np.uint8)
    # convertScaleAbs would mirror what is below 0, hence the maximum.
    return cv2.applyColorMap(cv2.convertScaleAbs(np.maximum(blend, 0), alpha=255), colours[:, None])


def draw_clutter(rng: np.random.Generator, image: Picture) -> None:
    """Draw lines and blobs that belong to no class over the background, in place."""
    cv2 = from_extra("cv2")

    height, width = image.shape[:2]

    def point() -> tuple[int, int]:
        return int(rng.integers(width)), int(rng.integers(height))

    for _ in range(rng.integers(0, 6)):
        colour = random_colour(rng, rng.uniform(0, 360), (0, 0.7), (0.15, 0.95)).tolist()
        cv2.line(image, point(), point(), colour, int(rng.integers(1, 5)))
    for _ in range(rng.integers(0, 6)):
        colour = random_colour(rng, rng.uniform(0, 360), (0, 0.7), (0.15, 0.95)).tolist()
        angle = np.sort(rng.uniform(0, 2 * math.pi, 9))
        radius = min(width, height) * rng.uniform(0.02, 0.12) * rng.uniform(0.3, 1.0, 9)
        blob = np.stack((np.cos(angle), np.sin(angle)), 1) * radius[:, None] + point()
        cv2.fillPoly(image, [blob.astype(np.int32)], colour)
