"""Drawn scenes with several small objects and exact boxes: data for trying everything out without a download.

A scene has a theme, which makes some classes and some backgrounds likelier than others, so that context tells something
about the objects, as in photographs. Every scene is a function of (seed, index) alone.
"""

from __future__ import annotations

import json
import math
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from objcrop.errors import ObjcropError, UsageError
from objcrop.extras import from_extra, require
from objcrop.option_value import seed_of
from objcrop.progress import tracked
from objcrop.sample_backgrounds import (
    Picture,
    Plane,
    draw_clutter,
    random_colour,
    smooth_noise,
    themed_background,
    wallpaper,
)
from objcrop.whole_file import whole_file

# fmt: off
CLASSES = (
    "disc", "ring", "star", "cross", "striped-square", "triangle", "fish", "flower", "arrow", "chequer",
)
# How often each class comes in each theme, and the hue (degrees) the background tends to.
THEMES: tuple[tuple[tuple[int, ...], int], ...] = (
    ((2, 3, 2, 1, 0, 1, 9, 1, 1, 0), 210),     # water
    ((2, 1, 1, 1, 1, 3, 1, 9, 0, 0), 110),     # meadow
    ((1, 2, 1, 4, 5, 2, 0, 0, 6, 3), 30),      # street
    ((3, 4, 6, 1, 1, 1, 0, 1, 1, 2), 265),     # night
    ((4, 1, 1, 2, 4, 2, 1, 1, 1, 6), 0),       # games
)
# fmt: on
JPEG_QUALITY = 88
MOST_HIDDEN = 0.6

Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class SceneKind:
    """What drawn scenes are like; as it stands, photos of several small objects.

    Objects are placed so that none is more than 60 % hidden by others.

    Attributes:
        size: (width, height) in pixels, at least 64 each; one scene in five is upright.
        classes: the first so many of `CLASSES`, 2 to 10.
        objects: fewest and most of a scene; one that finds no place is left out.
        sides: smallest and largest longer side of an object, shares of the scene's shorter side.
        tilt: degrees that an object is turned by at most, to either side; None for any.
        themed: whether a scene's theme makes some classes likelier than others.
        wallpaper: whether behind the objects is a pattern that no other scene has, and nothing else, so that the
            background alone tells scenes apart; else what the theme has there, with lines and blobs of no class.

    Raises:
        UsageError: one of them is out of range.
    """

    size: tuple[int, int] = (500, 375)
    classes: int = 10
    objects: tuple[int, int] = (2, 7)
    sides: tuple[float, float] = (0.08, 0.32)
    tilt: float | None = None
    themed: bool = True
    wallpaper: bool = False

    def __post_init__(self) -> None:
        if min(self.size) < 64 or not 2 <= self.classes <= len(CLASSES):
            raise UsageError(
                f"scenes were asked for with size={self.size} and classes={self.classes}; sides must be 64 at least, "
                f"classes 2 to {len(CLASSES)}."
            )
        if not (1 <= self.objects[0] <= self.objects[1] <= 200 and 0 < self.sides[0] <= self.sides[1] < 1):
            raise UsageError(
                f"scenes were asked for with objects={self.objects} and sides={self.sides}; these are pairs that rise, "
                "objects within 1 to 200, sides within 0 to 1."
            )


AS_PHOTOS = SceneKind()


def draw_scenes(
    folder: str | os.PathLike[str],
    n: int,
    seed: int = 0,
    kind: SceneKind = AS_PHOTOS,
    workers: int | None = None,
    masks: bool = False,
) -> None:
    """Draw `n` scenes into `folder`: images/00000.jpg and so on, and last of all instances.json (COCO's format).

    Boxes are tight around what is visible of an object.

    Args:
        folder: made if it is not there; scenes of the same numbers are overwritten.
        n: number of scenes, at least 1.
        seed: 0 to 2**64 - 1; scenes depend on (seed, index) only, neither on `n` nor on `workers`.
        kind: what the scenes are like.
        workers: processes; all cores for 200 scenes and more when left out, else this process alone.
        masks: whether instances.json holds the visible pixels of each object too, as RLE.

    Raises:
        UsageError: an option is out of range, or OpenCV is missing.
        ObjcropError: the folder cannot be written.
    """
    if n < 1 or (workers or 0) < 0:
        raise UsageError(f"draw_scenes got n={n} and workers={workers}; it needs n >= 1 and workers >= 0.")
    require("cv2")
    seed = seed_of(seed)
    images = os.path.join(folder, "images")
    try:
        os.makedirs(images, exist_ok=True)
    except OSError as error:
        raise ObjcropError(f"{images} cannot be made ({error.strerror}); choose another folder.") from error
    if workers is None:
        workers = (os.cpu_count() or 1) if n >= 200 else 1
    write = partial(_write_scene, images, seed, kind, masks)
    with ExitStack() as stack:
        if workers > 1:
            spawn = multiprocessing.get_context("spawn")
            pool = stack.enter_context(ProcessPoolExecutor(min(workers, n), mp_context=spawn))
            scenes: Iterator[Any] = pool.map(write, range(n), chunksize=16)
        else:
            scenes = map(write, range(n))
        try:
            drawn = list(tracked(scenes, n, "drawing scenes"))
        except BrokenProcessPool:
            raise ObjcropError(
                "a process that drew scenes ended: if memory ran out, draw fewer at once; if your program is no file, "
                'or has no `if __name__ == "__main__":`, give workers=1.'
            ) from None
    _write_instances(os.path.join(folder, "instances.json"), drawn, kind.classes, seed)


