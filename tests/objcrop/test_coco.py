"""COCO files as tools and their users write them: read where the meaning is plain, else left out and listed."""

import codecs
import copy
import json
import math
import unicodedata

import pytest
from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.formats import index

NAMES = ("a.jpg", "b.jpg", "c.jpg")
BASE = {
    "images": [{"id": i, "file_name": name, "width": 40, "height": 30} for i, name in enumerate(NAMES, 1)],
    "annotations": [
        {"id": i, "image_id": i, "category_id": category, "bbox": [2, 3, 10, 8], "iscrowd": 0}
        for i, category in ((1, 1), (2, 2), (3, 1))
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
}
ALL = [("a.jpg", "cat"), ("b.jpg", "dog"), ("c.jpg", "cat")]  # whose box is of which class


def write(folder, content, names=NAMES):
    for name in names:
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), (90, 120, 60)).save(path, format="JPEG")
    text = content if isinstance(content, (bytes, str)) else json.dumps(content)
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "instances.json").write_bytes(data)
    return folder


def changed(path, value):
    """BASE with one value set; `path` is like "annotations.0.bbox". A value of `del` takes it out."""
    content = copy.deepcopy(BASE)
    *way, last = (int(part) if part.isdecimal() else part for part in path.split("."))
    at = content
    for part in way:
        at = at[part]
    if value is del_:
        del at[last]
    else:
        at[last] = value
    return content


def del_():
    """Stand for: take it out."""


def each(part, key, function):
    content = copy.deepcopy(BASE)
    for entry in content[part]:
        entry[key] = function(entry.get(key))
    return content


def found(catalog):
    keys = catalog.keys()
    return [(keys[r], catalog.classes[c]) for r in range(len(keys)) for c in catalog.annotations(r).classes]


PLAIN = {
    "size as text": each("images", "width", str),
    "size as a float": each("images", "height", float),
    "no size": each("images", "width", lambda _: None),
    "unusable size": each("images", "width", lambda _: "\x1b[31m"),
    "image ids as text on one side": each("images", "id", str),
    "image ids as text on the other": each("annotations", "image_id", str),
    "image ids with zeros in front": each("annotations", "image_id", lambda i: f"{i:012d}"),
    "image ids as floats": each("annotations", "image_id", float),
    "image ids as text floats": each("annotations", "image_id", lambda i: f"{i}.0"),
    "category ids as text": each("annotations", "category_id", str),
    "mixed category ids": changed("categories.1.id", "2"),
    "coordinates as text": each("annotations", "bbox", lambda box: [str(v) for v in box]),
    "iscrowd as text": each("annotations", "iscrowd", lambda _: "0"),
    "iscrowd in words": each("annotations", "iscrowd", lambda _: "False"),
    "iscrowd null": each("annotations", "iscrowd", lambda _: None),
    "./": each("images", "file_name", "./{}".format),
    "backslashes": each("images", "file_name", ".\\{}".format),
    "the folder's name": each("images", "file_name", "images/{}".format),
    "the folder's name, backslashes": each("images", "file_name", "images\\{}".format),
    "out of the folder and in again": each("images", "file_name", "../images/{}".format),
    "spaces around": each("images", "file_name", " {} ".format),
    "percent signs": each("images", "file_name", lambda name: name.replace(".", "%2E")),
    "no ending": each("images", "file_name", lambda name: name[0]),
    "another ending's case": each("images", "file_name", lambda name: f"{name[0]}.JPG"),
    "the same image twice": changed("images", [*BASE["images"], BASE["images"][0]]),
    "the same image with two ids": changed("images", [*BASE["images"], BASE["images"][0] | {"id": 9}]),
    "the same image, once without a size": changed("images", [*BASE["images"], {"id": 9, "file_name": "./a.jpg"}]),
    "the same category twice": changed("categories", [*BASE["categories"], BASE["categories"][0]]),
    "two ids of one category": changed("categories", [*BASE["categories"], {"id": 7, "name": "dog"}]),
    "spaces around a category": changed("categories.1.name", " dog "),
    "more keys": BASE | {"info": {"images": 3, "annotations": None}},
    "byte order mark": codecs.BOM_UTF8 + json.dumps(BASE).encode(),
    "UTF-16": json.dumps(BASE).encode("utf-16"),
    "UTF-16 without a mark": json.dumps(BASE).encode("utf-16-le"),
    "UTF-32": json.dumps(BASE).encode("utf-32"),
}


@pytest.mark.parametrize("what", PLAIN)
def test_plain_meaning_is_read(tmp_path, what):
    catalog, report = index(write(tmp_path, PLAIN[what]), "coco", strict=True)
    assert found(catalog) == ALL and catalog.classes == ["cat", "dog"]
    assert catalog.all_annotations().boxes.tolist() == [[2, 3, 12, 11]] * 3
    assert not catalog.all_annotations().crowd.any() and report.bad_entries == report.left_out == []


