"""OpenImages' CSVs: boxes against a painted rectangle and a loop, classes, labels, turns, and what is wrong in them."""

import csv

import numpy as np
import pytest
from PIL import Image, ImageDraw

from objcrop.errors import ObjcropError
from objcrop.formats import csv_columns, index

FIRST_LINE = (
    "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf,IsDepiction,IsInside"
)
BOX = "{},xclick,{},1,{},{},{},{},0,0,{},0,0"
SIZE = (40, 30)


def box(image="a", label="/m/dog", corners=(0.1, 0.5, 0.2, 0.9), group=0):
    return BOX.format(image, label, *corners, group)


def write(folder, *boxes, images=("a", "b"), **others):
    """Write images, the boxes, and other CSVs by their names, "-" for "_"; return the folder."""
    for name in images:
        path = folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(path)
    folder.mkdir(exist_ok=True)
    (folder / "train-annotations-bbox.csv").write_text("\n".join([FIRST_LINE, *boxes]) + "\n")
    for name, lines in others.items():
        (folder / f"{name.replace('_', '-')}.csv").write_text("\n".join(lines) + "\n")
    return folder


def found(catalog):
    """Key, class, corners rounded to a hundredth, and whether it is a group, of every box."""
    said = []
    for row, key in enumerate(catalog.keys()):
        truth = catalog.annotations(row)
        for corners, label, crowd in zip(truth.boxes.tolist(), truth.classes, truth.crowd):
            said.append((key, catalog.classes[label], [round(c, 2) for c in corners], bool(crowd)))
    return said


def labels(catalog):
    return [[catalog.classes[i] for i in ids] for ids in catalog.table["labels"].to_pylist()]


def error(folder, **options):
    with pytest.raises(ObjcropError) as raised:
        index(folder, "openimages", **options)
    return str(raised.value)


def test_boxes_classes_and_groups(tmp_path):
    write(
        tmp_path,
        box("b", "/m/cat", group=1),
        box("a", "/m/dog"),
        box("b", "/m/dog", (0, 1, 0, 1), group=-1),
        class_descriptions_boxable=["/m/dog,Dog", "/m/none,Nobody", '/m/cat,"Cat, domestic"'],
    )
    catalog, report = index(tmp_path, "openimages")
    assert catalog.classes == ["Dog", "Cat, domestic"]
    assert found(catalog) == [
        ("a.jpg", "Dog", [4, 6, 20, 27], False),
        ("b.jpg", "Cat, domestic", [4, 6, 20, 27], True),
        ("b.jpg", "Dog", [0, 0, 40, 30], False),
    ]
    assert labels(catalog) == [["Dog"], ["Dog", "Cat, domestic"]]
    assert (report.images, report.boxes, len(report.lines())) == (2, 3, 1)


@pytest.mark.parametrize("size", [1 << 20, 700])
def test_many_boxes_against_a_loop(tmp_path, monkeypatch, size):
    """Rows in no order, of images of several sizes in the archives' folders, some gone; blocks of any size."""
    rng = np.random.default_rng(5)
    sizes = {f"{i:016x}": (int(rng.integers(20, 90)), int(rng.integers(20, 90))) for i in range(30)}
    rows = []
    for _ in range(400):
        image, shares = rng.choice(list(sizes)), np.sort(rng.integers(0, 101, (2, 2)) / 100, axis=1)
        rows.append(box(image, f"/m/{rng.integers(6)}", shares.reshape(-1).round(2).tolist(), int(rng.integers(2))))
    write(tmp_path, *rows, images=())
    for i, (name, wanted) in enumerate(list(sizes.items())[:25]):
        folder = tmp_path / f"train_{i % 16:x}"
        folder.mkdir(exist_ok=True)
        Image.new("L", wanted).save(folder / f"{name}.jpg")
    monkeypatch.setattr(csv_columns, "BLOCK", size)
    catalog, report = index(tmp_path, "openimages")

    expected = []
    for line in csv.DictReader((tmp_path / "train-annotations-bbox.csv").open()):
        path = next(tmp_path.glob(f"train_?/{line['ImageID']}.jpg"), None)
        x0, x1, y0, y1 = (float(line[name]) for name in ("XMin", "XMax", "YMin", "YMax"))
        if path is not None and x0 < x1 and y0 < y1:
            width, height = sizes[line["ImageID"]]
            corners = [x0 * width, y0 * height, x1 * width, y1 * height]
            key = str(path.relative_to(tmp_path))
            expected.append((key, line["LabelName"], [round(c, 2) for c in corners], line["IsGroupOf"] == "1"))
    expected.sort(key=lambda one: one[0])
    assert found(catalog) == expected
    assert sorted(report.missing_annotated) == list(sizes)[25:]
    assert report.boxes == len(expected) and report.dropped_empty == len(report.bad_entries)
    lines = (tmp_path / "train-annotations-bbox.csv").read_text().splitlines()
    for place, reason in report.bad_entries:
        cells = lines[int(place.split()[-1]) - 1].split(",")
        assert reason == f"the box {[float(cells[i]) for i in (4, 6, 5, 7)]} has no area inside its image"


