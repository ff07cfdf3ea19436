"""CUB-200-2011 in its own layout, made by hand, against what stands in its files."""

import numpy as np
import pytest
from PIL import Image

from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index

BIRDS = [  # id, name, class, in the training part, box
    ("1", "001.Black_footed_Albatross/A_1.jpg", "1", "1", "2.0 3.0 20.0 10.0"),
    ("2", "001.Black_footed_Albatross/A_2.jpg", "1", "0", "0.0 0.0 40.0 30.0"),
    ("3", "002.Laysan_Albatross/L_3.jpg", "2", "0", "30.0 20.0 15.0 15.0"),
    ("4", "002.Laysan_Albatross/L_4.jpg", "2", "1", "5.5 6.5 2.0 2.0"),
]
LISTS = {"images": 1, "image_class_labels": 2, "train_test_split": 3, "bounding_boxes": 4}


@pytest.fixture
def cub(tmp_path):
    for _, name, *_ in BIRDS:
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    for name, column in LISTS.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{bird[0]} {bird[column]}\n" for bird in BIRDS))
    (tmp_path / "classes.txt").write_text(
        "1 001.Black_footed_Albatross\n2 002.Laysan_Albatross\n3 003.Sooty_Albatross\n"
    )
    return tmp_path


@pytest.mark.parametrize(("split", "part"), [("train", "1"), ("test", "0"), (None, "01")])
def test_birds_with_classes_and_boxes(cub, split, part):
    catalog, report = index(cub, "cub200", split=split)
    birds = [bird for bird in BIRDS if bird[3] in part]
    assert catalog.keys() == [f"images/{name}" for _, name, *_ in birds]
    assert catalog.classes == ["001.Black_footed_Albatross", "002.Laysan_Albatross", "003.Sooty_Albatross"]
    for row, (_, _, label, _, box) in enumerate(birds):
        x, y, width, height = map(float, box.split())
        truth = catalog.annotations(row)
        assert truth.boxes.tolist() == [[x, y, min(x + width, 40), min(y + height, 30)]]
        assert truth.classes.tolist() == [int(label) - 1]
        assert np.flatnonzero(catalog.label_matrix([row])[0]).tolist() == [int(label) - 1]
    assert report.clipped == (split != "train") and report.boxes == len(birds)


def test_a_subset_keeps_its_boxes(cub):
    catalog, report = index(cub, "cub200", split="test", classes=2, per_class=1, seed=5)
    assert len(catalog.classes) == 2 and len(catalog) == report.boxes == len(catalog.all_annotations().boxes) > 0


def test_bad_lines_are_listed(cub):
    (cub / "images.txt").write_text((cub / "images.txt").read_text() + "4 twice.jpg\n9\n\n7 003/none.jpg\n")
    (cub / "bounding_boxes.txt").write_text("1 a b c d\n2 1 2 3\n3 30 20 9 nan\n")
    catalog, report = index(cub, "cub200")
    assert len(catalog) == 4 and report.boxes == 0
    assert dict(report.bad_entries) == {
        "images.txt line 5": "its id comes twice",
        "images.txt line 6": "'9' is no id with a value",
        "images.txt 003/none.jpg": "it is in image_class_labels.txt '' and in train_test_split.txt None",
        "bounding_boxes.txt 1": "'a b c d' is not four numbers",
        "bounding_boxes.txt 2": "'1 2 3' is not four numbers",
        "images/002.Laysan_Albatross/L_3.jpg": "the box [30.0, 20.0, 39.0, nan] is not finite",
    }
    with pytest.raises(ObjcropError, match="its id comes twice; correct it, or index without --strict"):
        index(cub, "cub200", strict=True)


def test_errors(cub, tmp_path):
    with pytest.raises(UsageError, match="--split is 'val', but it must be one of: train, test"):
        index(cub, "cub200", split="val")
    (cub / "classes.txt").unlink()
    with pytest.raises(ObjcropError, match=r"list of CUB-200-2011 .*classes.txt cannot be read \(no such file"):
        index(cub, "cub200")
