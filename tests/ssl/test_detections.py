"""Detections: what fits together, joined by row, and the file of COCO's results that pycocotools reads."""

import json
import os

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.proposals import propose
from objcrop.ssl.transfer.detections import Detections

DATA = os.environ.get("OBJCROP_TEST_DATA", "")


@pytest.fixture
def catalog(tmp_path):
    (tmp_path / "photos").mkdir()
    return Catalog.build(tmp_path / "photos", ["a.jpg", "b.jpg", "c/d.jpg"], [(60, 40)] * 3, classes=["cat", "dog"])


def rectangle(x0, y0, x1, y1, size=(40, 60)):
    pixels = np.zeros(size, np.uint8, order="F")
    pixels[y0:y1, x0:x1] = 1
    return coco_mask.encode(pixels)


def some(masks=True):
    boxes = [[1.25, 2, 30, 20.1], [5, 5, 9, 9], [0, 0, 60, 40]]
    shapes = [rectangle(1, 2, 30, 20), rectangle(5, 5, 9, 9), rectangle(0, 0, 60, 40)]
    return Detections([0, 2, 2], boxes, [0.1, 0.9, 0.5], [1, 0, 1], shapes if masks else None)


def part(whole, begin, end):
    return Detections(
        *(
            column and column[begin:end] if name == "masks" else column[begin:end]
            for name, column in vars(whole).items()
        )
    )


def told(detections):
    return [
        column if column is None or name == "masks" else column.tolist() for name, column in vars(detections).items()
    ]


def test_columns_have_their_types():
    found = some()
    assert [column.dtype for column in (found.row, found.boxes, found.scores, found.labels)] == [
        np.int64,
        np.float64,
        np.float32,
        np.int64,
    ]
    none = Detections([], [], [], [])
    assert (len(found), len(none), none.boxes.shape) == (3, 0, (0, 4))
    assert isinstance(found.masks[0]["counts"], str)


@pytest.mark.parametrize("masks", [True, False])
def test_parts_are_joined_by_row(masks):
    whole = some(masks)
    parts = [part(whole, 1, 3), Detections([], [], [], []), part(whole, 0, 1)]
    assert told(Detections.joined(parts)) == told(whole)
    assert len(Detections.joined(parts[1:2])) == 0


@pytest.mark.parametrize("masks", [True, False])
def test_the_file_of_results_is_read_again(catalog, tmp_path, masks):
    found = some(masks)
    found.save(tmp_path / "d.json", catalog)
    assert [entry["image_id"] for entry in json.loads((tmp_path / "d.json").read_text())] == ["a.jpg", *["c/d.jpg"] * 2]
    again = Detections.read(tmp_path / "d.json", catalog)
    np.testing.assert_allclose(again.boxes, found.boxes, rtol=1e-15)
    assert told(again)[2:] == told(found)[2:] and told(again)[0] == told(found)[0]
    assert len(propose(catalog, "import", source=tmp_path / "d.json")[2]) == 2
    Detections([], [], [], []).save(tmp_path / "none.json", catalog)
    assert len(Detections.read(tmp_path / "none.json", catalog)) == 0


def test_results_of_others_may_come_in_any_order_and_as_masks_alone(catalog, tmp_path):
    entry = {"image_id": "b.jpg", "category_id": 2, "score": 0.5, "segmentation": [[3, 4, 13, 4, 13, 10, 3, 10]]}
    (tmp_path / "d.json").write_text(json.dumps([entry, {**entry, "image_id": "a.jpg"}]))
    found = Detections.read(tmp_path / "d.json", catalog)
    assert told(found)[:2] == [[0, 1], [[3, 4, 13, 10]] * 2]
    assert coco_mask.area({"size": [40, 60], "counts": found.masks[0]["counts"].encode()}) == 60


