"""Tars of images: labels, boxes and keys as written out by hand, and what is wrong with tars and their labels."""

import gzip
import io
import json
import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.formats.webdataset import numbered


def photo(seed=0, size=(40, 30), orientation=None, form="jpeg"):
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation:
        exif[0x0112] = orientation
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(buffer, form, exif=exif)
    return buffer.getvalue()


def tar(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            data = json.dumps(data).encode() if isinstance(data, (dict, list)) else data
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_labels_boxes_and_turned_images(tmp_path):
    box = {"box": [4, 6, 14, 26], "label": "cat", "crowd": True}
    tar(tmp_path / "a.tar", {
        "./x/1.jpg": photo(1), "x/1.json": {"label": "dog", "boxes": [box, {"box": [0, 0, 99, 9]}], "url": "…"},
        "x/2.left.png": photo(2, form="png"), "x/2.right.jpg": photo(3, orientation=6), "x/2.cls": b"cat\n",
        "x/.hidden.jpg": photo(4), "x/notes.txt": b"a caption", "x/3.webp": photo(5, form="webp"),
    })  # fmt: skip
    tar(tmp_path / "more/b.tar", {"4.jpg": photo(6), "4.json": {"boxes": [dict(box, difficult=1)]}})
    catalog, report = index(tmp_path, "webdataset")
    assert catalog.keys() == ["4.jpg", "x/1.jpg", "x/2.left.png", "x/2.right.jpg", "x/3.webp"]
    assert catalog.root == str(tmp_path) and [s.name for s in catalog.sources] == ["a.tar", "more/b.tar"]
    assert catalog.classes == ["cat", "dog", "object"]
    labels = [[catalog.classes[i] for i in np.flatnonzero(row)] for row in catalog.label_matrix(range(5))]
    assert labels == [["cat"], ["cat", "dog", "object"], ["cat"], ["cat"], []]
    assert catalog.sizes.tolist() == [[40, 30], [40, 30], [40, 30], [30, 40], [40, 30]]
    assert catalog.annotations(1).boxes.tolist() == [[4, 6, 14, 26], [0, 0, 40, 9]]
    assert catalog.annotations(1).crowd.tolist() == [True, False] and catalog.annotations(0).difficult.tolist() == [
        True
    ]
    assert catalog.image_bytes(3) == photo(3, orientation=6) and report.clipped == 1 and not report.left_out


def test_boxes_are_in_the_stored_frame(tmp_path):
    tar(tmp_path / "a.tar", {"1.jpg": photo(1, orientation=6), "1.json": {"boxes": [{"box": [4, 6, 14, 26]}]}})
    catalog, _ = index(tmp_path / "a.tar", "webdataset")
    assert catalog.annotations(0).boxes.tolist() == [[4, 4, 24, 14]]  # x becomes y, y counts from the right


def test_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    tar(tmp_path / "a.tar", {f"{i}.{end}": data for i, c in enumerate((10, 9, 2)) for end, data in
                             (("jpg", photo(i)), ("cls", str(c).encode()))})  # fmt: skip
    catalog, _ = index(tmp_path / "a.tar", "webdataset")
    assert catalog.classes == ["2", "9", "10"] and catalog.label_matrix([0]).tolist() == [[0, 0, 1]]


def test_another_member_is_the_label_where_it_is_named(tmp_path):
    tar(tmp_path / "a.tar", {"1.jpg": photo(1), "1.txt": "dög ".encode(), "1.cls": b"7"})
    assert index(tmp_path / "a.tar", "webdataset")[0].classes == ["7"]
    assert index(tmp_path / "a.tar", "webdataset:txt")[0].classes == ["dög"]


def test_numbered_tars_and_a_folder_above(tmp_path):
    for i in range(3):
        tar(tmp_path / f"in/s-{i:02}.tar", {f"{i}.jpg": photo(i)})
    catalog, _ = index(tmp_path / "in/s-{01..02}.tar", "webdataset", root=tmp_path)
    assert catalog.keys() == ["1.jpg", "2.jpg"] and [s.name for s in catalog.sources] == ["in/s-01.tar", "in/s-02.tar"]
    assert numbered("a{1..2}b{08..10}.tar") == [f"a{i}b{j}.tar" for i in (1, 2) for j in ("08", "09", "10")]
    with pytest.raises(ObjcropError, match=r"s-03.tar is not there"):
        index(tmp_path / "in/s-{01..03}.tar", "webdataset")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="does not hold"):
        index(tmp_path / "in", "webdataset", root=tmp_path / "other")


