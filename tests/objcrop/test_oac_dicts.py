"""OAC's released dictionaries: the catalog that OpenImages' CSVs give for the same rows, and what is wrong in them."""

import os

import numpy as np
import pytest
from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.formats import index

LABELS = {"a": ["/m/cat", "/m/dog"], "b": ["/m/dog"]}
FLAGS = "IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
FIRST_LINE = f"ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,{FLAGS}"


def row(image, label, *corners, group="0"):
    return [image, "xclick", label, "1", *map(str, corners), "0", "0", group, "0", "0"]


ROWS = {
    "a": {"data": [row("a", "/m/dog", 0.1, 0.5, 0.2, 0.9), row("a", "/m/cow", 0, 1, 0, 1, group="1")]},
    "c": {"data": [row("c", "/m/cow", 0, 0.5, 0, 0.5)]},
    "b": {"data": [row("b", "/m/dog", 0.25, 0.75, 0, 0.5, group="-1")]},
}


def write(folder, labels=None, rows=None, images=("x/a", "y/b", "c")):
    for name in images:
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    folder.mkdir(exist_ok=True)
    for name, content in (("images_selected_new", labels), ("images_selected_with_all_features", rows)):
        if content is not None:
            np.save(folder / f"{name}.npy", content)
    return folder


def said(catalog):
    """Key, labels, and class, corners and crowd of every box, of every image."""
    lines = []
    for at, key in enumerate(catalog.keys()):
        truth = catalog.annotations(at)
        boxes = [
            (catalog.classes[label], corners, bool(crowd))
            for label, corners, crowd in zip(truth.classes, truth.boxes.round(3).tolist(), truth.crowd)
        ]
        lines.append((key, [catalog.classes[i] for i in catalog.table["labels"][at].as_py()], boxes))
    return lines


def error(source, **options):
    with pytest.raises(ObjcropError) as raised:
        index(source, "oac-dicts", **options)
    return str(raised.value)


def test_images_and_labels_of_the_one_and_boxes_of_the_other(tmp_path):
    catalog, report = index(write(tmp_path, LABELS, ROWS), "oac-dicts")
    assert said(catalog) == [
        ("x/a.jpg", ["/m/cat", "/m/dog"], [("/m/dog", [4, 6, 20, 27], False)]),
        ("y/b.jpg", ["/m/dog"], [("/m/dog", [10, 0, 30, 15], False)]),
    ]
    assert catalog.classes == ["/m/cat", "/m/dog"]
    assert report.remarks == [
        ("images_selected_with_all_features.npy", "2 boxes are of images or classes without labels, and are not taken")
    ]
    labels, _ = index(tmp_path, "oac-dicts", annotations=tmp_path / "images_selected_new.npy")
    assert said(labels) == [("x/a.jpg", ["/m/cat", "/m/dog"], []), ("y/b.jpg", ["/m/dog"], [])]


@pytest.mark.parametrize("kind", [list, tuple, np.array, lambda rows: [np.array(one, object) for one in rows]])
def test_boxes_alone_are_those_of_the_csv(tmp_path, kind):
    write(tmp_path, None, {name: {"data": kind(found["data"])} for name, found in ROWS.items()})
    (tmp_path / "class-descriptions.csv").write_text("/m/dog,Dog\n/m/cow,Cow\n")
    (tmp_path / "train-images-with-rotation.csv").write_text("ImageID,Rotation\nc,90\n")
    lines = [",".join(one) for found in ROWS.values() for one in found["data"]]
    (tmp_path / "train-annotations-bbox.csv").write_text("\n".join([FIRST_LINE, *lines]))
    from_csv, _ = index(tmp_path, "openimages")
    catalog, report = index(tmp_path, "oac-dicts")
    assert catalog.table == from_csv.table and catalog.fingerprint == from_csv.fingerprint
    assert catalog.classes == from_csv.classes == ["Dog", "Cow"]
    assert len(report.lines()) == 1


def test_places(tmp_path):
    dicts = write(tmp_path / "dicts", LABELS, ROWS, images=())
    images = write(tmp_path / "images")
    for source, options in (
        (dicts, {"root": images}),
        (images, {"annotations": dicts}),
        (dicts / "images_selected_new.npy", {"root": images}),
        (images, {"annotations": dicts, "limit": 5}),
    ):
        assert index(source, "oac-dicts", **options)[0].keys() == ["x/a.jpg", "y/b.jpg"]
    assert "holds neither images_selected_new.npy nor images_selected_with_all_features.npy" in error(images)
    assert "has no image that images_selected_new.npy names, such as a; say with --root" in error(dicts)


def test_what_cannot_be_used_is_listed(tmp_path):
    rows = {
        "a": [row("a", "/m/dog", 0, 1, 0, 1), ["a"], 5, row("a", "", 0, 1, 0, 1), row("a", ["x"], 0, 1, 0, 1)],
        "b": [
            row("b", "/m/dog", "x", 1, 0, 1),
            row("b", "/m/dog", 0, 1, 0, 1, group="?"),
            row("b", "/m/dog", 1, 0, 0, 1),
        ],
        "gone": [],
    }
    catalog, report = index(write(tmp_path, {"a": ["/m/dog", 7, ""], "b": [], "gone": ["/m/dog"]}, rows), "oac-dicts")
    assert [len(boxes) for _, _, boxes in said(catalog)] == [1, 0]
    assert report.missing_annotated == ["gone"]
    name = "images_selected_with_all_features.npy"
    assert report.bad_entries == [
        ("images_selected_new.npy a entry 1", "the class is 7"),
        ("images_selected_new.npy a entry 2", "the class is ''"),
        (f"{name} a entry 1", "it is ['a'], not a row of OpenImages' boxes"),
        (f"{name} a entry 2", "it is 5, not a row of OpenImages' boxes"),
        (f"{name} a entry 3", "LabelName is ''"),
        (f"{name} a entry 4", "LabelName is ['x']"),
        (f"{name} b entry 0", "'x' is no number"),
        (f"{name} b entry 1", "'?' is neither yes nor no"),
        (f"{name} b entry 2", "the box [1.0, 0.0, 0.0, 1.0] has no area inside its image"),
    ]
    assert error(tmp_path, strict=True).startswith("images_selected_new.npy a entry 1: the class is 7; correct it")


def test_wrong_files_are_sentences(tmp_path):
    class Program:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/touched",)

    path = tmp_path / "images_selected_new.npy"
    long = ["/m/dog"] * 1000
    for content, said_of_it in (
        (
            {"a": Program()},
            f"{path} holds more than data, it asks for the program '{os.name}.system'; nothing of it was run",
        ),
        ({"a"}, f"{path} holds ['a'], not what is known of each image; is it a dictionary of OAC?"),
        ({}, f"{path} holds {{}}, not what is known of each image"),
        ({"a": "/m/dog"}, f"{path} says '/m/dog' of 'a', not a list; is it a dictionary of OAC?"),
        ({"a": {"date": []}}, f"{path} says {{'date': []}} of 'a', not a list"),
        ({f"{i}": long for i in range(1000)}, f"{path} says more of its images than it has bytes"),
    ):
        write(tmp_path, content)
        assert error(tmp_path).startswith(said_of_it), content
    assert not (tmp_path / "touched").exists()
