"""Drawn scenes: the same from any number of processes, boxes tight, counts and shares as promised."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

import objcrop.sample_scenes as sample_scenes
from objcrop.errors import UsageError
from objcrop.formats import index
from objcrop.sample_backgrounds import wallpaper
from objcrop.sample_scenes import CLASSES, SceneKind, draw_scene, draw_scenes


def test_same_scenes_from_any_number_of_workers(tmp_path):
    draw_scenes(tmp_path / "one", 6, seed=3, kind=SceneKind((160, 120)), workers=1)
    draw_scenes(tmp_path / "two", 6, seed=3, kind=SceneKind((160, 120)), workers=2)
    names = sorted(p.relative_to(tmp_path / "one") for p in (tmp_path / "one").rglob("*") if p.is_file())
    assert len(names) == 7
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_scene_is_a_function_of_seed_and_index():
    one, again, other = draw_scene(1, 5), draw_scene(1, 5), draw_scene(2, 5)
    assert np.array_equal(one[0], again[0]) and np.array_equal(one[1], again[1])
    assert one[0].shape != other[0].shape or not np.array_equal(one[0], other[0])


def test_catalog_of_scenes_has_what_was_drawn(tmp_path):
    draw_scenes(tmp_path, 8, seed=1, kind=SceneKind((200, 150), 6))
    catalog, report = index(tmp_path, "scenes", verify=True)
    assert catalog.classes == list(CLASSES[:6]) and len(catalog) == 8
    assert report.clipped == report.dropped_boxes == 0 and report.left_out == []
    for row in range(8):
        image, boxes, labels, _ = draw_scene(1, row, SceneKind((200, 150), 6))
        truth = catalog.annotations(row)
        assert truth.boxes.tolist() == boxes.tolist() and truth.classes.tolist() == labels.tolist()
        stored = np.asarray(Image.open(catalog.path(row)))
        assert stored.shape == image.shape
        assert np.abs(stored.astype(int) - image).mean() < 8  # JPEG, quality 88
    sizes = {(p["width"], p["height"]) for p in json.loads((tmp_path / "instances.json").read_text())["images"]}
    assert sizes <= {(200, 150), (150, 200)}


@pytest.mark.parametrize("kind", [SceneKind(), SceneKind(wallpaper=True)], ids=["photos", "wallpaper"])
def test_boxes_are_tight_around_what_shows(kind, monkeypatch):
    """Each object is painted in a colour of its own on black: the picture itself then says where it shows."""
    number = iter(())

    def paint(rng, image, patch, alpha, second):
        image[patch][alpha > 0.5] = next(number)

    for behind in ("themed_background", "wallpaper"):
        monkeypatch.setattr(sample_scenes, behind, lambda rng, w, h, *hue: np.zeros((h, w, 3), np.uint8))
    monkeypatch.setattr(sample_scenes, "draw_clutter", lambda rng, image: None)
    monkeypatch.setattr(sample_scenes, "_paint", paint)
    counts = []
    for scene in range(40):
        number = iter(range(16, 256, 16))  # the grain adds at most 14
        image, boxes, labels, visible = draw_scene(0, scene, kind)
        counts.append(len(labels))
        for i, (x0, y0, x1, y1) in enumerate(boxes):
            ys, xs = np.nonzero(image[..., 0] // 16 == i + 1)
            assert (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) == (x0, y0, x1, y1)
            assert visible[i] == len(xs)
    assert min(counts) >= 2 and max(counts) <= 7 and len(set(counts)) > 3


def test_no_object_is_more_hidden_than_promised(monkeypatch):
    areas = []
    place = sample_scenes._place

    def watch(rng, owner, alpha, *more):
        found = place(rng, owner, alpha, *more)
        if found:
            areas.append(int((alpha > 0.5).sum()))
        return found

    monkeypatch.setattr(sample_scenes, "_place", watch)
    hidden = []
    for scene in range(60):
        areas.clear()
        *_, visible = draw_scene(4, scene, SceneKind((200, 150)))
        hidden += (1 - visible / np.array(areas)).tolist()
    assert 0.1 < max(hidden) <= 0.6 and min(hidden) == 0


def test_sizes_and_context():
    scenes = [draw_scene(9, i) for i in range(150)]
    longer = np.concatenate([(b[:, 2:] - b[:, :2]).max(1) for _, b, _, _ in scenes])
    assert 25 <= np.median(longer) <= 110 and longer.max() <= 122
    upright = np.mean([image.shape[0] > image.shape[1] for image, *_ in scenes])
    assert 0.1 < upright < 0.35
    has = np.zeros((150, len(CLASSES)))
    for i, (_, _, labels, _) in enumerate(scenes):
        has[i, labels] = 1
    assert has.sum(0).min() >= 10  # every class comes
    fish, flower, chequer, arrow = (CLASSES.index(name) for name in ("fish", "flower", "chequer", "arrow"))
    together = np.corrcoef(has.T)
    assert together[fish, chequer] < -0.1 and together[flower, arrow] < 0  # themes keep them apart


def test_scenes_of_another_kind(tmp_path):
    """What a kind says holds for every scene."""
    kind = SceneKind(size=(120, 90), classes=6, objects=(1, 3), sides=(0.5, 0.8), tilt=0, themed=False)
    draw_scenes(tmp_path / "other", 40, seed=2, kind=kind)
    catalog, _ = index(tmp_path / "other", "scenes")
    counts = [len(catalog.annotations(row).boxes) for row in range(40)]
    assert min(counts) == 1 and 2 <= max(counts) <= 3
    alone = [row for row in range(40) if counts[row] == 1]
    longer = [np.ptp(catalog.annotations(row).boxes.reshape(2, 2), axis=0).max() / 90 for row in alone]
    assert min(longer) > 0.45 and max(longer) < 0.85
    flat = np.bincount([c for row in range(40) for c in catalog.annotations(row).classes], minlength=6)
    assert flat.min() > 0


def test_wallpaper_is_a_scenes_own(monkeypatch):
    """Behind the objects is a pattern of two colours and nothing else, the same again, and no two of them alike."""
    drawn = []

    def watch(rng, width, height):
        drawn.append(wallpaper(rng, width, height))
        return drawn[-1].copy()

    monkeypatch.setattr(sample_scenes, "wallpaper", watch)
    monkeypatch.setattr(sample_scenes, "_paint", lambda *_: None)
    kind = SceneKind(size=(96, 64), wallpaper=True)
    for number in (*range(12), 0):
        image, boxes, *_ = draw_scene(5, number, kind)
        grain = image.astype(int) - drawn[-1]
        assert len(boxes) >= 2 and grain.min() >= 0 and grain.max() <= 14
        colours = drawn[-1].reshape(-1, 3).astype(float)
        assert np.linalg.svd(colours - colours.mean(0), compute_uv=False)[1] < len(colours) ** 0.5  # on one line
    assert np.array_equal(drawn[0], drawn.pop())
    shapes = [(image.shape, image.tobytes()) for image in drawn]
    assert len(set(shapes)) == 12


@pytest.mark.parametrize(
    "bad, says",
    [
        (dict(classes=1), "size=.500, 375. and classes=1;"),
        (dict(classes=11), "classes=11;"),
        (dict(size=(500, 20)), "size=.500, 20. and"),
        (dict(objects=(0, 2)), "objects="),
        (dict(objects=(3, 2)), "objects="),
        (dict(sides=(0.5, 0.2)), "sides="),
        (dict(sides=(0, 1)), "sides="),
    ],
)
def test_wrong_kinds(bad, says):
    with pytest.raises(UsageError, match=f"scenes were asked for with .*{says}"):
        SceneKind(**bad)


@pytest.mark.parametrize("bad", [dict(n=0), dict(workers=-1), dict(seed=-1)])
def test_wrong_options(tmp_path, bad):
    with pytest.raises(UsageError, match=r"draw_scenes got|seed is -1"):
        draw_scenes(tmp_path, **({"n": 3} | bad))


def test_masks_are_what_shows_of_each_object(tmp_path):
    draw_scenes(tmp_path / "with", 4, seed=2, kind=SceneKind((160, 120)), masks=True)
    draw_scenes(tmp_path / "without", 4, seed=2, kind=SceneKind((160, 120)))
    catalog, report = index(tmp_path / "with", "scenes", strict=True)
    assert report.boxes > 8 and set(index(tmp_path / "without", "scenes")[0].masks(0)) == {None}
    for row in range(4):
        name = f"{row:05d}.jpg"
        drawn = [(tmp_path / folder / "images" / name).read_bytes() for folder in ("with", "without")]
        assert drawn[0] == drawn[1]
        _, boxes, _, visible = draw_scene(2, row, SceneKind((160, 120)))
        masks = [coco_mask.decode({**m, "counts": m["counts"].encode()}) for m in catalog.masks(row)]
        assert max(sum(masks).flat) == 1 and [int(mask.sum()) for mask in masks] == visible.tolist()
        for mask, box in zip(masks, boxes.tolist(), strict=True):
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            assert box == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]


def test_a_program_that_processes_cannot_begin_again_from_is_told_so(tmp_path):
    program = f"from objcrop.sample_scenes import draw_scenes; draw_scenes({str(tmp_path / 'a')!r}, 2, workers=2)"
    run = subprocess.run([sys.executable, "-"], input=program, capture_output=True, text=True)
    assert run.returncode and "give workers=1" in run.stderr.splitlines()[-1]
