"""Catalogs and box tables with bytes changed: a sentence where the damage is met, at load or at use, and at no cost."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objcrop.arrow_file import sound_texts_at
from objcrop.boxes import SCHEMA as BOXES_SCHEMA
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.catalog_table import SCHEMA
from objcrop.errors import ObjcropError
from objcrop.joined_catalogs import join_catalogs
from objcrop.objectness import object_mask


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four images of one size, with boxes, labels and masks; their catalog and boxes."""
    folder = tmp_path_factory.mktemp("sound")
    keys = [f"{name}.png" for name in "abcd"]
    for key in keys:
        Image.new("RGB", (40, 30)).save(folder / key)
    mask = json.dumps({"size": [30, 40], "counts": "P1b0<" + "0" * 55 + "Z9"})
    truth = {"boxes": [[1, 2, 30, 20]] * 4, "box_rows": range(4), "box_classes": [0, 1, 0, 1], "masks": [mask] * 4}
    catalog = Catalog.build(folder, keys, [[40, 30]] * 4, classes=["cat", "dog"], **truth)
    catalog.save(folder / "c.arrow")
    BoxTable.from_arrays(catalog, [[[1, 2, 30, 20]]] * 4).save(folder / "b.arrow")
    return folder


def lists(values, offsets=(0, 1, 2, 3, 4)):
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def corners(rows):
    return pa.FixedSizeListArray.from_arrays(pa.array(np.array(rows, np.float32).reshape(-1)), 4)


def strings(entries):
    """A string array of these bytes, UTF-8 or not."""
    offsets = np.cumsum([0, *map(len, entries)]).astype(np.int32)
    return pa.StringArray.from_buffers(len(entries), pa.py_buffer(offsets), pa.py_buffer(b"".join(entries)))


def strings_out_of_order():
    return pa.StringArray.from_buffers(
        4, pa.py_buffer(np.array([0, 99, 2, 3, 4], np.int32)), pa.py_buffer(b"abcd" + bytes(60))
    )


