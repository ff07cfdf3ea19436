import json

import numpy as np
import pytest

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.proposals import propose


@pytest.fixture
def catalog(tmp_path):
    return Catalog.build(
        tmp_path,
        ["000000000007.jpg", "000000000009.jpg", "named.jpg"],
        [(120, 90), (61, 47), (1, 1)],
        classes=["thing"],
        boxes=[[10, 20, 50, 60], [0, 0, 30, 30], [5, 5, 15, 15]],
        box_rows=[0, 0, 1],
        box_classes=[0, 0, 0],
        crowd=[False, True, False],
        difficult=[True, False, False],
    )


def test_gt_leaves_out_crowds_and_keeps_difficult(catalog):
    boxes = propose(catalog, "gt")
    assert [boxes[i].tolist() for i in range(3)] == [[[10, 20, 50, 60]], [[5, 5, 15, 15]], []]


def test_gt_pad_grows_each_side_and_clips(catalog):
    boxes = propose(catalog, "gt-pad", padding=0.5)
    assert boxes[0].tolist() == [[0, 0, 70, 80]]
    assert boxes[1].tolist() == [[0, 0, 20, 20]]
    assert boxes.parameters == {"padding": 0.5}


def test_grid_tiles_the_image(catalog):
    boxes = propose(catalog, "grid")
    assert boxes[0].tolist() == [[0, 0, 40, 45], [40, 0, 80, 45], [80, 0, 120, 45], [0, 45, 60, 90], [60, 45, 120, 90]]
    for row in (0, 1):
        covered = np.zeros(catalog.sizes[row][::-1], int)
        for x0, y0, x1, y1 in boxes[row].astype(int):
            covered[y0:y1, x0:x1] += 1
        assert (covered == 1).all()


def test_image_is_the_frame(catalog):
    boxes = propose(catalog, "image")
    assert [boxes[i].tolist() for i in range(3)] == [[[0, 0, 120, 90]], [[0, 0, 61, 47]], [[0, 0, 1, 1]]]


def test_random_boxes_are_pure_and_spread(tmp_path):
    big = Catalog.build(tmp_path, [f"{i:04d}.jpg" for i in range(400)], [(400, 300)] * 400)
    boxes = propose(big, "random", count=5, seed=1)
    assert (boxes.counts(np.arange(400)) == 5).all()
    few = Catalog.build(tmp_path, [f"{i:04d}.jpg" for i in range(7)], [(400, 300)] * 7)
    np.testing.assert_array_equal(propose(few, "random", count=5, seed=1).values, boxes.values[:35])
    assert not np.array_equal(propose(few, "random", count=5, seed=2).values, boxes.values[:35])
    x0, y0, x1, y1 = boxes.values.T
    share = (x1 - x0) * (y1 - y0) / 120_000
    assert 0.25 < share.mean() < 0.36 and share.min() > 0.03
    assert abs((x0 + x1).mean() / 2 - 200) < 8


def test_import_coco_results_by_file_name_and_by_annotations(catalog, tmp_path):
    results = [
        {"image_id": 7, "bbox": [1, 2, 10, 20], "score": 0.1},
        {"image_id": 7, "bbox": [3, 4, 10, 20], "score": 0.9},
        {"image_id": 9, "bbox": [0, 0, 5, 5], "score": 0.5},
    ]
    (tmp_path / "r.json").write_text(json.dumps(results))
    boxes = propose(catalog, "import", source=tmp_path / "r.json")
    assert boxes[0].tolist() == [[3, 4, 13, 24], [1, 2, 11, 22]]  # the best score first
    named = {"images": [{"id": 7, "file_name": "named.jpg"}, {"id": 9, "file_name": "000000000007.jpg"}]}
    (tmp_path / "i.json").write_text(json.dumps(named))
    boxes = propose(catalog, "import", source=tmp_path / "r.json", annotations=tmp_path / "i.json")
    assert boxes[0].tolist() == [[0, 0, 5, 5]]


def test_import_csv_and_npy(catalog, tmp_path):
    (tmp_path / "b.csv").write_text("key,x0,y0,x1,y1,score\nnamed.jpg,0,0,1,1,1\n000000000007.jpg,1,2,3,4,0.5\n")
    np.save(tmp_path / "b.npy", np.array([[2, 0, 0, 1, 1, 1], [0, 1, 2, 3, 4, 0.5]]))
    one, two = (propose(catalog, "import", source=tmp_path / f"b.{s}") for s in ("csv", "npy"))
    assert one.fingerprint == two.fingerprint and one[0].tolist() == [[1, 2, 3, 4]]


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("none.csv", None, "not there"),
        ("b.txt", "", "COCO results"),
        ("b.json", "{", "broken JSON"),
        ("b.json", '{"images": []}', "list of"),
        ("b.json", '[{"image_id": 7}]', "entry 0"),
        ("b.json", '[{"image_id": 8, "bbox": [0, 0, 1, 1]}]', "image_id 8"),
        ("b.json", "[]", "holds no box"),
        ("b.csv", "key,x0,y0\n", "column x1, y1"),
        ("b.csv", "key,x0,y0,x1,y1\nother.jpg,0,0,1,1\n", "line 2"),
        ("b.csv", "key,x0,y0,x1,y1\nnamed.jpg,0,0,one,1\n", "line 2"),
        ("b.npy", "no array", "not a whole npy"),
    ],
)
def test_import_errors_name_the_entry(catalog, tmp_path, name, content, word):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises((ObjcropError, UsageError), match=word) as caught:
        propose(catalog, "import", source=tmp_path / name)
    assert "\n" not in str(caught.value)


def test_import_npy_errors(catalog, tmp_path):
    for array, word in ((np.zeros((2, 4)), "must be numbers"), (np.array([[3, 0, 0, 1, 1]]), "row 3")):
        np.save(tmp_path / "b.npy", array)
        with pytest.raises(ObjcropError, match=word):
            propose(catalog, "import", source=tmp_path / "b.npy")


def test_wrong_use(catalog, tmp_path):
    with pytest.raises(UsageError, match="gt-pad"):
        propose(catalog, "bong")
    with pytest.raises(UsageError, match="padding is not an option of method 'gt'"):
        propose(catalog, "gt", padding=0.5)
    with pytest.raises(UsageError, match="above 0"):
        propose(catalog, "gt-pad", padding=-1.0)
    bare = Catalog.build(tmp_path, ["a.jpg"], [(9, 9)])
    with pytest.raises(ObjcropError, match="annotations"):
        propose(bare, "gt")
