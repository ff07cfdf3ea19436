"""Boxes of other programs: results JSON, CSVs of spreadsheets, npy; each box to its image, or refused."""

import io
import json
import logging
import math

import numpy as np
import pytest

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.proposals import propose

BOX = [1, 2, 30, 40]


@pytest.fixture
def catalog(tmp_path):
    keys = ["day/1.jpg", "day/2.jpg", "night/1.jpg", "COCO_val2014_000000000139.jpg", "named.png"]
    (tmp_path / "photos").mkdir()
    return Catalog.build(tmp_path / "photos", keys, [(120, 90)] * 5)


def write(path, content):
    if isinstance(content, (list, dict)):
        content = json.dumps(content)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def boxes_of(table, catalog):
    return {key: table[row].tolist() for row, key in enumerate(catalog.keys()) if len(table[row])}


HEAD = "key,x0,y0,x1,y1,score\n"
LINE = "day/1.jpg,1,2,30,40,0.5\n"


@pytest.mark.parametrize(
    "text",
    [
        HEAD + LINE,
        (HEAD + LINE).replace("\n", "\r\n"),
        (HEAD + LINE).replace("\n", "\r"),
        (HEAD + LINE).encode("utf-8-sig"),
        (HEAD + LINE).encode("utf-16"),
        (HEAD + LINE).replace(",", "\t").encode("utf-16"),
        (HEAD + LINE).replace(",", ";"),
        (HEAD + LINE).replace(",", ";").replace("1;2", "1,0;2,00").replace("0.5", "0,5"),
        (HEAD + LINE).replace(",", "\t").replace("0.5", "0,5"),
        "sep=;\r\n" + (HEAD + LINE).replace(",", ";"),
        "\n" + HEAD + "\n" + LINE + "\n\n",
        HEAD + LINE + ",,,,,\n" + "day/2.jpg,,,,,\n",  # a cell that is empty is no box
        HEAD.upper() + LINE,
        "score, y1 ,x1,y0,x0,class, key\n0.5,40,30,2,1,dog,day/1.jpg\n",
        "key,x0,y0,x1,y1\nday/1.jpg,1,2,30,40\n",
        '"key","x0","y0","x1","y1"\n"day/1.jpg","1","2","30","40"\n',
        HEAD + LINE.replace("day/", "./day/"),
        HEAD + LINE.replace("day/", "day\\"),
        HEAD + LINE.replace("day/", "photos\\day\\"),
        HEAD + LINE.replace(".jpg", ""),
        HEAD + LINE.replace(".jpg", ".JPG"),
        HEAD + LINE.replace("1,2,30,40", "30,40,1,2"),  # corners swapped
        HEAD + LINE.replace("1,2,30,40", "1.0,2e0,+30,40."),
    ],
)
def test_csv_as_spreadsheets_write_it(tmp_path, catalog, text):
    table = propose(catalog, "import", source=write(tmp_path / "b.CSV", text), strict=True)
    assert boxes_of(table, catalog) == {"day/1.jpg": [BOX]}


def results(image_id, **more):
    return [{"image_id": image_id, "bbox": [1, 2, 29, 38], "score": 0.5} | more]


INSTANCES = {"images": [{"id": "a-1", "file_name": "./day/1.jpg"}, {"id": 7, "file_name": "photos\\day\\2.jpg"}]}


@pytest.mark.parametrize(
    ("content", "instances", "key"),
    [
        (results(2), None, "day/2.jpg"),
        (results("2"), None, "day/2.jpg"),
        (results(2.0), None, "day/2.jpg"),
        (results(139), None, "COCO_val2014_000000000139.jpg"),
        (results("day/1.jpg"), None, "day/1.jpg"),
        (results("named"), None, "named.png"),
        (results("a-1"), INSTANCES, "day/1.jpg"),
        (results("7"), INSTANCES, "day/2.jpg"),
        (results("007"), INSTANCES, "day/2.jpg"),
        (results(2, bbox=["1", "2", "29", "38.0"], score="0.5"), None, "day/2.jpg"),
        (results(2, score=None), None, "day/2.jpg"),
        (results(2, bbox=None, segmentation=[[1, 2, 30, 2, 30, 40]]), None, "day/2.jpg"),
        (b"\xef\xbb\xbf" + json.dumps(results(2)).encode(), None, "day/2.jpg"),
        (json.dumps(results(2)).encode("utf-16"), None, "day/2.jpg"),
        (
            "\n".join(json.dumps(r) for r in results(2) + results(2)[:0] + results("named", bbox=[5, 5, 0, 0])),
            None,
            "day/2.jpg",
        ),
    ],
)
def test_json_as_detectors_write_it(tmp_path, catalog, content, instances, key):
    options = {"annotations": write(tmp_path / "i.json", instances)} if instances else {}
    table = propose(catalog, "import", source=write(tmp_path / "b.JSON", content), strict=True, **options)
    assert boxes_of(table, catalog) == {key: [BOX]}