def test_what_cannot_be_used_is_listed(tmp_path):
    tar(tmp_path / "a.tar", {
        "1.jpg": photo(1), "1.json": b"{", "2.jpg": photo(2), "2.json": [1], "3.jpg": photo(3), "3.cls": b"\xff",
        "4.jpg": photo(4), "4.json": {"label": [1], "boxes": [{"box": [1, 2, 3]}, {"box": [5, 5, 5, 9]}, 7]},
        "5.jpg": photo(5)[:200], "6.npy": b"no image",
    })  # fmt: skip
    catalog, report = index(tmp_path, "webdataset", verify=True)
    assert catalog.keys() == ["1.jpg", "2.jpg", "3.jpg", "4.jpg"]
    said = [f"{place}: {reason}" for place, reason in report.bad_entries]
    words = [
        "1.json: it is broken JSON",
        "2.json: it holds [1] and no",
        "3.cls: it is not UTF-8",
        "4.json: the label [1]",
    ]
    for i, word in enumerate(words):
        assert said[i].startswith(f"a.tar:{word}")
    assert [entry.split(":")[1] for entry in said[4:]] == ["4.json, box 1", "4.json, box 3", "4.json, box 2"]
    assert [key for key, _ in report.left_out] == ["5.jpg", "6.npy"]
    with pytest.raises(ObjcropError, match="without --strict"):
        index(tmp_path, "webdataset", strict=True)


def test_a_tar_cut_in_the_middle_gives_what_is_whole(tmp_path):
    whole = tar(tmp_path / "a.tar", {"1.jpg": photo(1), "2.jpg": photo(2), "3.jpg": photo(3)})
    begin = whole.read_bytes().index(b"2.jpg")
    os.truncate(whole, begin + 700)
    catalog, report = index(tmp_path, "webdataset")
    assert catalog.keys() == ["1.jpg"] and catalog.image_bytes(0) == photo(1)
    ((place, reason),) = report.bad_entries
    assert place == "a.tar" and "ends in the middle of 2.jpg" in reason and "copy it again" in reason


def test_what_is_no_tar_is_a_sentence(tmp_path):
    whole = tar(tmp_path / "good/a.tar", {"1.jpg": photo(1)}).read_bytes()
    bad = {"compressed (gzip)": gzip.compress(whole), "a web page": b"<html>" + bytes(600), "no tar": b"x" * 600}
    for says, data in bad.items():
        (tmp_path / "b.tar").write_bytes(data)
        with pytest.raises(ObjcropError) as caught:
            index(tmp_path / "b.tar", "webdataset")
        assert says in str(caught.value) and str(tmp_path / "b.tar") in str(caught.value)
    tar(tmp_path / "good/c.tar", {"1.jpg": photo(2)})
    with pytest.raises(ObjcropError, match=r"a.tar and c.tar both hold 1.jpg"):
        index(tmp_path / "good", "webdataset")
    (tmp_path / "none").mkdir()
    for source, says in ((tmp_path / "none", "holds no .tar"), (tmp_path / "no.tar", "is not there")):
        with pytest.raises(ObjcropError, match=says):
            index(source, "webdataset")
    tar(tmp_path / "labels.tar", {"1.cls": b"cat"})
    with pytest.raises(ObjcropError, match="no image to index"):
        index(tmp_path / "labels.tar", "webdataset")