GARBAGE = b'{"size": [30, 40], "counts": "~~9"}'
BOX = [1, 2, 30, 20]
USES = {
    "sizes": lambda c: c.sizes,
    "sizes_of": lambda c: [c.sizes_of([3 - row]) for row in range(4)],
    "orientations": lambda c: c.orientations,
    "orientation": lambda c: [c.orientation(row) for row in range(4)],
    "path": lambda c: [c.path(row) for row in range(4)],
    "keys": lambda c: c.keys(),
    "labels": lambda c: c.label_matrix(range(4)),
    "annotations": lambda c: [c.annotations(row) for row in range(4)],
    "join": lambda c: join_catalogs([c]),
    "all_annotations": lambda c: c.all_annotations(),
    "masks": lambda c: [c.masks(row) for row in range(4)],
    "object_mask": lambda c: [object_mask(c, row) for row in range(4)],
}
# Column, what it becomes, the uses that must meet it (others must go on), a word of the sentence.
CATALOGS = [
    ("key", lambda: strings([b"a.png", b"b\xff.png", b"c.png", b"d.png"]), ["path", "keys"], "key of"),
    ("key", strings_out_of_order, None, "key of row 0"),  # some rows are looked at while loading
    ("key", lambda: pa.array(["a.png", None, "c.png", "d.png"]), None, "a row of the column 'key' is missing"),
    (
        "width",
        lambda: pa.array([40, -5, 40, 40], pa.int32()),
        ["sizes", "sizes_of", "annotations"],
        r"row 1 has the size \[-5",
    ),
    ("height", lambda: pa.array([30, 30, 30, 0], pa.int32()), ["sizes", "sizes_of"], "row 3 has the size"),
    (
        "orientation",
        lambda: pa.array([1, 1, 9, 1], pa.int8()),
        ["orientations", "orientation"],
        "row 2 has the orientation 9",
    ),
    ("orientation", lambda: pa.array([1, 0, 1, 1], pa.int8()), ["orientations", "orientation"], "row 1 has the orient"),
    ("labels", lambda: lists(pa.array([0, 1, 7, 1], pa.int32())), ["labels", "join"], "labels run from 0 to 7"),
    ("labels", lambda: lists(pa.array([0, 1, -1, 1], pa.int32())), ["labels", "join"], "labels run from -1"),
    ("labels", lambda: lists(pa.array([0] * 4, pa.int32()), (0, 3, 1, 3, 4)), ["labels", "join"], "labels of row 1"),
    ("labels", lambda: lists(pa.array([0, None, 1, 1], pa.int32())), None, "an entry of the column 'labels'"),
    ("labels", lambda: pa.array([[0], None, [1], [1]], pa.list_(pa.int32())), None, "a row of the column 'labels'"),
    (
        "boxes",
        lambda: lists(corners([BOX, BOX, [1, np.nan, 3, 4], BOX])),
        ["annotations", "all_annotations", "join"],
        "row 2",
    ),
    (
        "boxes",
        lambda: lists(corners([BOX, [1, 2, 41, 20], BOX, BOX])),
        ["annotations", "all_annotations", "join"],
        "row 1",
    ),
    (
        "boxes",
        lambda: lists(corners([BOX, BOX, BOX, [9, 2, 3, 20]])),
        ["annotations", "all_annotations", "join"],
        "row 3",
    ),
    ("boxes", lambda: lists(corners([BOX] * 4), (0, 2, 1, 3, 4)), ["annotations", "masks"], "boxes of row 1"),
    ("box_classes", lambda: lists(pa.array([0, 1, 2, 1], pa.int32())), ["annotations"], "row 2 .* of class 2"),
    ("crowd", lambda: lists(pa.array([False, False, False]), (0, 1, 2, 3, 3)), ["annotations"], "boxes of row 3"),
    ("masks", lambda: lists(strings([b"{", b"{}", b"{}", b"{}"])), ["masks"], "mask of row 0 is no JSON"),
    ("masks", lambda: lists(strings([b"7", b"{}", b"{}", b"{}"])), ["masks"], "mask of row 0 is no COCO RLE"),
    ("masks", lambda: lists(strings([b"[" * 9999, b"", b"", b""])), ["masks"], "mask of row 0 is no JSON"),
    ("masks", lambda: lists(strings([b"\xff", b"{}", b"{}", b"{}"])), ["masks", "join"], "mask is no text"),
    ("masks", lambda: lists(strings([b'{"size": [3, -4], "counts": "1"}', b"{}", b"{}", b"{}"])), ["masks"], "RLE"),
    ("masks", lambda: lists(strings([GARBAGE] * 4)), ["object_mask"], "a.png: the mask's counts"),
    ("masks", lambda: lists(strings_out_of_order()), ["masks", "join"], "mask is no text"),
    ("source", lambda: pa.array([None, 0, None, None], pa.int32()), ["path"], "row 1 lies at None, None of source 0"),
]


def rewrite(source, target, schema, column, values):
    """Write a table anew with another column, as it is: what pyarrow would refuse is the point."""
    table = pa.ipc.open_file(source).read_all()
    batch = [values if name == column else table[name].chunk(0) for name in table.column_names]
    with pa.OSFile(str(target), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(batch, schema=table.schema))


@pytest.mark.parametrize(("column", "values", "uses", "word"), CATALOGS)
def test_a_damaged_catalog_is_a_sentence_where_it_is_met(folder, tmp_path, column, values, uses, word):
    rewrite(folder / "c.arrow", tmp_path / "c.arrow", SCHEMA, column, values())
    if uses is None:
        with pytest.raises(ObjcropError, match=word) as caught:
            Catalog.load(tmp_path / "c.arrow")
        return
    catalog = Catalog.load(tmp_path / "c.arrow")
    for name, use in USES.items():
        if name in uses:
            with pytest.raises(ObjcropError, match=word) as caught:
                use(catalog)
            assert "`objcrop index`" in str(caught.value)
        else:
            try:  # sizes are looked at by annotations, box offsets by masks
                use(catalog)
            except ObjcropError as error:
                assert "is damaged" in str(error)