def test_names_on_disk_that_only_look_alike(tmp_path):
    """The name as it is written wins; accents composed otherwise and text files beside a photo are no obstacle."""
    decomposed = unicodedata.normalize("NFD", "é.jpg")
    names = ("a.jpg", "A.jpg", "x\\a.jpg", "x/a.jpg", decomposed, "b.jpg")
    content = {"images": [{"id": i, "file_name": name} for i, name in enumerate(("a.jpg", "x\\a.jpg", "é.jpg", "b"))]}
    write(tmp_path, content, names)
    (tmp_path / "images/b.txt").write_text("a label")
    assert sorted(index(tmp_path, "coco")[0].keys()) == sorted(["a.jpg", "x\\a.jpg", decomposed, "b.jpg"])


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("annotations.0", 5, "the entry is 5"),
        ("annotations.0", None, "the entry is None"),
        ("annotations.0.bbox", [], "bbox is []"),
        ("annotations.0.bbox", None, "bbox is None"),
        ("annotations.0.bbox", del_, "bbox is None"),
        ("annotations.0.bbox", [1, 2, 3], "not four numbers"),
        ("annotations.0.bbox", {"x": 1}, "not four numbers"),
        ("annotations.0.bbox", [1, 2, "three", 4], "'three' is no number"),
        ("annotations.0.bbox", [1, 2, "٣", 4], "is no number"),
        ("annotations.0.bbox", [1, 2, "1_0", 4], "'1_0' is no number"),
        ("annotations.0.bbox", [1, 2, [3], 4], "[3] is no number"),
        ("annotations.0.bbox", [1, 2, True, 4], "True is no number"),
        ("annotations.0.bbox", [1, 2, math.nan, 4], "is not finite"),
        ("annotations.0.bbox", [1, 2, 1e999, 4], "is not finite"),
        ("annotations.0.bbox", [10**400, 2, 3, 4], "is not finite"),
        ("annotations.0.bbox", [None, 2, 3, 4], "is not finite"),
        ("annotations.0.bbox", [1, 2, 0, 4], "no area inside its image"),
        ("annotations.0.bbox", [1e300, 2, 5, 4], "no area inside its image"),
        ("annotations.0.category_id", 5, "category_id is 5, which is not listed"),
        ("annotations.0.category_id", del_, "category_id is None"),
        ("annotations.0.category_id", [1], "category_id is [1]"),
        ("annotations.0.image_id", None, "image_id is None"),
        ("annotations.0.image_id", {}, "image_id is {}"),
        ("annotations.0.image_id", True, "image_id is True"),
        ("annotations.0.image_id", math.nan, "image_id is nan"),
        ("annotations.0.iscrowd", "perhaps", "'perhaps' is neither yes nor no"),
        ("annotations.0.difficult", 7, "7 is neither yes nor no"),
        ("images.0", [], "the entry is []"),
        ("images.0.id", None, "None is no id"),
        ("images.0.file_name", None, "file_name is None"),
        ("images.0.file_name", "", "file_name is ''"),
        ("images.0.file_name", "../../a.jpg", "must lie below the image folder"),
        ("images.0.file_name", "/etc/a.jpg", "must lie below the image folder"),
        ("images.0.file_name", "C:\\photos\\a.jpg", "must lie below the image folder"),
        ("categories.1", "dog", "without a name"),
        ("categories.1.name", None, "without a name"),
    ],
)
def test_one_bad_entry_is_left_out_with_its_place_and_reason(tmp_path, part, value, reason):
    catalog, report = index(write(tmp_path, changed(part, value)), "coco")
    where = part.split(".")
    place = f"instances.json {where[0]}[{where[1]}]"
    assert [(at, why) for at, why in report.bad_entries if at == place and reason in why], report.bad_entries
    lost = {"annotations": "a.jpg", "images": "a.jpg", "categories": "b.jpg"}[where[0]]
    assert found(catalog) == [pair for pair in ALL if pair[0] != lost]
    assert any(place in line for line in report.lines())
    with pytest.raises(ObjcropError) as caught:
        index(tmp_path, "coco", strict=True)
    assert place in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "both"),
    [
        (changed("images.1.id", "1"), ("'a.jpg'", "'b.jpg'", "same id")),
        (changed("images.1.id", 1), ("'a.jpg'", "'b.jpg'", "same id")),
        (changed("categories.1.id", "1"), ("'cat'", "'dog'", "category id twice")),
        (changed("images", [*BASE["images"], BASE["images"][0] | {"width": 41}]), ("40x30", "41x30", "two sizes")),
        ('{"images": [], "images": [], "annotations": [], "categories": []}', ("'images' 2 times",)),
    ],
)
def test_two_readings_are_refused_with_both_named(tmp_path, content, both):
    write(tmp_path, content)
    with pytest.raises(ObjcropError) as caught:
        index(tmp_path, "coco")
    assert all(word in str(caught.value) for word in both) and "\n" not in str(caught.value)