@pytest.mark.parametrize(
    ("name", "content", "instances"),
    [
        ("b.json", results(1), None),
        ("b.json", results("1"), None),
        ("b.json", results("1.jpg"), None),
        ("b.json", results(4), {"images": [{"id": 4, "file_name": "1.jpg"}]}),
        ("b.csv", HEAD + LINE.replace("day/", ""), None),
    ],
)
def test_a_name_of_two_images_is_refused_with_both_named(tmp_path, catalog, name, content, instances):
    options = {"annotations": write(tmp_path / "i.json", instances)} if instances else {}
    with pytest.raises(ObjcropError) as caught:
        propose(catalog, "import", source=write(tmp_path / name, content), **options)
    said = str(caught.value)
    assert "'day/1.jpg' or 'night/1.jpg'" in said and "\n" not in said


def test_a_whole_path_wins_over_the_same_base_name(tmp_path):
    catalog = Catalog.build(tmp_path, ["1.jpg", "night/1.jpg"], [(120, 90)] * 2)
    source = write(tmp_path / "b.json", results(4))
    named = write(tmp_path / "i.json", {"images": [{"id": 4, "file_name": "1.jpg"}]})
    assert boxes_of(propose(catalog, "import", source=source, annotations=named), catalog) == {"1.jpg": [BOX]}


def test_digits_of_names_are_ascii(tmp_path):
    """int() takes "٣", str.isdigit() "²"; neither is the number of an image."""
    catalog = Catalog.build(tmp_path, ["3.jpg", "5².jpg", "٣.jpg", "²5.jpg"], [(120, 90)] * 4)
    table = propose(catalog, "import", source=write(tmp_path / "b.json", results(3)))
    assert boxes_of(table, catalog) == {"3.jpg": [BOX]}
    with pytest.raises(ObjcropError, match="image_id 52 is not in the catalog"):
        propose(catalog, "import", source=write(tmp_path / "b.json", results(52)))


@pytest.mark.parametrize(
    ("name", "bad", "reason"),
    [
        ("b.json", 5, "it is 5"),
        ("b.json", {"bbox": BOX}, "image_id is None"),
        ("b.json", results([1])[0], "image_id is [1]"),
        ("b.json", results(True)[0], "image_id is True"),
        ("b.json", results(2, bbox=[])[0], "lacks a bbox of four numbers"),
        ("b.json", results(2, bbox=[1, 2])[0], "not four numbers"),
        ("b.json", results(2, bbox=[1, 2, "x", 4])[0], "'x' is no number"),
        ("b.json", results(2, bbox=[1, 2, math.nan, 4])[0], "is not finite"),
        ("b.json", results(2, bbox=[10**400, 2, 3, 4])[0], "is not finite"),
        ("b.json", results(2, score=10**400)[0], "is not finite"),
        ("b.json", results(2, score="high")[0], "'high' is no number"),
        ("b.json", results(2, score={})[0], "is no number"),
        ("b.json", results(99)[0], "image_id 99 is not in the catalog"),
        ("b.json", results("9" * 5000)[0], "is not in the catalog"),
        ("b.csv", "day/1.jpg,1,2", "'' is no number"),
        ("b.csv", "day/1.jpg,1,2,3,four,1", "'four' is no number"),
        ("b.csv", "day/1.jpg,1,2,3,1_0,1", "'1_0' is no number"),
        ("b.csv", "day/1.jpg,1,2,3,٤,1", "is no number"),
        ("b.csv", "day/1.jpg,-inf,2,3,4,1", "is not finite"),
        ("b.csv", "day/1.jpg,1,2,3,4,nan", "is not finite"),
        ("b.csv", "dusk/1.jpg,1,2,3,4,1", "'dusk/1.jpg' is not in the catalog"),
        ("b.csv", "\0,1,2,3,4,1", ""),
        ("b.csv", 'day/1.jpg,"' + "9" * 200_000 + '",2,3,4,1', "field"),
        ("b.npy", [9, 1, 2, 3, 4, 1], "row 9"),
        ("b.npy", [0.5, 1, 2, 3, 4, 1], "row 0.5"),
        ("b.npy", [math.nan, 1, 2, 3, 4, 1], "row nan"),
        ("b.npy", [0, math.inf, 2, 3, 4, 1], "is not finite"),
        ("b.npy", [0, 1, 2, 3, 4, math.nan], "is not finite"),
    ],
)
def test_one_bad_entry_is_left_out_and_said(tmp_path, catalog, caplog, name, bad, reason):
    if name.endswith("json"):
        content, place = [*results(2), bad], "entry 1 of b.json"
    elif name.endswith("csv"):
        content, place = HEAD + "day/2.jpg,1,2,30,40,0.5\n" + bad + "\n", "line 3 of b.csv"
    else:
        file = io.BytesIO()
        np.save(file, np.array([[2, *BOX, 0.5], bad]))
        content, place = file.getvalue(), "entry 1 of b.npy"
    source = write(tmp_path / name, content)
    with caplog.at_level(logging.WARNING, "objcrop"):
        table = propose(catalog, "import", source=source)
    assert boxes_of(table, catalog) == {"day/2.jpg": [BOX]}
    assert place in caplog.text and reason in caplog.text
    with pytest.raises(ObjcropError) as caught:
        propose(catalog, "import", source=source, strict=True)
    assert place in str(caught.value) and reason in str(caught.value) and "\n" not in str(caught.value)


