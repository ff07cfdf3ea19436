"""PASCAL VOC as labelling tools write it: encodings, names, subfolders, and files that are broken."""

import os

import numpy as np
import pytest
from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.formats import index

BOX = (2, 3, 12, 11)


def xml(filename="", *objects, size=(40, 30), head=""):
    things = "".join(
        f"<object><name>{label}</name><bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax>"
        f"<ymax>{box[3]}</ymax></bndbox>{''.join(more)}</object>"
        for label, box, *more in objects
    )
    frame = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    return f"{head}<annotation><filename>{filename}</filename>{frame}{things}</annotation>"


def write(folder, photos=(), xmls=None):
    """Photos are paths below JPEGImages; xmls are {path below Annotations: text or bytes}."""
    (folder / "Annotations").mkdir(parents=True, exist_ok=True)
    for name in photos:
        path = folder / "JPEGImages" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (90, 120, 60)).save(path, format="PNG")
    for name, text in (xmls or {}).items():
        path = folder / "Annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def found(catalog):
    """What is known of each image: {key below JPEGImages: its classes}."""
    keys = [catalog.key(row).removeprefix("JPEGImages/") for row in range(len(catalog))]
    return {key: [catalog.classes[c] for c in catalog.annotations(r).classes] for r, key in enumerate(keys)}


def declared(encoding, text="", written=None):
    text = text or xml("a.jpg", ("狗和猫", BOX))
    head = f'<?xml version="1.0" encoding="{encoding}"?>'
    return (head + text).encode(written or encoding)


@pytest.mark.parametrize(
    "data",
    [
        xml("a.jpg", ("狗和猫", BOX)),
        b"\xef\xbb\xbf" + xml("a.jpg", ("狗和猫", BOX)).encode(),
        b"\xef\xbb\xbf" + declared("utf-8"),
        b"\n\n  " + declared("utf-8"),
        declared("gbk"),
        declared("GB2312"),
        declared("gb18030"),
        declared("big5", xml("a.jpg", ("貓", BOX))),
        declared("shift_jis", xml("a.jpg", ("犬と猫", BOX))),
        declared("x-sjis", xml("a.jpg", ("犬と猫", BOX)), "cp932"),
        declared("cp936"),
        declared("euc-jp", xml("a.jpg", ("犬と猫", BOX))),
        declared("euc-kr", xml("a.jpg", ("고양이", BOX))),
        declared("windows-1251", xml("a.jpg", ("кошка", BOX))),
        declared("iso-8859-1", xml("a.jpg", ("chat à poil", BOX))),
        xml("a.jpg", ("狗和猫", BOX)).encode("utf-16"),
        declared("utf-16", written="utf-16"),
        declared("utf-8", written="gbk"),  # declares one, is another
        declared("foo-8", written="utf-8"),
        declared("foo-8", written="gbk"),
        xml("a.jpg", ("狗和猫", BOX)).encode("gbk"),
        xml("a.jpg", ("chat à", BOX)).encode("latin-1"),
    ],
)
def test_encodings(tmp_path, data):
    write(tmp_path, ["a.jpg"], {"a.xml": data})
    (names,) = found(index(tmp_path, "voc", strict=True)[0]).values()
    assert names in (["狗和猫"], ["犬と猫"], ["貓"], ["고양이"], ["кошка"], ["chat à poil"], ["chat à"])


@pytest.mark.parametrize(
    ("photos", "xmls", "expected"),
    [
        (["a.png", "b.JPG", "c.jpeg"], {"a.xml": "a", "b.xml": "b.jpg", "c.xml": ""}, ["a.png", "b.JPG", "c.jpeg"]),
        (["a.jpg"], {"a.XML": "a.jpg"}, ["a.jpg"]),
        (["a.b.jpg"], {"a.b.xml": "other"}, ["a.b.jpg"]),
        (["a.jpg"], {"a.jpg.xml": "a.jpg"}, ["a.jpg"]),
        (["x/a.jpg", "y/a.jpg"], {"x/a.xml": "a.jpg", "y/a.xml": "a.jpg"}, ["x/a.jpg", "y/a.jpg"]),
        (["a.jpg"], {"x/a.xml": "a.jpg"}, ["a.jpg"]),
        (["x/a.jpg"], {"a.xml": "a.jpg"}, ["x/a.jpg"]),
        (["photo.jpg"], {"0.xml": "photo.jpg"}, ["photo.jpg"]),  # no image of the XML's own name
        (["photo.jpg"], {"0.xml": "C:\\data\\JPEGImages\\photo.jpg"}, []),
        (["photo.jpg"], {"0.xml": "JPEGImages\\photo.jpg"}, ["photo.jpg"]),
        (["a.jpg", "a.png"], {"a.xml": "a.png"}, ["a.png"]),  # two of its name: <filename> says which
    ],
)
def test_which_photo_an_xml_file_is_of(tmp_path, photos, xmls, expected):
    write(tmp_path, photos, {name: xml(filename, ("dog", BOX)) for name, filename in xmls.items()})
    if not expected:
        with pytest.raises(ObjcropError, match="no image to index"):
            index(tmp_path, "voc")
        return
    assert found(index(tmp_path, "voc", strict=True)[0]) == {name: ["dog"] for name in expected}