def test_a_name_that_may_mean_two_images_is_left_out(tmp_path):
    write(tmp_path, changed("images.0.file_name", "x"), (*NAMES, "x.jpg", "x.png"))
    catalog, report = index(tmp_path, "coco")
    assert found(catalog) == ALL[1:] and "'x.jpg' or 'x.png'" in report.bad_entries[0][1]


def test_text_ids_with_zeros_in_front_stay_apart_where_they_must(tmp_path):
    content = copy.deepcopy(BASE)
    for part, key in (("images", "id"), ("annotations", "image_id")):
        for entry, text in zip(content[part], ("1", "01", "001")):
            entry[key] = text
    assert found(index(write(tmp_path, content), "coco")[0]) == ALL


@pytest.mark.parametrize(
    ("content", "classes"),
    [
        (each("annotations", "category_id", lambda _: None) | {"categories": []}, ["object"]),
        (each("annotations", "category_id", lambda _: None), ["object"]),
        (each("annotations", "category_id", lambda _: None) | {"categories": [{"id": 4, "name": "cell"}]}, ["cell"]),
        (BASE | {"categories": []}, ["1", "2"]),
    ],
)
def test_annotations_without_classes(tmp_path, content, classes):
    catalog, report = index(write(tmp_path, content), "coco", strict=True)
    assert catalog.classes == classes and len(found(catalog)) == 3 and report.remarks


@pytest.mark.parametrize("part", ["annotations", "categories"])
@pytest.mark.parametrize("value", [None, del_])
def test_files_without_annotations_are_images_without_boxes(tmp_path, part, value):
    content = changed(part, value)
    if part == "categories":
        content["annotations"] = []
    catalog, report = index(write(tmp_path, content), "coco", strict=True)
    assert catalog.keys() == list(NAMES) and found(catalog) == [] and part in report.remarks[0][1]


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"images": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"images": {}}',
        '{"images": [], "annotations": {}}',
        "5",
        "",
        b"\xff\xfe",
        b"\x00",
        b"PK\x03\x04",
    ],
)
def test_what_is_none_of_its_format_ends_in_one_sentence(tmp_path, text):
    write(tmp_path, text)
    with pytest.raises(ObjcropError) as caught:
        index(tmp_path, "coco")
    assert "instances.json" in str(caught.value) and "\n" not in str(caught.value)


def test_an_integer_of_many_digits_costs_its_entry_only(tmp_path):
    text = json.dumps(BASE).replace('"bbox": [2,', '"bbox": [' + "9" * 10_000 + ",", 1)
    catalog, report = index(write(tmp_path, text), "coco")
    assert found(catalog) == ALL[1:] and "is not finite" in report.bad_entries[0][1]


def test_broken_bytes_cost_their_entry_only(tmp_path):
    content = changed("categories.0.name", "狗和猫")
    whole = json.dumps(content, ensure_ascii=False)
    write(tmp_path, whole.replace("b.jpg", "b?.jpg").encode().replace(b"?", b"\xff"))
    catalog, report = index(tmp_path, "coco")
    assert catalog.classes[0] == "狗和猫" and found(catalog) == [("a.jpg", "狗和猫"), ("c.jpg", "狗和猫")]
    assert len(report.lines()) > 1
    # Where nothing speaks for UTF-8, another encoding is tried.
    write(tmp_path, whole.encode("gbk"))
    assert index(tmp_path, "coco")[0].classes == ["狗和猫", "dog"]


def test_lone_surrogates_and_control_characters_are_escaped(tmp_path):
    content = changed("categories.0.name", "\ud800\x1b[31m")
    content["images"].append({"id": 9, "file_name": "\ud800\n.jpg"})
    catalog, report = index(write(tmp_path, content), "coco")
    catalog.save(tmp_path / "o.arrow")
    assert catalog.classes[0] == "\\ud800\\x1b[31m" and found(catalog)[1:2] == ALL[1:2]
    assert all(line.isprintable() for line in report.lines())


def test_strict_ends_at_an_image_that_is_not_there(tmp_path):
    write(tmp_path, BASE, NAMES[:2])
    assert index(tmp_path, "coco")[1].missing_annotated == ["c.jpg"]
    with pytest.raises(ObjcropError, match=r"c\.jpg: the annotated image is not there"):
        index(tmp_path, "coco", strict=True)


def test_the_command_line_takes_strict(tmp_path, objcrop):
    write(tmp_path, changed("annotations.1.bbox", []))
    said = objcrop("index", tmp_path, "--format", "coco", "-o", tmp_path / "o.arrow")
    assert said.returncode == 0 and "annotations[1]: bbox is []" in said.stdout
    said = objcrop("index", tmp_path, "--format", "coco", "--strict", "-o", tmp_path / "o.arrow")
    assert said.returncode == 1 and "annotations[1]: bbox is []" in said.stderr and "Traceback" not in said.stderr