def npy(header):
    text = header.encode("latin-1").ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + np.zeros(12).tobytes()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("b.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (2, 6), }")[:-8]),
        ("b.npy", npy("{'descr': '<f8'\xcb\xdc\xf2(, 'fortran_order': False, 'shape': (8, 6), }")),
        ("b.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000, 6), }")),
        ("b.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (-1, 6), }")),
        ("b.npy", npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 6), }")),
        ("b.npy", npy("{'descr': '<f8', 'fortran_order': False, 'shape': (" + "9" * 60 + ", 6), }")),
        ("b.npy", npy("{" * 100)),
        ("b.npy", b""),
        ("b.npy", b"\x93NUMPY"),
        ("b.npy", b"\x93NUMPY\x09\x00\xff\xff"),
        ("b.npy", b"PK\x03\x04"),
        ("b.json", "[" * 100_000),
        ("b.json", b"\x00\xff\xfe"),
        ("b.json", '{"a": 1}'),
        ("b.json", "[]"),
        ("b.csv", ""),
        ("b.csv", b"\xff\xfe"),
        ("b.csv", "key,x0\n"),
        ("b.csv", "\0\0\0"),
    ],
)
def test_what_is_none_of_its_format_ends_in_one_sentence(tmp_path, catalog, name, content):
    with pytest.raises(ObjcropError) as caught:
        propose(catalog, "import", source=write(tmp_path / name, content))
    assert name in str(caught.value) and "\n" not in str(caught.value)


def test_numbers_that_float32_does_not_hold_are_clipped(tmp_path, catalog):
    entries = [*results(2, bbox=[-1e300, 2, 1e301, 38], score=1e300), *results(2)]
    table = propose(catalog, "import", source=write(tmp_path / "b.json", entries))
    assert boxes_of(table, catalog) == {"day/2.jpg": [[0, 2, 120, 40], BOX]} and np.isfinite(table.scores).all()


def test_the_command_line_takes_strict(tmp_path, objcrop):
    from PIL import Image

    (tmp_path / "photos").mkdir()
    Image.new("RGB", (60, 50)).save(tmp_path / "photos/2.png")
    objcrop("index", tmp_path / "photos", "-o", tmp_path / "c.arrow")
    write(tmp_path / "b.json", [*results(2), *results(2, bbox=[])])
    words = ("propose", tmp_path / "c.arrow", "--method", "import", "--source", tmp_path / "b.json", "-o")
    assert objcrop(*words, tmp_path / "b.arrow").returncode == 0
    said = objcrop(*words, tmp_path / "b.arrow", "--strict")
    assert said.returncode == 1 and "entry 1 of b.json" in said.stderr
    said = objcrop("propose", tmp_path / "c.arrow", "--method", "grid", "--strict", "-o", tmp_path / "b.arrow")
    assert said.returncode == 2