def test_the_own_name_wins_over_filename_and_both_are_said(tmp_path):
    photos = ["a.jpg", "b.jpg", "c.jpg"]
    write(tmp_path, photos, {"a.xml": xml("a.jpg", ("cat", BOX)), "b.xml": xml("c.jpg", ("dog", BOX))})
    catalog, report = index(tmp_path, "voc")
    assert found(catalog) == {"a.jpg": ["cat"], "b.jpg": ["dog"]}
    assert report.left_out == [("JPEGImages/c.jpg", "no XML file of that name")]
    ((place, what),) = report.remarks
    assert place == "Annotations/b.xml" and "'c.jpg'" in what and "'b.jpg'" in what


def test_two_files_of_one_image(tmp_path):
    """The one of the image's name has it; of two others neither, and both are named."""
    own = {"a.xml": xml("a.jpg", ("cat", BOX)), "z.xml": xml("a.jpg", ("dog", BOX))}
    catalog, report = index(write(tmp_path / "own", ["a.jpg"], own), "voc")
    assert found(catalog) == {"a.jpg": ["cat"]}
    assert report.bad_entries[0][0] == "Annotations/z.xml" and "Annotations/a.xml" in report.bad_entries[0][1]
    neither = {f"{name}.xml": xml("a.jpg", (name, BOX)) for name in "yz"} | {"b.xml": xml("b.jpg")}
    catalog, report = index(write(tmp_path / "neither", ["a.jpg", "b.jpg"], neither), "voc")
    assert found(catalog) == {"b.jpg": []} and len(report.bad_entries) == 2
    assert "z.xml" in report.bad_entries[0][1] and "y.xml" in report.bad_entries[1][1]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty"),
        (b" \n", "it is empty"),
        (b"/nonexistent", "broken XML at line 1, column 1"),
        (b"<annotation>\n<object></annotation>", "broken XML at line 2"),
        (b"<annotation/><more/>", "broken XML at line 1, column 14"),
        (b"<html><body/></html>", "its outermost element is <html>"),
        (b"\xef\xbb\xbf<annotation>\xff</annotation>", "no text in its encoding"),
        (b"<annotation>&nothing;</annotation>", "broken XML"),
        (b"PK\x03\x04\x00\x00", "broken XML"),
        ("deep", "bndbox"),
        ("bomb", "broken XML"),
    ],
)
def test_one_broken_file_is_left_out(tmp_path, data, reason):
    if data == "deep":
        data = b"<annotation><object>" + b"<a>" * 50_000 + b"</a>" * 50_000 + b"</object></annotation>"
    elif data == "bomb":
        entities = "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 12}">' for i in range(1, 12))
        data = f'<!DOCTYPE annotation [<!ENTITY a0 "ha">{entities}]><annotation><name>&a11;</name></annotation>'
    photos = ["a.jpg", "b.jpg"]
    write(tmp_path, photos, {"a.xml": xml("a.jpg", ("dog", BOX)), "b.xml": data})
    catalog, report = index(tmp_path, "voc")
    assert found(catalog)["a.jpg"] == ["dog"] and not found(catalog).get("b.jpg")
    ((place, why),) = report.bad_entries
    assert place.startswith("Annotations/b.xml") and reason in why
    assert report.left_out == []  # b.jpg has an XML file; what is wrong with that is said
    with pytest.raises(ObjcropError) as caught:
        index(tmp_path, "voc", strict=True)
    assert place in str(caught.value) and reason in str(caught.value)


@pytest.mark.parametrize(
    ("label", "box", "more", "reason"),
    [
        ("dog", ("one", 1, 2, 2), "", "xmin is 'one'"),
        ("dog", ("", 1, 2, 2), "", "xmin is missing"),
        ("dog", (1, 1, "1_0", 2), "", "xmax is '1_0'"),
        ("dog", (1, 1, "٣", 2), "", "xmax is"),
        ("dog", ("nan", 1, 2, 2), "", "not finite"),
        ("dog", (1, "-inf", 2, 2), "", "not finite"),
        ("dog", (1, 1, "1e999", 2), "", "not finite"),
        ("dog", (1, 1, "9" * 5000, 2), "", "not finite"),
        ("dog", (100, 1, 120, 2), "", "no area inside its image"),
        ("dog", BOX, "<difficult>perhaps</difficult>", "neither yes nor no"),
        (" ", BOX, "", "the object has no name"),
    ],
)
def test_one_bad_object_is_left_out(tmp_path, label, box, more, reason):
    write(tmp_path, ["a.jpg"], {"a.xml": xml("a.jpg", ("cat", BOX), (label, box, more))})
    catalog, report = index(tmp_path, "voc")
    assert found(catalog) == {"a.jpg": ["cat"]}
    ((place, why),) = report.bad_entries
    assert place == "Annotations/a.xml object 2" and reason in why
    with pytest.raises(ObjcropError, match="object 2"):
        index(tmp_path, "voc", strict=True)