def draw_scene(
    seed: int, index: int, kind: SceneKind = AS_PHOTOS
) -> tuple[Picture, npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Draw one scene.

    Args:
        seed: the set's seed.
        index: the scene's number in the set.
        kind: what the scene is like.

    Returns:
        image uint8 (H, W, 3) RGB; boxes int64 (k, 4) x0,y0,x1,y1 half-open, tight around the visible pixels; classes
        int64 (k,); visible int64 (k,) visible pixels of each object.
    """
    image, owner, boxes, labels = _draw(seed, index, kind)
    return image, boxes, labels, np.bincount(owner.reshape(-1), minlength=len(labels) + 1)[1:]


def _draw(
    seed: int, index: int, kind: SceneKind
) -> tuple[Picture, Picture, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return a scene's image, which object (from 1) each pixel shows (H, W), and the objects' boxes and classes."""
    cv2 = from_extra("cv2")

    rng = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64)))
    width, height = kind.size if rng.random() < 0.8 else kind.size[::-1]
    shorter = min(kind.size)
    weights, hue = THEMES[rng.integers(len(THEMES))]
    chances = np.array(weights[: kind.classes], float) + 0.05 if kind.themed else np.ones(kind.classes)
    if kind.wallpaper:
        image = wallpaper(rng, width, height)
    else:
        image = themed_background(rng, width, height, hue)
        draw_clutter(rng, image)

    owner = np.zeros((height, width), np.uint8)  # the object each pixel shows, counted from 1
    areas = np.zeros(0, np.int64)
    shown = np.zeros(0, np.int64)
    patches: list[tuple[slice, slice]] = []
    labels: list[int] = []
    wanted = int(rng.integers(kind.objects[0], kind.objects[1] + 1))
    for attempt in range(60):
        if len(labels) == wanted:
            break
        label = int(rng.choice(kind.classes, p=chances / chances.sum()))
        side = int(shorter * rng.uniform(*kind.sides) * (1.0 if attempt < 40 else 0.5))
        alpha, paint = _object(rng, CLASSES[label], max(side, 12), kind.tilt)
        found = _place(rng, owner, alpha, areas, shown)
        if found is None:
            continue
        patch, covered = found
        _paint(rng, image, patch, alpha, paint)
        labels.append(label)
        patches.append(patch)
        owner[patch][alpha > 0.5] = len(labels)
        area = np.count_nonzero(alpha > 0.5)
        areas, shown = np.append(areas, area), np.append(shown - covered, area)

    grain = np.frombuffer(rng.bytes(width * height), np.uint8).reshape(height, width) % np.uint8(rng.integers(1, 16))
    image = cv2.add(image, cv2.merge((grain, grain, grain)))
    boxes = [_visible_box(owner, patch, i) for i, patch in enumerate(patches, 1)]
    return image, owner, np.array(boxes, np.int64).reshape(-1, 4), np.array(labels, np.int64)


def _write_scene(folder: str, seed: int, kind: SceneKind, masks: bool, index: int) -> tuple[Any, ...]:
    cv2 = from_extra("cv2")

    cv2.setNumThreads(1)
    image, owner, boxes, labels = _draw(seed, index, kind)
    name = f"{index:05d}.jpg"
    _, data = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    with open(os.path.join(folder, name), "wb") as stream:
        stream.write(data.tobytes())
    visible = [owner == i for i in range(1, len(labels) + 1)]
    areas = [int(np.count_nonzero(pixels)) for pixels in visible]
    rles = [_rle(pixels) if masks else None for pixels in visible]
    return name, image.shape[1], image.shape[0], boxes.tolist(), labels.tolist(), areas, rles