BOX_TABLES = [
    ("boxes", lambda: lists(corners([BOX, BOX, [1, np.nan, 3, 4], BOX])), "row 2 has the box"),
    ("boxes", lambda: lists(corners([BOX, [1, 2, np.inf, 20], BOX, BOX])), "row 1 has the box"),
    ("boxes", lambda: lists(corners([BOX, [1, 2, 41, 20], BOX, BOX])), "row 1 has the box"),
    ("boxes", lambda: lists(corners([[-1, 2, 4, 20], BOX, BOX, BOX])), "row 0 has the box"),
    ("boxes", lambda: lists(corners([BOX, BOX, BOX, [9, 2, 3, 20]])), "row 3 has the box"),
    ("boxes", lambda: lists(corners([BOX] * 4), (0, 2, 1, 3, 4)), "boxes of row 1"),
    ("scores", lambda: lists(pa.array([1.0] * 3, pa.float32()), (0, 1, 2, 3, 3)), "4 boxes, but 3 scores"),
]


@pytest.mark.parametrize(("column", "values", "word"), BOX_TABLES)
def test_damaged_boxes_are_a_sentence_where_they_are_met(folder, tmp_path, column, values, word):
    rewrite(folder / "b.arrow", tmp_path / "b.arrow", BOXES_SCHEMA, column, values())
    boxes = BoxTable.load(tmp_path / "b.arrow", Catalog.load(folder / "c.arrow"))
    uses = [lambda: [boxes[row] for row in range(4)], lambda: boxes.gather(range(4), [0] * 4), lambda: boxes.offsets]
    met = []
    for use in [*uses, lambda: boxes.scores]:
        try:
            use()
        except ObjcropError as error:
            met.append(str(error))
    assert met and all(str(tmp_path / "b.arrow") in said and "`objcrop propose`" in said for said in met)
    with pytest.raises(ObjcropError, match=word):
        raise ObjcropError(met[0])


@pytest.mark.parametrize(
    ("kind", "change", "word"),
    [
        ("c", {"root": 7}, "no str as root"),
        ("c", {"classes": "cat"}, "no list as classes"),
        ("c", {"classes": ["cat", None]}, "a class"),
        ("c", {"sources": {}}, "no list as sources"),
        ("c", {"sources": ["a.tar"]}, "a source"),
        ("c", {"sources": [{"name": "a.tar", "size": "7", "changed": "", "column": ""}]}, "a source"),
        ("c", {"version": 1}, r"older objcrop \(version 1\); make it again with `objcrop index`"),
        ("c", {"version": "2"}, "version '2'"),
        ("c", {"fingerprint": None}, "fingerprint"),
        ("b", {"parameters": [1]}, "parameters"),
        ("b", {"method": 1}, "method"),
        ("b", {"catalog": 0}, "no str as catalog"),
    ],
)
def test_wrong_metadata(folder, tmp_path, kind, change, word):
    table = pa.ipc.open_file(folder / f"{kind}.arrow").read_all()
    facts = {**json.loads(table.schema.metadata[b"objcrop"]), **change}
    table = table.replace_schema_metadata({b"objcrop": json.dumps(facts).encode()})
    with pa.OSFile(str(tmp_path / "x.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pytest.raises(ObjcropError, match=word):
        (Catalog if kind == "c" else BoxTable).load(tmp_path / "x.arrow")


def test_a_sound_catalog_passes_every_look(folder):
    catalog = Catalog.load(folder / "c.arrow")
    for use in USES.values():
        use(catalog)
    boxes = BoxTable.load(folder / "b.arrow", catalog)
    assert boxes.gather([3], [0]).tolist() == [BOX] and boxes[0].tolist() == [BOX]


@given(st.lists(st.text(max_size=5), min_size=1, max_size=20), st.data())
def test_texts_at_any_rows_and_only_theirs_are_looked_at(texts, data):
    whole = pa.array(["before", *texts, "after"], pa.string())
    rows = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9))
    assert sound_texts_at(whole.slice(1), rows) == [texts[row] for row in rows]
    _, offsets, text = whole.buffers()
    bad = np.frombuffer(offsets, np.int32)[: len(whole) + 1].copy()
    bad[-2] += 1000  # the last of the texts ends beyond the file
    damaged = pa.StringArray.from_buffers(len(whole), pa.py_buffer(bad.tobytes()), text)
    sound = [row for row in rows if row < len(texts) - 1]
    assert sound_texts_at(damaged.slice(1), sound) == [texts[row] for row in sound]
    with pytest.raises(ValueError, match="does not lie in the file"):
        sound_texts_at(damaged.slice(1), [*sound, len(texts) - 1])