@pytest.mark.parametrize("rotation", ["", "nan", 0, 90, "90.0", 180, 270])
@pytest.mark.parametrize("orientation", [None, 6])
def test_turned_images(tmp_path, rotation, orientation):
    """A white rectangle is where the catalog says, once the picture is turned as OpenImages says, or else as EXIF."""
    picture = Image.new("L", (40, 20))
    ImageDraw.Draw(picture).rectangle((4, 2, 13, 6), fill=255)
    exif = Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    write(tmp_path, box("a", corners=(0.1, 0.35, 0.1, 0.35)), images=())
    picture.save(tmp_path / "a.png", exif=exif)
    (tmp_path / "train-images-boxable-with-rotation.csv").write_text(f"ImageID,Subset,Rotation\na,train,{rotation}\n")
    (tmp_path / "validation-images-with-rotation.csv").write_text("ImageID,Rotation\nb,180\na,\n")
    catalog, report = index(tmp_path, "openimages")
    stated = str(rotation) not in ("", "nan")
    degrees = float(rotation) if stated else {None: 0, 6: 270}[orientation]
    upright = picture.rotate(degrees, expand=True)  # counter-clockwise
    assert catalog.sizes.tolist() == [list(upright.size)]
    assert catalog.annotations(0).boxes.tolist() == [[float(c) for c in upright.getbbox()]]
    assert len(report.lines()) == 1


def test_images_are_found_in_all_places_that_people_have(tmp_path):
    split = write(tmp_path / "train", box("a"), box("b"), images=())
    for name in ("data/train_0/a.jpg", "data/train_f/b.jpg", "flat/a.jpg", "flat/b.jpg", "flat/c.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", SIZE).save(tmp_path / name)
    file = split / "train-annotations-bbox.csv"
    for source, options, keys in (
        (file, {"root": tmp_path / "flat"}, ["a.jpg", "b.jpg"]),
        (tmp_path / "flat", {"annotations": file}, ["a.jpg", "b.jpg"]),
        (tmp_path / "flat", {"annotations": split, "limit": 1}, ["a.jpg"]),
        (tmp_path / "data", {"annotations": split}, ["train_0/a.jpg", "train_f/b.jpg"]),
        (
            tmp_path / "data/train_f",
            {"annotations": split, "root": tmp_path / "data"},
            ["train_0/a.jpg", "train_f/b.jpg"],
        ),
    ):
        assert index(source, "openimages", **options)[0].keys() == keys
    assert "has the image 'a' twice, 'data/train_0/a.jpg' and 'flat/a.jpg'; take one away" in error(
        tmp_path, annotations=split
    )
    assert "has no image that train-annotations-bbox.csv names, such as a; say with --root" in error(file)
    assert "holds no CSV of boxes" in error(tmp_path / "flat")
    (split / "test-annotations-bbox.csv").write_text("")
    assert "holds test-annotations-bbox.csv, train-annotations-bbox.csv; name the file" in error(split)


def test_image_level_labels(tmp_path):
    write(tmp_path, box("a"), box("gone"), images=("a", "b", "c", "d"))
    lines = [
        *("ImageID,Source,LabelName,Confidence", "a,verification,/m/cat,1", "a,verification,/m/cow,0"),
        *("b,machine,/m/dog,0.7", "c,machine,/m/dog,0.2", "other,verification,/m/cow,1", "b,verification,,1"),
    ]
    file = tmp_path / "labels.csv"
    file.write_text("\n".join(lines) + "\n")
    catalog, report = index(tmp_path, "openimages", image_labels=file)
    assert catalog.keys() == ["a.jpg", "b.jpg", "c.jpg"]
    assert labels(catalog) == [["/m/cat", "/m/dog"], ["/m/dog"], []]
    assert report.missing_annotated == ["gone"]
    assert report.bad_entries == [("labels.csv line 7", "LabelName is empty")]
    assert report.remarks == [("labels.csv", "1 labels are of images that are not there")]
    assert labels(index(tmp_path, "openimages")[0]) == [["/m/dog"]]


def test_classes_of_one_name_stay_apart(tmp_path):
    write(
        tmp_path,
        *(box("a", label) for label in ("/m/3", "/m/1", "/m/2", "/m/9", "/m/4")),
        class_descriptions_boxable=["LabelName,DisplayName", "/m/2,Sandwich", "/m/4,Bread"],
        oidv7_class_descriptions=["id,name", "/m/4,Loaf", "/m/1,Sandwich", '/m/3,"Roll, soft"', "/m/5,Sandwich"],
    )
    catalog, report = index(tmp_path, "openimages")
    assert catalog.classes == ["Sandwich (/m/2)", "Bread", "Sandwich (/m/1)", "Roll, soft", "/m/9"]
    assert [name for _, name, _, _ in found(catalog)] == [
        *("Roll, soft", "Sandwich (/m/1)", "Sandwich (/m/2)", "/m/9", "Bread")
    ]
    assert report.remarks == [
        (str(tmp_path), "1 classes have no description and are named by their id: /m/9"),
    ]


