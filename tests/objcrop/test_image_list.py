"""Lists of images in CSV and Parquet: what they say, read by loops, and what is wrong with them."""

import csv
import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.formats.image_names import key_finder
from objcrop.formats.plain_values import BadValue

NAMES = ["a.jpg", "b.png", "deep/c d.jpg", "deep/é.jpg"]
SIZE = (40, 30)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("list")
    (folder / "deep").mkdir()
    for name in NAMES:
        Image.new("RGB", SIZE).save(folder / name)
    return folder


def write(folder, text, name="list.csv"):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def what_it_says(catalog):
    """Of each key its labels and its (label, box) pairs."""
    said = {}
    for row, key in enumerate(catalog.keys()):
        truth = catalog.annotations(row)
        labels = [catalog.classes[c] for c in np.flatnonzero(catalog.label_matrix([row])[0])]
        said[key] = labels, [(catalog.classes[c], box.tolist()) for c, box in zip(truth.classes, truth.boxes)]
    return said


def error(*args, **options):
    with pytest.raises(ObjcropError) as caught:
        index(*args, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_images_labels_and_boxes(folder):
    rows = ["a.jpg,cat,1,2,30,20.5", "a.jpg,dog,0,0,5,5", "b.png,owl,,,,", "b.png,cat,,,,", "deep/c d.jpg,,,,,"]
    catalog, report = index(write(folder, "\n".join(["path,label,x0,y0,x1,y1", *rows])), "list")
    assert what_it_says(catalog) == {
        "a.jpg": (["cat", "dog"], [("cat", [1, 2, 30, 20.5]), ("dog", [0, 0, 5, 5])]),
        "b.png": (["cat", "owl"], []),
        "deep/c d.jpg": ([], []),
    }
    assert catalog.classes == ["cat", "dog", "owl"] and report.lines() == ["3 images, 2 boxes"]
    one, _ = index(folder / "list.csv", "list", limit=1)
    assert one.classes == catalog.classes and what_it_says(one) == {"a.jpg": what_it_says(catalog)["a.jpg"]}


@pytest.mark.parametrize(
    "text",
    [
        "Path\tLabel\na.JPG\tcat\n",  # the ending in another case
        "label;path;x0;y0;x1;y1\ncat;./a.jpg;;;;\n",
        "sep=|\r\nlabel|path\r\ncat|{0}\\a.jpg\r\n",
        '\ufeff"path","label"\n"{0}/a.jpg"," cat "\n\n',
        "path,label\na,cat\n",
    ],
)
def test_as_people_and_spreadsheets_write_it(folder, text):
    catalog, report = index(write(folder, text.format(folder)), "list", strict=True)
    assert what_it_says(catalog) == {"a.jpg": (["cat"], [])} and report.bad_entries == []


def test_decimal_commas_and_the_root(folder, tmp_path):
    text = "path;x0;y0;x1;y1\nc d.jpg;1,5;2;30;20\n"
    catalog, report = index(write(tmp_path, text), "list", root=folder / "deep")
    assert what_it_says(catalog) == {"c d.jpg": (["object"], [("object", [1.5, 2, 30, 20])])}
    assert report.remarks[0][1] == "no box has a label; all are of the class 'object'"


def test_parquet_as_pandas_writes_it(folder):
    nan = float("nan")
    columns = {
        "path": NAMES,
        "label": pa.array([3, None, 4, 3]),
        **{name: [value, nan, nan, nan] for name, value in zip(("x0", "y0", "x1", "y1"), (1.0, 2.0, 9.0, 8.0))},
        "score": [1, 2, 3, 4],
        "image": [b"x" * 99] * 4,
    }
    pq.write_table(pa.table(columns), folder / "list.parquet")
    catalog, report = index(folder / "list.parquet", "list")
    assert what_it_says(catalog) == {
        "a.jpg": (["3"], [("3", [1, 2, 9, 8])]),
        "b.png": ([], []),
        "deep/c d.jpg": (["4"], []),
        "deep/é.jpg": (["3"], []),
    }
    assert report.remarks == [("list.parquet", "not used are the columns score, image")]


corner = st.one_of(st.integers(-5, 45), st.floats(-5, 45, width=32))
row = st.tuples(st.sampled_from(NAMES), st.sampled_from(["", "cat", "dog", "é"]), st.none() | st.tuples(*[corner] * 4))


@given(rows=st.lists(row, min_size=1, max_size=12), parquet=st.booleans())
def test_any_list_against_loops(folder, rows, parquet):
    if parquet:
        corners = [list(box or [None] * 4) for _, _, box in rows]
        columns = {
            name: pa.array([c[i] for c in corners], pa.float64()) for i, name in enumerate(("x0", "y0", "x1", "y1"))
        }
        table = pa.table({"path": [name for name, *_ in rows], "label": [label for _, label, _ in rows], **columns})
        pq.write_table(table, folder / "any.parquet")
    else:
        text = io.StringIO()
        writer = csv.writer(text)
        writer.writerow(["path", "label", "x0", "y0", "x1", "y1"])
        writer.writerows([name, label, *map(repr, box or ())] for name, label, box in rows)
        write(folder, text.getvalue(), "any.csv")
    catalog, report = index(folder / ("any.parquet" if parquet else "any.csv"), "list")

    with_labels = any(label for _, label, box in rows if box)
    expected = {name: (set(), []) for name, _, _ in rows}
    left_out = set()
    for i, (name, label, box) in enumerate(rows):
        if box is None:
            if any(other == (name, label, None) for other in rows[:i]):
                left_out.add(i)
            expected[name][0].update({label} - {""})
            continue
        x, y = np.clip(sorted(box[::2]), 0, SIZE[0]), np.clip(sorted(box[1::2]), 0, SIZE[1])
        corners = np.float32([x[0], y[0], x[1], y[1]])
        if (with_labels and not label) or corners[0] >= corners[2] or corners[1] >= corners[3]:
            left_out.add(i)
            continue
        expected[name][0].add(label or "object")
        expected[name][1].append((label or "object", corners.tolist()))
    assert what_it_says(catalog) == {name: (sorted(labels), boxes) for name, (labels, boxes) in expected.items()}
    places = {f"row {i} of any.parquet" if parquet else f"line {i + 2} of any.csv" for i in left_out}
    assert {place for place, _ in report.bad_entries} == places and report.boxes == sum(
        len(b) for _, b in expected.values()
    )


def test_boxes_are_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying, 40 x 30; upright 30 x 40
    Image.new("RGB", SIZE).save(tmp_path / "a.jpg", exif=exif)
    catalog, report = index(write(tmp_path, "path,x0,y0,x1,y1\na.jpg,1,2,29,39\n"), "list")
    assert catalog.sizes.tolist() == [[30, 40]] and report.clipped == 0
    assert catalog.annotations(0).boxes.tolist() == [[1, 2, 29, 39]]


def test_rows_that_cannot_be_used_are_listed(folder):
    rows = [
        "gone.jpg,cat,,,,",
        "a.jpg,cat,1,2,x,4",
        "a.jpg,cat,1,2,,4",
        "a.jpg,cat,-5,2,10,40",
        "a.jpg,cat,60,2,70,20",
        ",cat,,,,",
        "../a.jpg,cat,,,,",
        "b.png,cat,,,,",
        "b.png,cat,,,,",
        "b.png,,1,1,5,5",
        "b.png,cat,9,9,1,1",
    ]
    catalog, report = index(write(folder, "path,label,x0,y0,x1,y1\n" + "\n".join(rows)), "list")
    assert what_it_says(catalog) == {
        "a.jpg": (["cat"], [("cat", [0, 2, 10, 30])]),
        "b.png": (["cat"], [("cat", [1, 1, 9, 9])]),
    }
    assert report.missing_annotated == ["gone.jpg"] and report.clipped == 1
    assert dict(report.bad_entries) == {
        "line 3 of list.csv": "'x' is no number",
        "line 4 of list.csv": "the box [1.0, 2.0, nan, 4.0] is not finite",
        "line 6 of list.csv": "the box [60.0, 2.0, 70.0, 20.0] has no area inside its image",
        "line 7 of list.csv": "'' must lie below the image folder",
        "line 8 of list.csv": "'../a.jpg' must lie below the image folder",
        "line 10 of list.csv": "another says the same of 'b.png'",
        "line 11 of list.csv": "the box has no label, although others have one",
    }
    assert report.remarks == [("line 12 of list.csv", "its corners are swapped")]
    assert "line 3 of list.csv: 'x' is no number; correct it" in error(folder / "list.csv", "list", strict=True)


def test_rows_of_parquet_that_are_none(folder):
    pq.write_table(pa.table({"path": ["a.jpg", None]}), folder / "odd.parquet")
    assert index(folder / "odd.parquet", "list")[1].bad_entries == [("row 1 of odd.parquet", "the path is None")]
    pq.write_table(pa.table({"path": ["a.jpg"], "label": [["cat", "dog"]]}), folder / "odd.parquet")
    assert "the label ['cat', 'dog'] is no class" in error(folder / "odd.parquet", "list")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("file,label\na.jpg,cat\n", "lacks the column path, it has ['file', 'label']"),
        ("", "lacks the column path, it is empty"),
        ("path,label,x0,y0,x1\na.jpg,cat,1,2,3\n", "lacks the column y1, it has"),
        ("path,label,path\na.jpg,cat,b.png\n", "has the column path twice"),
        ("path,label\n", "no image to index (0 tried)"),
        ("path\n/else/where.jpg\n", "line 2 of bad.csv: '/else/where.jpg' must lie below the image folder"),
    ],
)
def test_lists_that_are_refused(folder, text, says):
    assert says in error(write(folder, text, "bad.csv"), "list")


def test_files_that_are_no_list(folder, tmp_path):
    assert "cannot be read (no such file" in error(tmp_path / "none.csv", "list")
    assert "cannot be read (not a regular file" in error(folder, "list")
    assert "is not there; check the path" in error(tmp_path / "none.parquet", "list")
    (tmp_path / "cut.parquet").write_bytes((folder / "list.parquet").read_bytes()[:-9])
    assert "no whole Parquet file" in error(tmp_path / "cut.parquet", "list")
    pq.write_table(pa.table({"image": [b"x"]}), tmp_path / "bytes.parquet")
    assert "lacks the column path, it has ['image']" in error(tmp_path / "bytes.parquet", "list")


def test_names_below_an_address():
    find = key_finder(["https://h/p/a b.jpg", "deep\\c.jpg", "https://other/a.jpg"], "https://h/p")
    assert find("https://h/p/a b.jpg") == "a b.jpg" and find("deep\\c.jpg") == "deep/c.jpg"
    with pytest.raises(BadValue, match="must lie below"):
        find("https://other/a.jpg")