def _rle(mask: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask (H, W) as COCO has it: lengths of runs down the columns, the first of pixels outside."""
    flat = np.concatenate([[False], mask.reshape(-1, order="F")])
    changes = np.flatnonzero(np.diff(flat))
    counts = np.diff(np.concatenate([[0], changes, [mask.size]]))
    return {"size": list(mask.shape), "counts": counts.tolist()}


def _write_instances(file: str, drawn: list[Any], classes: int, seed: int) -> None:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, width, height, boxes, labels, areas, rles) in enumerate(drawn, 1):
        images.append({"id": number, "file_name": name, "width": width, "height": height})
        for (x0, y0, x1, y1), label, area, rle in zip(boxes, labels, areas, rles):
            place = {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": area, "iscrowd": 0}
            place |= {} if rle is None else {"segmentation": rle}
            annotations.append({"id": len(annotations) + 1, "image_id": number, "category_id": label + 1} | place)
    categories = [{"id": c, "name": name} for c, name in enumerate(CLASSES[:classes], 1)]
    content: dict[str, Any] = {"info": {"description": f"objcrop sample scenes, seed {seed}"}, "images": images}
    content |= {"annotations": annotations, "categories": categories}
    with whole_file(file) as part, part.open("w", encoding="utf-8") as stream:
        json.dump(content, stream)


def _ellipse(rx: float, ry: float, cx: float = 0.0, cy: float = 0.0) -> Points:
    angle = np.linspace(0, 2 * math.pi, 33)[:-1]
    return np.stack((cx + rx * np.cos(angle), cy + ry * np.sin(angle)), 1)


def _square(x0: float, y0: float, x1: float, y1: float) -> Points:
    return np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)])


def _outline(rng: np.random.Generator, name: str) -> list[tuple[Points, int]]:
    """Return a class's shape: polygons in -1..1, drawn in turn with paint 1 or 2 (its colours) or 0 (a hole)."""
    if name == "disc":
        return [(_ellipse(1, 1), 1)]
    if name == "ring":
        inner = rng.uniform(0.45, 0.7)
        return [(_ellipse(1, 1), 1), (_ellipse(inner, inner), 0)]
    if name == "star":
        radius = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.36, 0.48))
        angle = np.arange(10) * math.pi / 5
        return [(np.stack((np.cos(angle), np.sin(angle)), 1) * radius[:, None], 1)]
    if name == "cross":
        arm = rng.uniform(0.22, 0.38)
        return [(_square(-1, -arm, 1, arm), 1), (_square(-arm, -1, arm, 1), 1)]
    if name == "striped-square":
        edges = np.linspace(-0.85, 0.85, 2 * int(rng.integers(3, 5)))
        stripes = [(_square(a, -0.85, b, 0.85), 2) for a, b in zip(edges[1::2], edges[2::2])]
        return [(_square(-0.85, -0.85, 0.85, 0.85), 1), *stripes]
    if name == "triangle":
        return [(np.array([(0, -1), (0.9, 0.75), (-0.9, 0.75)]), 1)]
    if name == "fish":
        tail = np.array([(-0.35, 0), (-1, -0.5), (-0.85, 0), (-1, 0.5)])
        fin = np.array([(0.35, -0.2), (-0.15, -0.65), (-0.2, -0.2)])
        return [(tail, 2), (fin, 2), (_ellipse(0.7, 0.4, 0.25), 1), (_ellipse(0.08, 0.08, 0.65, -0.1), 2)]
    if name == "flower":
        turns = np.linspace(0, 2 * math.pi, int(rng.integers(5, 8)), endpoint=False)
        petals = [_ellipse(0.4, 0.4, 0.6 * math.cos(turn), 0.6 * math.sin(turn)) for turn in turns]
        return [*((petal, 1) for petal in petals), (_ellipse(0.3, 0.3), 2)]
    if name == "arrow":
        shaft = rng.uniform(0.14, 0.28)
        head = [(0.2, -0.65), (1, 0), (0.2, 0.65)]
        return [(np.array([(-1, -shaft), (0.2, -shaft), *head, (0.2, shaft), (-1, shaft)]), 1)]
    cells = int(rng.integers(3, 5))  # chequer
    edges = np.linspace(-0.85, 0.85, cells + 1)
    pairs = [(i, j) for i in range(cells) for j in range(cells) if (i + j) % 2]
    fields = [(_square(edges[i], edges[j], edges[i + 1], edges[j + 1]), 2) for i, j in pairs]
    return [(_square(-0.85, -0.85, 0.85, 0.85), 1), *fields]


