"""COCO's figures are those of pycocotools, run directly on a file of annotations and a file of detections."""

import contextlib
import io
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.sample_scenes import SceneKind, draw_scenes
from objcrop.ssl.transfer.coco_ap import FIGURES, coco_ap
from objcrop.ssl.transfer.detections import Detections

DATA = os.environ.get("OBJCROP_TEST_DATA", "")


def moved(catalog, seed, masks=False):
    """Detections as a middling detector makes them: most objects moved a little, some twice, some of another class."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(len(catalog)):
        truth, size = catalog.annotations(row), catalog.sizes[row]
        for box, label in [*zip(truth.boxes, truth.classes)] * 2:
            if rng.random() < 0.6:
                shift = rng.normal(0, 0.06, 4) * np.tile(box[2:] - box[:2], 2)
                x0, y0, x1, y1 = np.clip(box + shift, 0, np.tile(size, 2)).tolist()
                label = label if rng.random() < 0.85 else rng.integers(len(catalog.classes))
                score = np.float32(rng.integers(1, 40) / 40)  # many of the same
                found.append((row, (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), score, label))
    row, boxes, scores, labels = map(np.array, zip(*found))
    shapes = None
    if masks:
        shapes = []
        for image, (x0, y0, x1, y1) in zip(row, boxes):
            pixels = np.zeros(catalog.sizes[image][::-1], np.uint8, order="F")
            pixels[round(y0) : round(y1) + 1, round(x0) : round(x1) + 1] = 1
            shapes.append(coco_mask.encode(pixels))
    return Detections(row, boxes, scores, labels, shapes)


def directly(annotations, detections, kind):
    """Return the 12 figures, and the AP of each category in the order of the ids."""
    with contextlib.redirect_stdout(io.StringIO()):
        theirs = COCO(str(annotations))
        judged = COCOeval(theirs, theirs.loadRes(str(detections)), kind)
        judged.evaluate()
        judged.accumulate()
        judged.summarize()
    of_each = judged.eval["precision"][:, :, :, 0, 2]
    return judged.stats, [p[p > -1].mean() if (p > -1).any() else -1 for p in np.moveaxis(of_each, 2, 0)]


def told(judged):
    figures = [judged.figures[name] for name in FIGURES]
    return [[-1 if f is None else f for f in some] for some in (figures, judged.figures["per_class"].values())]


@pytest.mark.skipif(not DATA, reason="needs OBJCROP_TEST_DATA")
def test_boxes_of_photos_are_judged_as_pycocotools_judges_the_files(tmp_path):
    """Photos without masks: the areas are those of boxes, in the file too, which has four crowds."""
    content = json.loads(Path(f"{DATA}/coco_mini/instances.json").read_text())
    for one in content["annotations"]:
        one["area"] = one["bbox"][2] * one["bbox"][3]
    (tmp_path / "i.json").write_text(json.dumps(content))
    catalog, _ = index(f"{DATA}/coco_mini", "coco")
    found = moved(catalog, 0)
    found.save(tmp_path / "d.json", catalog)
    judged = coco_ap(catalog, found)
    for ours, theirs in zip(told(judged), directly(tmp_path / "i.json", tmp_path / "d.json", "bbox")):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert 0.2 < judged.figures["ap"] < 0.8 and sum(catalog.all_annotations().crowd) == 4
    again = coco_ap(catalog, Detections.read(tmp_path / "d.json", catalog))
    assert told(again) == told(judged)


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    """Drawn scenes with masks, one object of which is a crowd, and one image has none."""
    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder, 9, seed=3, kind=SceneKind((200, 150), 4), masks=True)
    content = json.loads((folder / "instances.json").read_text())
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != content["images"][4]["id"]]
    content["annotations"][1]["iscrowd"] = 1
    # Which of COCO's annotations are polygons, whose areas are not those of pixels.
    theirs = COCO()
    theirs.dataset = content
    with contextlib.redirect_stdout(io.StringIO()):
        theirs.createIndex()
    for one in content["annotations"]:
        one["area"] = float(coco_mask.area(theirs.annToRLE(one)))
    (folder / "instances.json").write_text(json.dumps(content))
    return folder, index(folder, "scenes")[0]


@pytest.mark.parametrize(("of", "kind"), [("boxes", "bbox"), ("masks", "segm")])
def test_masks_are_judged_as_pycocotools_judges_the_files(scenes, tmp_path, of, kind):
    folder, catalog = scenes
    found = moved(catalog, zlib.crc32(of.encode()), masks=True)
    ids = {one["file_name"]: one["id"] for one in json.loads((folder / "instances.json").read_text())["images"]}
    entries = []
    for i in range(len(found)):  # written here, so that nothing of ours is between; of masks alone, since
        x0, y0, x1, y1 = found.boxes[i].tolist()  # pycocotools takes areas from boxes that it is given
        image = ids[catalog.key(found.row[i])]
        one = {"image_id": image, "category_id": int(found.labels[i]) + 1, "score": float(found.scores[i])}
        entries.append(
            one | ({"bbox": [x0, y0, x1 - x0, y1 - y0]} if of == "boxes" else {"segmentation": found.masks[i]})
        )
    (tmp_path / "d.json").write_text(json.dumps(entries))
    judged = coco_ap(catalog, found, of)
    for ours, theirs in zip(told(judged), directly(folder / "instances.json", tmp_path / "d.json", kind)):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    assert 0.1 < judged.figures["ap50"] < 0.9 and judged.figures["ap_medium"] is not None
    assert judged.precision.shape == (10, 101, 4) and np.nanmean(judged.precision[0]) == pytest.approx(
        judged.figures["ap50"]
    )


def test_nothing_found_is_nought_and_nothing_there_is_none(tmp_path, capfd):
    (tmp_path / "photos").mkdir()
    about = dict(boxes=[[0, 0, 40, 40]], box_rows=[0], box_classes=[1], classes=["cat", "dog"])
    catalog = Catalog.build(tmp_path / "photos", ["a.jpg", "b.jpg"], [(60, 40)] * 2, **about)
    none = coco_ap(catalog, Detections([], [], [], [])).figures
    assert none["ap"] == none["ar100"] == 0 and none["ap_small"] is None
    assert none["per_class"] == {"cat": None, "dog": 0}
    found = coco_ap(catalog, Detections([0, 1], [[0, 0, 40, 40]] * 2, [0.5, 0.9], [1, 1])).figures
    assert found["ap"] == pytest.approx(0.5)
    assert capfd.readouterr().out == ""
    with pytest.raises(ObjcropError, match="have no masks"):
        coco_ap(catalog, Detections([], [], [], []), "masks")
    with pytest.raises(ObjcropError, match="row 2"):
        coco_ap(catalog, Detections([2], [[0, 0, 1, 1]], [1], [0]))


def test_an_object_without_a_mask_is_neither_found_nor_missed(tmp_path):
    """Of two objects one has a mask; what is found where the other lies is not judged."""
    (tmp_path / "photos").mkdir()
    masks = []
    for x0 in (0, 30):
        pixels = np.zeros((40, 60), np.uint8, order="F")
        pixels[:, x0 : x0 + 30] = 1
        masks.append(coco_mask.encode(pixels))
    text = json.dumps({**masks[0], "counts": masks[0]["counts"].decode()})
    about = dict(boxes=[[0, 0, 30, 40], [30, 0, 60, 40]], box_rows=[0, 0], box_classes=[0, 0], classes=["cat"])
    catalog = Catalog.build(tmp_path / "photos", ["a.jpg"], [(60, 40)], masks=[text, None], **about)
    boxes = [[30, 0, 60, 40], [0, 0, 30, 40]]
    found = coco_ap(catalog, Detections([0, 0], boxes, [0.9, 0.5], [0, 0], masks[::-1]), "masks").figures
    assert found["ap"] == pytest.approx(1)