@pytest.mark.skipif(not DATA, reason="needs OBJCROP_TEST_DATA")
def test_ids_are_those_of_coco(tmp_path):
    source = f"{DATA}/coco_mini"
    catalog, _ = index(source, "coco")
    truth = catalog.all_annotations()
    row = np.repeat(np.arange(len(catalog)), np.diff(catalog.box_offsets))
    Detections(row, truth.boxes, np.ones(len(row)), truth.classes).save(tmp_path / "d.json", catalog)
    theirs = COCO(f"{source}/instances.json")
    found = theirs.loadRes(str(tmp_path / "d.json")).anns.values()  # which refuses ids of images that it lacks
    wanted = {(a["image_id"], a["category_id"], *np.round(a["bbox"], 2)) for a in theirs.anns.values()}
    assert {(a["image_id"], a["category_id"], *np.round(a["bbox"], 2)) for a in found} == wanted


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (([0], [[0, 0, np.nan, 1]], [0.5], [0]), r"detection 0 is none: row 0, box \[0.0, 0.0, nan, 1.0\]"),
        (([0, 0], [[0, 0, 1, 1], [3, 0, 2, 1]], [0.5, 0.5], [0, 0]), "detection 1 is none"),
        (([0], [[0, 0, 1, 1]], [np.inf], [0]), "score inf"),
        (([0], [[0, 0, 1, 1]], [0.5], [-1]), "class -1"),
        (([0], [[0, 0, 1, 1]], [0.5, 0.5], [0]), "of different numbers"),
        (([1, 0], [[0, 0, 1, 1]] * 2, [0.5, 0.5], [0, 0]), "do not come in the order"),
        (([0], [[0, 0, 1, 1]], [0.5], [0], []), "'masks': 0"),
    ],
)
def test_what_does_not_fit_is_refused(given, sentence):
    with pytest.raises(ObjcropError, match=sentence):
        Detections(*given)


def test_what_does_not_fit_the_catalog_is_refused(catalog):
    some().refuse_misfits(catalog)
    Detections([], [], [], []).refuse_misfits(catalog)
    box = [[0, 0, 1, 1]]
    with pytest.raises(ObjcropError, match=r"row 3 and class 0, but the catalog of .* has 3 images and 2 classes"):
        Detections([3], box, [1], [0]).refuse_misfits(catalog)
    with pytest.raises(ObjcropError, match="row 0 and class 2"):
        Detections([0], box, [1], [2]).refuse_misfits(catalog)
    with pytest.raises(
        ObjcropError, match=r"detection 0, on b\.jpg, cannot be used: it is of 9×8 pixels, the image of 60×40"
    ):
        Detections([1], box, [1], [1], [rectangle(0, 0, 1, 1, (8, 9))]).refuse_misfits(catalog)
    broken = {"size": [40, 60], "counts": "a"}
    with pytest.raises(ObjcropError, match=r"detection 0, on b\.jpg, cannot be used: the mask's counts"):
        Detections([1], box, [1], [1], [broken]).refuse_misfits(catalog)
    with pytest.raises(ObjcropError, match="some of the detections have masks"):
        Detections.joined([some(), some(masks=False)])


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{}", "is not COCO results"),
        ("[1]", "entry 0 of .*d.json: it is 1"),
        ('[{"image_id": "z.jpg"}]', "image_id is 'z.jpg', which is not in the catalog"),
        ('[{"image_id": "a.jpg", "category_id": 3}]', "category_id is 3, which is not"),
        ('[{"image_id": "a.jpg", "category_id": 1, "bbox": [1, 2, 3], "score": 1}]', "not four numbers"),
        ('[{"image_id": "a.jpg", "category_id": 1, "bbox": [1, 2, 3, 4]}]', "no numbers"),
        (
            '[{"image_id": "a.jpg", "category_id": 1, "score": 1, "segmentation": {"size": [40, 60], "counts": "a"}}]',
            "a",
        ),
    ],
)
def test_a_wrong_file_is_one_sentence(catalog, tmp_path, content, sentence):
    (tmp_path / "d.json").write_text(content)
    with pytest.raises(ObjcropError, match=sentence):
        Detections.read(tmp_path / "d.json", catalog)