def _object(rng: np.random.Generator, name: str, side: int, tilt: float | None) -> tuple[Plane, Plane]:
    """Return an object's alpha (h, w) and its second colour's share (h, w), both 0..1; `side` is its longer side."""
    cv2 = from_extra("cv2")

    turn = rng.uniform(0, 2 * math.pi) if tilt is None else math.radians(rng.uniform(-tilt, tilt))
    squeeze = rng.uniform(0.75, 1.0)
    shear = rng.uniform(-0.2, 0.2)
    cos, sin = math.cos(turn), math.sin(turn)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1.0, shear], [0.0, squeeze]])
    shapes = [(points @ matrix.T, paint) for points, paint in _outline(rng, name)]
    everything = np.concatenate([points for points, _ in shapes])
    low, span = everything.min(0), np.ptp(everything, 0)
    scale = 2 * side / span.max()  # drawn at twice the size, then averaged: soft edges
    width, height = (max(4, 2 * math.ceil(extent * scale / 2)) for extent in span)
    painted = np.zeros((height, width), np.uint8)
    for points, paint in shapes:
        # cv2 takes pixel centres as whole numbers; four bits of fraction keep the edges where they belong.
        corners = ((points - low) * scale - 0.5) * 16
        cv2.fillPoly(painted, [np.round(corners).astype(np.int32)], paint, shift=4)
    half = (width // 2, height // 2)
    alpha = cv2.resize((painted > 0).astype(np.float32), half, interpolation=cv2.INTER_AREA)
    second = cv2.resize((painted == 2).astype(np.float32), half, interpolation=cv2.INTER_AREA)
    return alpha, second / np.maximum(alpha, np.float32(1e-6))


def _place(
    rng: np.random.Generator,
    owner: Picture,
    alpha: Plane,
    areas: npt.NDArray[np.int64],
    shown: npt.NDArray[np.int64],
) -> tuple[tuple[slice, slice], npt.NDArray[np.int64]] | None:
    """Find a place where no earlier object would be hidden by more than `MOST_HIDDEN`; None after ten tries.

    Args:
        rng: the scene's generator.
        owner: (H, W) which object, from 1, each pixel shows.
        alpha: (h, w) cover of the new object.
        areas: (k,) pixels of the earlier objects.
        shown: (k,) how many of them still show.

    Returns:
        The place, and how many pixels of each earlier object the new one hides there (k,).
    """
    height, width = alpha.shape
    solid = alpha > 0.5
    if height >= owner.shape[0] or width >= owner.shape[1]:
        return None
    for _ in range(10):
        top = int(rng.integers(owner.shape[0] - height))
        left = int(rng.integers(owner.shape[1] - width))
        patch = slice(top, top + height), slice(left, left + width)
        covered = np.bincount(owner[patch][solid], minlength=len(areas) + 1)[1:]
        if np.all(shown - covered >= (1 - MOST_HIDDEN) * areas):
            return patch, covered
    return None


def _paint(rng: np.random.Generator, image: Picture, patch: tuple[slice, slice], alpha: Plane, second: Plane) -> None:
    """Paint an object with two colours, texture and shading into `image` at `patch`, in place."""
    cv2 = from_extra("cv2")

    height, width = alpha.shape
    behind = np.array(cv2.mean(image[patch])[:3], np.float32)
    for _ in range(8):  # colours that stand out from what is behind, if a few tries find them
        hue = rng.uniform(0, 360)
        colour = random_colour(rng, hue, (0.2, 1.0), (0.3, 1.0))
        if np.abs(colour - behind).sum() > 120:
            break
    for _ in range(8):
        other = random_colour(rng, hue + rng.uniform(60, 300), (0.0, 1.0), (0.1, 1.0))
        if np.abs(colour - other).sum() > 150:
            break
    turn = rng.uniform(0, 2 * math.pi)
    x = np.linspace(-1, 1, width, dtype=np.float32)[None, :, None]
    y = np.linspace(-1, 1, height, dtype=np.float32)[:, None, None]
    light = 1 + rng.uniform(0, 0.35) * (math.cos(turn) * x + math.sin(turn) * y)
    light += rng.uniform(0, 0.25) * smooth_noise(rng, width, height, int(rng.integers(3, 16)))[..., None]
    surface = (colour + (other - colour) * second[..., None]) * light
    below = image[patch].astype(np.float32)
    image[patch] = below + (surface.clip(0, 255) - below) * alpha[..., None]


def _visible_box(owner: Picture, patch: tuple[slice, slice], number: int) -> tuple[int, int, int, int]:
    """Return the tight box x0,y0,x1,y1 of what the map `owner` (H, W) shows of an object that was drawn in `patch`."""
    shows = owner[patch] == number
    columns, rows = np.flatnonzero(shows.any(0)), np.flatnonzero(shows.any(1))
    top, left = patch[0].start, patch[1].start
    return left + int(columns[0]), top + int(rows[0]), left + int(columns[-1]) + 1, top + int(rows[-1]) + 1
