"""What a run keeps of its detections: figures, the file of results, curves, images of most and of least success."""

import shutil

import numpy as np
import pytest
from PIL import Image

from objcrop.catalog import Catalog
from objcrop.formats import index
from objcrop.sample_scenes import SceneKind, draw_scenes
from objcrop.ssl.transfer.coco_ap import coco_ap
from objcrop.ssl.transfer.detected_sheet import draw_detected, successes
from objcrop.ssl.transfer.detections import Detections
from objcrop.ssl.transfer.judged_detections import judged_detections
from objcrop.ssl.transfer.voc_ap import voc_ap


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, 6, seed=0, kind=SceneKind((96, 72), 3), masks=True)
    return index(folder, "scenes")[0]


def annotated(catalog, seed=0, masks=True):
    """The objects themselves as detections, with scores of chance."""
    truth, row = catalog.all_annotations(), np.repeat(np.arange(len(catalog)), np.diff(catalog.box_offsets))
    shapes = [mask for row in range(len(catalog)) for mask in catalog.masks(row)] if masks else None
    return Detections(row, truth.boxes, np.random.default_rng(seed).random(len(row)), truth.classes, shapes)


@pytest.mark.parametrize("masks", [True, False])
def test_all_figures_and_pictures(scenes, tmp_path, masks):
    found = annotated(scenes, masks=masks)
    figures = judged_detections(scenes, found, tmp_path)
    assert figures["ap"] == coco_ap(scenes, found).figures["ap"] == pytest.approx(1)
    assert figures["voc07_ap50"] == voc_ap(scenes, found)["ap50"] == 1 and figures["voc_per_class"]["star"] == 1
    names = {"detections.json", "precision_recall.png", "detected.png"}
    assert {path.name for path in tmp_path.iterdir()} == (names | {"mask_precision_recall.png"} if masks else names)
    assert ("mask_ap" in figures) == masks
    for picture in tmp_path.glob("*.png"):
        assert min(Image.open(picture).size) > 200
    assert len(Detections.read(tmp_path / "detections.json", scenes)) == len(found)


def test_success_is_the_share_of_objects_that_as_many_detections_find(tmp_path):
    boxes = [[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]]
    about = dict(boxes=boxes, box_rows=[0, 0, 1, 1, 2], box_classes=[0, 1, 0, 0, 0], classes=["cat", "dog"])
    about |= dict(difficult=[False, False, False, True, False])
    catalog = Catalog.build(tmp_path, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], [(40, 20)] * 4, **about)
    found = [
        (0, [0, 0, 10, 10], 0.9, 0),
        (0, [0, 0, 10, 9], 0.8, 0),  # again, in place of the dog, which comes third
        (0, [20, 0, 30, 10], 0.7, 1),
        (1, [20, 0, 30, 10], 0.9, 0),  # a difficult one takes the only place
        (1, [0, 0, 10, 10], 0.8, 0),
        (2, [0, 0, 10, 10], 0.1, 0),
        (3, [0, 0, 10, 10], 0.9, 0),
    ]
    objects, hits = successes(catalog, Detections(*map(list, zip(*[(r, b, s, c) for r, b, s, c in found]))))
    assert objects.tolist() == [2, 1, 1, 0] and hits.tolist() == [1, 0, 1, 0]


def test_the_sheet_shows_what_is_found_where_it_is(scenes, tmp_path):
    """Found as annotated, both halves of a column are the same but for the names; else they are not."""
    empty = Detections([], [], [], [])
    for name, found in (("all", annotated(scenes)), ("none", empty)):
        draw_detected(scenes, found, tmp_path / f"{name}.png")
    every, none = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in ("all", "none"))
    assert every.shape == none.shape
    left, right = (every[34:180, 8 + i * 308 : 308 + i * 308].astype(int) for i in (0, 1))
    assert (np.abs(left - right).max(2) > 8).mean() < 0.08  # the scores beside the names
    left, right = (none[34:180, 8 + i * 308 : 308 + i * 308].astype(int) for i in (0, 1))
    assert (np.abs(left - right).max(2) > 8).mean() > 0.1


def test_bad_images_are_left_out_and_nothing_is_drawn_of_nothing(scenes, tmp_path):
    shutil.copytree(scenes.root, tmp_path / "images")
    for row in range(5):
        (tmp_path / "images" / scenes.key(row)).write_bytes(b"no photo")
    spoilt = Catalog(scenes.table, tmp_path / "images", scenes.classes, scenes.fingerprint)
    draw_detected(spoilt, annotated(scenes), tmp_path / "one.png")
    assert Image.open(tmp_path / "one.png").height < 350
    bare = Catalog.build(scenes.root, scenes.keys(), scenes.sizes, classes=scenes.classes)
    draw_detected(bare, Detections([0], [[0, 0, 9, 9]], [1], [0]), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