def test_swapped_corners_text_and_flags(tmp_path):
    objects = [
        ("cat", (12, 11, 2, 3), ""),
        ("cat", ("2.0", " 3 ", 12, 11), "<difficult>1</difficult>"),
        ("cat", (2, 3, 12, 11), "<difficult>Unspecified</difficult>"),
    ]
    write(tmp_path, ["a.jpg"], {"a.xml": xml("a.jpg", *objects, size=("inf", "-3"))})
    catalog, report = index(tmp_path, "voc", strict=True)
    truth = catalog.annotations(0)
    assert truth.boxes.tolist() == [[1, 2, 12, 11]] * 3 and truth.difficult.tolist() == [False, True, False]
    assert "swapped" in report.remarks[0][1] and report.other_size == []


def test_objects_without_any_name_are_one_class(tmp_path):
    write(tmp_path, ["a.jpg", "b.jpg"], {f"{name}.xml": xml(f"{name}.jpg", ("", BOX)) for name in "ab"})
    catalog, report = index(tmp_path, "voc", strict=True)
    assert catalog.classes == ["object"] and found(catalog) == {"a.jpg": ["object"], "b.jpg": ["object"]}
    assert report.remarks


def test_all_lists_of_a_set_have_its_classes(tmp_path):
    names = {"a": "auk", "b": "bat", "c": "bat"}
    write(tmp_path, [f"{n}.jpg" for n in names], {f"{n}.xml": xml(f"{n}.jpg", (names[n], BOX)) for n in names})
    write(tmp_path, xmls={"broken.xml": "<"})
    lines = {"train": "a\nb\n", "test": "c -1\r\n", "paths": "./JPEGImages/c.jpg Annotations/c.xml\n"}
    for name, text in lines.items():
        (tmp_path / f"{name}.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    read = {n: index(tmp_path, "voc", annotations=tmp_path / f"{n}.txt", strict=True)[0] for n in lines}
    assert all(catalog.classes == ["auk", "bat"] for catalog in read.values())
    assert found(read["train"]) == {"a.jpg": ["auk"], "b.jpg": ["bat"]}
    assert found(read["test"]) == found(read["paths"]) == {"c.jpg": ["bat"]}


def test_photos_beside_their_xml_files(tmp_path):
    """As labelling tools leave them: no Annotations folder, no JPEGImages."""
    for place in ("", "more/"):
        path = tmp_path / f"{place}a.jpeg"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30)).save(path)
        path.with_suffix(".xml").write_text(xml("whatever.jpg", (f"cat{place[:1]}", BOX)))
    (tmp_path / "a.txt").write_text("another tool's labels")
    catalog, report = index(tmp_path, "voc", strict=True)
    assert found(catalog) == {"a.jpeg": ["cat"], "more/a.jpeg": ["catm"]} and report.left_out == []


def test_limit_counts_images_that_can_be_used(tmp_path):
    photos = ["a.jpg", "b.jpg", "c.jpg"]
    write(tmp_path, photos, {"a.xml": "<", "b.xml": xml("b.jpg"), "c.xml": xml("c.jpg")})
    assert list(found(index(tmp_path, "voc", limit=1)[0])) == ["b.jpg"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_pipes_and_dangling_links_are_listed_and_not_waited_for(tmp_path):
    write(tmp_path, ["a.jpg"], {"a.xml": xml("a.jpg", ("cat", BOX))})
    os.mkfifo(tmp_path / "Annotations/b.xml")
    (tmp_path / "Annotations/c.xml").symlink_to("/nonexistent")
    os.mkfifo(tmp_path / "JPEGImages/d.jpg")
    catalog, report = index(tmp_path, "voc")
    assert found(catalog) == {"a.jpg": ["cat"]}
    assert dict(report.left_out) == {
        "b.xml": "not a regular file",
        "c.xml": "a link to nothing",
        "JPEGImages/d.jpg": "not a regular file",
    }


def test_boxes_of_many_files_go_to_their_own_images(tmp_path):
    rng = np.random.default_rng(0)
    corners = {f"{i:02d}": np.sort(rng.integers(1, 30, (2, 2)), 0).reshape(4) for i in range(30)}
    write(tmp_path, [f"{n}.jpg" for n in corners], {f"{n}.xml": xml("00.jpg", ("x", corners[n])) for n in corners})
    catalog, _ = index(tmp_path, "voc")
    for row, key in enumerate(catalog.keys()):
        x0, y0, x1, y1 = corners[key[-6:-4]]
        assert catalog.annotations(row).boxes.tolist() == [[x0 - 1, y0 - 1, x1, y1]]