WRONG = {  # the line that is wrong, and what is said of it
    "too few cells": ("a,xclick", "it has 2 cells, the first line 13"),
    "a quote": (box("a", corners=('"0.1', 0.5, 0, 1)), "XMin: '\"0.1' is no number"),
    "a NUL": (box("a", corners=(0.1, "0.5\0", 0, 1)), "XMax: '0.5\\x00' is no number"),
    "a word": (box("a", corners=(0.1, 0.5, 0, "high")), "YMax: 'high' is no number"),
    "no number": (box("a", corners=(0.1, 0.5, 0, "")), "the box [0.1, 0.0, 0.5, nan] is not finite"),
    "no image": (box(""), "ImageID is empty"),
    "no class": (box("a", " "), "LabelName is empty"),
    "a strange flag": (box("a", group="maybe"), "IsGroupOf: 'maybe' is neither yes nor no"),
    "swapped": (box("a", corners=(0.5, 0.1, 0, 1)), "the box [0.5, 0.0, 0.1, 1.0] has no area inside its image"),
    "outside": (box("a", corners=(1.1, 1.5, 0, 1)), "the box [1.1, 0.0, 1.5, 1.0] has no area inside its image"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_cannot_be_used_is_listed(tmp_path, what):
    line, reason = WRONG[what]
    write(tmp_path, box("b"), line, "", box("b", "/m/cat"))
    catalog, report = index(tmp_path, "openimages")
    assert [(key, name) for key, name, _, _ in found(catalog)] == [("b.jpg", "/m/dog"), ("b.jpg", "/m/cat")]
    assert report.bad_entries == [("train-annotations-bbox.csv line 3", reason)]
    assert error(tmp_path, strict=True).startswith(f"train-annotations-bbox.csv line 3: {reason}; correct it")


def test_boxes_over_an_edge_are_clipped(tmp_path):
    write(tmp_path, box("a", corners=(-0.2, 0.5, 0, 1.5)), box("b", corners=(0, 1.0001, 0, 1)))
    catalog, report = index(tmp_path, "openimages")
    assert [corners for _, _, corners, _ in found(catalog)] == [[0, 0, 20, 30], [0, 0, 40, 30]]
    assert report.clipped == 1  # a hundredth of a pixel is rounding


def test_wrong_files_are_sentences(tmp_path):
    write(tmp_path, box("a"))
    file = tmp_path / "train-annotations-bbox.csv"
    file.write_text(file.read_text().replace("XMin", "left"))
    assert error(tmp_path) == f"{file} lacks the column XMin in its first line; is it the CSV of boxes?"
    write(tmp_path, box("a"))
    write(tmp_path, *[box("a", corners=(8, 20, 7.5, 30))] * 3)
    assert "bbox.csv line 2 has the box [8.0, 7.5, 20.0, 30.0], in pixels, not shares of 1" in error(tmp_path)
    write(tmp_path, box("a"))
    rotation = tmp_path / "train-images-boxable-with-rotation.csv"
    rotation.write_text("ImageID,Subset\na,train\n")
    assert "lacks the column Rotation in its first line; is it the CSV of rotations?" in error(tmp_path)
    rotation.write_text("ImageID,Rotation\na,45\na,90\na,90\na,180\nz,x\n")
    catalog, report = index(tmp_path, "openimages")
    assert catalog.orientations.tolist() == [8]
    assert [(place.split()[-1], reason) for place, reason in report.bad_entries] == [
        ("2", "Rotation is 45, not 0, 90, 180 or 270"),
        ("5", "Rotation is 180, but was another before"),
        ("6", "Rotation: 'x' is no number"),
    ]
    descriptions = tmp_path / "class-descriptions-boxable.csv"
    descriptions.write_text("/m/dog,Dog\n\n/m/cat\n/m/dog,Dog\n/m/cow,C\0w\n")
    _, report = index(tmp_path, "openimages")
    assert report.bad_entries[0] == (
        "class-descriptions-boxable.csv line 3",
        "it is '/m/cat', not a MID and a name",
    )
    descriptions.write_text("/m/dog,Dog\n/m/dog,Hound\n")
    assert error(tmp_path) == (f"{descriptions} names the class '/m/dog' twice, 'Dog' and 'Hound'; take one line out.")
    descriptions.unlink()
    file.write_text(FIRST_LINE + "\n")
    assert "has no image that train-annotations-bbox.csv names; say with --root" in error(tmp_path)


def test_command_line(tmp_path, objcrop):
    write(tmp_path, box("a"))
    (tmp_path / "labels.csv").write_text("ImageID,LabelName,Confidence\na,/m/cat,1\n")
    said = objcrop(
        "index",
        tmp_path,
        "--format",
        "openimages",
        "--image-labels",
        tmp_path / "labels.csv",
        "-o",
        tmp_path / "c.arrow",
    )
    assert (said.returncode, said.stdout.splitlines()[-1]) == (0, f"1 images, 2 classes → {tmp_path}/c.arrow")
    said = objcrop("index", tmp_path, "--image-labels", tmp_path / "labels.csv", "-o", tmp_path / "c.arrow")
    assert (
        said.returncode == 2 and "'folder' does not take --image-labels; leave it out, or use openimages" in said.stderr
    )
