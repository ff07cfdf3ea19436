"""MIT Indoor in its own layout, made by hand, against what stands in its lists."""

import numpy as np
import pytest
from PIL import Image

from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index

TRAIN = ["casino/c_1.jpg", "casino/c 2.jpg", "airport_inside/a_1.jpg"]
TEST = ["airport_inside/a_2.jpg", "bakery/b_1.jpg"]


@pytest.fixture
def indoor(tmp_path):
    for name in [*TRAIN, *TEST, "casino/in_no_list.jpg"]:
        path = tmp_path / "Images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (9, 8)).save(path)
    (tmp_path / "TrainImages.txt").write_text("\r\n".join(TRAIN))  # as it is published, without a last line's end
    (tmp_path / "TestImages.txt").write_text("\r\n".join(TEST))
    return tmp_path


@pytest.mark.parametrize(("split", "listed"), [("train", TRAIN), ("test", TEST), (None, TRAIN + TEST)])
def test_images_of_a_list(indoor, split, listed):
    catalog, report = index(indoor, "mit-indoor", split=split)
    assert catalog.keys() == sorted(f"Images/{name}" for name in listed)
    assert catalog.classes == ["airport_inside", "bakery", "casino"]
    names = [catalog.classes[c] for c in catalog.label_matrix(np.arange(len(catalog))).argmax(1)]
    assert [f"Images/{name}" for name in names] == [key.rpartition("/")[0] for key in catalog.keys()]  # noqa: SIM118
    assert report.lines() == [f"{len(listed)} images, 0 boxes"]


def test_what_is_wrong(indoor):
    (indoor / "TestImages.txt").write_text("bakery/b_1.jpg\nbakery/gone.jpg\nbakery/b_1.jpg\nb_1.jpg\nx/../../y.jpg\n")
    catalog, report = index(indoor, "mit-indoor", split="test")
    assert catalog.keys() == ["Images/bakery/b_1.jpg"] and report.missing_annotated == [
        "Images/bakery/gone.jpg",
        "y.jpg",
    ]
    assert report.bad_entries == [
        ("TestImages.txt b_1.jpg", "it is no CLASS/NAME.jpg"),
        ("Images/bakery/b_1.jpg", "it is listed again, of the class 'bakery'"),
    ]
    with pytest.raises(UsageError, match="--split"):
        index(indoor, "mit-indoor", split="val")
    (indoor / "TrainImages.txt").unlink()
    with pytest.raises(ObjcropError, match=r"list of MIT Indoor .*TrainImages.txt cannot be read"):
        index(indoor, "mit-indoor", split="test")
