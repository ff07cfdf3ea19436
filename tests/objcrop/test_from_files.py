"""Catalogs from lists of Python against those that a format reads."""

import logging
import os

import numpy as np
import pytest
from PIL import Image

from objcrop import Catalog
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index


@pytest.fixture
def folder(tmp_path):
    for name in ("in/a.jpg", "in/deep/b.png", "c.jpg"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
    return tmp_path


def test_files_alone_are_what_a_folder_gives(folder, monkeypatch):
    catalog = Catalog.from_files([folder / "in/deep/b.png", str(folder / "in/a.jpg")])
    expected, _ = index(folder / "in")
    assert catalog.root == expected.root and catalog.table.equals(expected.table)
    monkeypatch.chdir(folder)
    assert Catalog.from_files(["in/a.jpg", "in/deep/b.png"]).fingerprint == expected.fingerprint
    assert Catalog.from_files(["a.jpg", "deep/b.png"], root="in").table.equals(expected.table)
    assert Catalog.from_files([folder / "in/a.jpg"], root=folder).keys() == ["in/a.jpg"]


def test_labels_and_boxes(folder):
    names = ["c.jpg", "in/a.jpg", "in/deep/b.png"]
    boxes = [np.array([[1, 2, 3, 4], [0, 0, 9, 9.5]]), [], [[5, 5, 6, 6], [7, 7, 9, 50]]]
    catalog = Catalog.from_files(names, labels=["cat", ["owl", "dog"], ["dog", "cat"]], boxes=boxes, root=folder)
    assert catalog.classes == ["cat", "dog", "owl"]
    assert catalog.label_matrix([0, 1, 2]).tolist() == [[1, 0, 0], [0, 1, 1], [1, 1, 0]]
    assert catalog.annotations(0).boxes.tolist() == [[1, 2, 3, 4], [0, 0, 9, 9.5]]
    assert catalog.annotations(0).classes.tolist() == [0, 0] and len(catalog.annotations(1).boxes) == 0
    assert catalog.annotations(2).boxes.tolist() == [[5, 5, 6, 6], [7, 7, 9, 30]]
    assert catalog.annotations(2).classes.tolist() == [1, 0]
    assert Catalog.from_files(names, boxes=boxes, root=folder).classes == ["object"]
    assert Catalog.from_files(names, ["cat", None, ()], root=folder).label_matrix([0, 1, 2]).tolist() == [[1], [0], [0]]


def test_what_is_left_out_is_warned_of(folder, caplog):
    (folder / "in/text.jpg").write_text("no image")
    caplog.set_level(logging.WARNING, "objcrop")
    names = ["c.jpg", "in/text.jpg", "gone.jpg"]
    catalog = Catalog.from_files(names, boxes=[[[50, 1, 60, 2]], [], []], root=folder)
    assert catalog.keys() == ["c.jpg"]
    for said in ("gone.jpg", "in/text.jpg", "paths[0]: the box [50.0, 1.0, 60.0, 2.0] has no area inside its image"):
        assert said in caplog.text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"labels": ["cat"]}, "got 2 paths but 1 labels"),
        ({"labels": ["cat", 3]}, r"labels\[1\] is 3, but it must be a class name"),
        ({"labels": ["cat", [3]]}, r"labels\[1\] is \[3\], but it must be a class name"),
        ({"boxes": [[[1, 2, 3]], []]}, r"boxes\[0\] is \[\[1, 2, 3\]\], but it must be numbers"),
        ({"boxes": [[], "abcd"]}, r"boxes\[1\] is 'abcd'"),
        ({"labels": [["a", "b"], "c"], "boxes": [np.ones((3, 4)), []]}, "has 3 boxes and 2 labels"),
        ({"paths": ["in/a.jpg", "in/../in/a.jpg"]}, r"paths\[1\], .*in/a.jpg, is there twice"),
        ({"root": "in"}, r"paths\[1\] cannot be used with the root .*/in: '.*/c.jpg' must lie below"),
    ],
)
def test_lists_that_do_not_fit(folder, monkeypatch, arguments, says):
    monkeypatch.chdir(folder)
    paths = [os.path.abspath(path) for path in arguments.pop("paths", ["in/a.jpg", "c.jpg"])]
    with pytest.raises(UsageError, match=says):
        Catalog.from_files(paths, **arguments)


def test_no_files(folder):
    with pytest.raises(ObjcropError, match="no image to index"):
        Catalog.from_files([], root=folder)
    with pytest.raises(ObjcropError, match=r"root .*none' is not there"):
        Catalog.from_files(["a.jpg"], root=folder / "none")
