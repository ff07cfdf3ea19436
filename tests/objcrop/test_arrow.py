"""Images in Arrow files: ranges against pyarrow's own values, catalogs against the same photos with a COCO file."""

import io
import json
import os

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_tables import ANNOTATIONS, LABEL, NAMES, OBJECTS, error, features, images, photos_in, png, table_of, write
from PIL import Image

from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Rows of photos, and the catalog of the same as files with a COCO file."""
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize("layout", OBJECTS)
@pytest.mark.parametrize("xywh", [True, False])
@pytest.mark.parametrize("stream", [True, False])
def test_the_same_catalog_as_of_files_and_coco(tmp_path, photos, layout, xywh, stream):
    rows, of_files = photos
    table = table_of(rows, layout, xywh)
    for i in range(3):
        write(tmp_path / f"a-0000{i}-of-00003.arrow", table[4 * i : 4 * i + 4], stream=stream)
    catalog, report = index(tmp_path, "arrow")
    assert catalog.fingerprint == of_files.fingerprint and catalog.classes == of_files.classes == NAMES
    assert catalog.table.select(ANNOTATIONS) == of_files.table.select(ANNOTATIONS)
    assert report.lines() == [f"12 images, {len(catalog.all_annotations().boxes)} boxes"]
    assert [catalog.image_bytes(row) for row in range(12)] == [of_files.image_bytes(row) for row in range(12)]
    assert index(tmp_path, "arrow", limit=5)[0].keys() == of_files.keys()[:5]


@settings(max_examples=60)
@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 60_000)), min_size=1, max_size=12),
    begin=st.integers(0, 3),
    rows=st.integers(1, 5),
    stream=st.booleans(),
    kind=st.sampled_from(["binary", "large_binary", "dictionary", "struct", "struct of dictionary"]),
)
def test_ranges_are_what_pyarrow_reads(tmp_path_factory, values, begin, rows, stream, kind):
    """Batches, slices, nulls, null structs, repeated values: the bytes are those of `to_pylist`, the nulls listed."""
    data = [None if value is None else png(value) for value in values]
    array = pa.array(data, pa.large_binary() if kind == "large_binary" else pa.binary())
    if "dictionary" in kind:
        array = array.dictionary_encode()
    if "struct" in kind:
        paths = pa.array([None if i % 3 else f"p/{i}.png" for i in range(len(data))])
        array = pa.StructArray.from_arrays([array, paths], ["bytes", "path"], mask=pa.array([v == 1 for v in values]))
    folder = tmp_path_factory.mktemp("ranges")
    table = pa.table({"other": range(len(data)), "x": array}).slice(min(begin, len(data) - 1))
    write(folder / "a.arrow", table, stream=stream, rows=rows)
    expected, listed = {}, []
    for row, value in enumerate(table["x"].to_pylist()):
        name = f"a/{row:0{len(str(len(table) - 1))}d}"
        if "struct" in kind:
            stored, path = (None, None) if value is None else (value["bytes"], value["path"])
            name, value = path if path and stored else name, stored or path
        if value is None:
            listed.append((f"a.arrow, row {row}", "there is no image, neither bytes nor a path"))
        elif isinstance(value, bytes):
            expected[name] = value
    if not expected:
        assert "no image to index" in error(folder, "arrow")
        return
    catalog, report = index(folder, "arrow")
    assert {catalog.key(row): catalog.image_bytes(row) for row in range(len(catalog))} == expected
    assert report.left_out == listed


def label_names(catalog):
    matrix = catalog.label_matrix(np.arange(len(catalog)))
    return [[catalog.classes[c] for c in np.flatnonzero(row)] for row in matrix]


@pytest.mark.parametrize(
    ("column", "feature", "expected"),
    [
        (pa.array([1, 0, None, -1]), LABEL, [["dog"], ["cat"], [], []]),
        (pa.array([[1, 2], [], None, [0]]), {"feature": LABEL, "_type": "List"}, [["dog", "bird"], [], [], ["cat"]]),
        (pa.array([5, 9, None, 5]), None, [["5"], ["9"], [], ["5"]]),
        (pa.array(["b", "a", None, "b"]), None, [["b"], ["a"], [], ["b"]]),
        (pa.array(["b", "a", None, "b"]).dictionary_encode(), None, [["b"], ["a"], [], ["b"]]),
        (pa.array([["b", "a"], ["a"], [], ["b"]], pa.large_list(pa.string())), None, [["a", "b"], ["a"], [], ["b"]]),
    ],
)
def test_labels(tmp_path, column, feature, expected):
    for name, option in (("label", None), ("kind", "kind")):
        table = images(4, **{name: column})
        if feature is not None:
            table = table.replace_schema_metadata(features(image={"_type": "Image"}, **{name: feature}))
        write(tmp_path / "a.arrow", table)
        catalog, report = index(tmp_path / "a.arrow", "arrow", label_column=option)
        assert label_names(catalog) == expected and report.lines() == ["4 images, 0 boxes"]
    assert bool(index(tmp_path, "arrow")[0].classes) == (feature is not None)  # the only ClassLabel needs no name


def test_which_columns(tmp_path):
    table = images(3, coarse=[0, 1, 2], fine=[2, 1, 7], mask=[b"x", b"y", b"z"])
    write(tmp_path / "a.arrow", table)
    assert "several columns of images; name one with --image-column: image, mask" in error(tmp_path, "arrow")
    assert index(tmp_path, "arrow", image_column="image")[0].keys() == ["0.png", "1.png", "2.png"]
    said = error(tmp_path, "arrow", kind=UsageError, image_column="coarse")
    assert said == "image_column is 'coarse', but it must be one of: image, mask."
    stated = table.replace_schema_metadata(features(image={"_type": "Image"}, coarse=LABEL, fine=LABEL))
    write(tmp_path / "a.arrow", stated)
    catalog, report = index(tmp_path, "arrow")
    assert not catalog.classes and "name one with --label-column: coarse, fine" in report.remarks[0][1]
    catalog, report = index(tmp_path, "arrow", label_column="fine")
    assert label_names(catalog) == [["bird"], ["dog"], []]
    assert report.bad_entries == [("a.arrow, row 2", "the label 7 is none of 3 classes")]
    with pytest.raises(ObjcropError, match="row 2: the label 7"):
        index(tmp_path, "arrow", label_column="fine", strict=True)
    write(tmp_path / "a.arrow", table.select(["coarse", "fine"]))
    assert "has no column of encoded images" in error(tmp_path, "arrow")


def test_boxes_of_two_readings_are_not_guessed(tmp_path):
    def boxes(*boxes, **columns):
        objects = pa.array([{"bbox": list(boxes)}], pa.struct([("bbox", pa.list_(pa.list_(pa.float64())))]))
        write(tmp_path / "a.arrow", pa.table({"image": [photo], "objects": objects, **columns}))
        return tmp_path / "a.arrow"

    buffer = io.BytesIO()
    Image.new("RGB", (40, 30)).save(buffer, "jpeg")
    photo = buffer.getvalue()
    for both in ([[2, 3, 12, 13]], [[2, 3, 12, 13], [30, 3, 5, 1]]):  # the second is no corner, and no size either
        file = boxes(*both, [39, 3, 41, 9]) if len(both) > 1 else boxes(*both)
        said = error(file, "arrow")
        assert "say --box-format xywh (x, y, width, height) or --box-format xyxy" in said
        assert ("fit neither way (1 not as xywh, 1 not as xyxy)" if len(both) > 1 else "fit both ways") in said
        catalog, _ = index(file, "arrow", box_format="xywh")
        assert catalog.annotations(0).boxes[0].tolist() == [2, 3, 14, 16]
        catalog, _ = index(file, "arrow", box_format="xyxy")
        assert catalog.annotations(0).boxes[0].tolist() == [2, 3, 12, 13] and catalog.classes == ["object"]
    assert index(boxes([2, 3, 12, 13], [20, 3, 5, 1]), "arrow")[0].annotations(0).boxes[1].tolist() == [20, 3, 25, 4]
    assert index(boxes([2, 3, 12, 13], [30, 3, 40, 9]), "arrow")[0].annotations(0).boxes[1].tolist() == [30, 3, 40, 9]
    # Rounding of an annotator, half a pixel over the edge, decides nothing and is clipped.
    assert index(boxes([2, 3, 38.5, 9], [30, 3, 5, 1]), "arrow")[0].annotations(0).boxes[0].tolist() == [2, 3, 40, 12]
    assert "are shares of the image" in error(boxes([0.1, 0.2, 0.3, 0.4]), "arrow")
    catalog, report = index(boxes([20, 3, 5, 1], [1, 2, 3]), "arrow")
    assert report.bad_entries == [("a.arrow, row 0", "a box is of 3 numbers, not 4")] and report.boxes == 1
    with pytest.raises(UsageError, match="box_format is 'coco', but it must be one of: xywh, xyxy"):
        index(file, "arrow", box_format="coco")


def test_columns_of_boxes_without_a_struct_and_flags(tmp_path):
    one = pa.array([[1, 0, 1, 1], None, [0, 0, 1, 2]], pa.list_(pa.float32()))
    write(tmp_path / "a.arrow", images(3, bbox=one, category=["x", "y", "z"]))
    catalog, _ = index(tmp_path, "arrow", box_format="xywh")
    assert catalog.all_annotations().boxes.tolist() == [[1, 0, 2, 1], [0, 0, 1, 2]]
    assert [catalog.classes[c] for c in catalog.all_annotations().classes] == ["x", "z"]
    fields = [("bbox", pa.list_(pa.int64())), ("category_id", pa.int64()), ("iscrowd", pa.int64())]
    things = [[{"bbox": [0, 0, 1, 1], "category_id": 7, "iscrowd": 1}], None, [{"bbox": [1, 1, 2, 1]}]]
    write(tmp_path / "a.arrow", images(3, annotations=pa.array(things, pa.list_(pa.struct(fields)))))
    catalog, report = index(tmp_path, "arrow", box_format="xywh")
    assert catalog.classes == ["7"] and catalog.all_annotations().crowd.tolist() == [True]
    assert report.bad_entries == [("a.arrow, row 2", "a box has the class None, which is none")]
    kinds = pa.struct([("bbox", pa.list_(pa.list_(pa.int64()))), ("category", pa.list_(pa.string()))])
    unlike = pa.array([{"bbox": [[0, 0, 1, 1]], "category": []}] * 3, kinds)
    write(tmp_path / "a.arrow", images(3, objects=unlike))
    assert "row 0 has not as many category as boxes" in error(tmp_path, "arrow", box_format="xywh")


def test_columns_of_other_types_are_no_annotations(tmp_path):
    """Boxes as text or structs, classes as numbers with a point, lists of lists: a remark or nothing, never a guess."""
    corner = pa.array([[{"x": 1, "y": 2}], [], None])
    one = pa.array([[0, 0, 1, 1]] * 3, pa.list_(pa.float32(), 4))
    for columns, boxes in (
        ({"label": [1.0, None, 2.0], "bbox": corner}, 0),
        ({"label": [b"x", None, b"y"], "objects": pa.array([{"bbox": [["1", "2", "3", "4"]]}] * 3)}, 0),
        ({"label": [True, False, None], "objects": pa.array([{"bbox": corner[0].as_py()}] * 3)}, 0),
        ({"label": [[["a"]], [], None], "bbox": one, "category": [["a"], ["b"], []]}, 3),
        ({"label": pa.array([{"name": "a"}] * 3), "bbox": one, "category": [1.5, 2.5, None]}, 3),
    ):
        write(tmp_path / "a.arrow", images(3, **columns))
        catalog, report = index(tmp_path, "arrow", image_column="image", box_format="xywh")
        assert len(catalog) == 3 and report.boxes == boxes and catalog.classes == ["object"] * bool(boxes)
        assert "no labels are taken from 'label', which is" in report.remarks[0][1]
    write(tmp_path / "a.arrow", images(3, label=["", "a", "b"], boxes=pa.array([[1, 2], [3], None])))
    catalog, report = index(tmp_path, "arrow")
    assert label_names(catalog) == [[], ["a"], ["b"]] and report.boxes == 0
    assert [reason for _, reason in report.bad_entries] == [
        "a box is of 2 numbers, not 4",
        "a box is of 1 numbers, not 4",
    ]


def test_layouts_of_datasets(tmp_path):
    """`save_to_disk` of one set and of several, and the cache: the file names that `datasets` 5.2 writes."""
    saved = tmp_path / "saved" / "train"
    for i in range(2):
        write(saved / f"data-0000{i}-of-00002.arrow", images(6)[3 * i : 3 * i + 3])
    write(saved / "cache-0123456789abcdef.arrow", images(9))
    files = [{"filename": f"data-0000{i}-of-00002.arrow"} for i in range(2)]
    (saved / "state.json").write_text(json.dumps({"_data_files": files, "_fingerprint": "0", "_split": None}))
    catalog, report = index(saved, "arrow")
    assert catalog.keys() == [f"{i}.png" for i in range(6)]
    assert report.left_out == [("cache-0123456789abcdef.arrow", "state.json beside it does not name it")]
    write(tmp_path / "saved" / "test" / "data-00000-of-00001.arrow", images(2))
    (tmp_path / "saved" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    said = error(tmp_path / "saved", "arrow")
    assert "holds the splits train, test; index each by itself, with --split train the first." in said
    assert index(tmp_path / "saved", "arrow", split="train")[0].fingerprint == catalog.fingerprint
    assert index(tmp_path / "saved", "arrow", split="test")[0].keys() == ["0.png", "1.png"]
    assert "--split is 'dev', but" in error(tmp_path / "saved", "arrow", kind=UsageError, split="dev")
    (saved / "data-00001-of-00002.arrow").unlink()
    assert index(saved, "arrow")[1].missing_annotated == ["data-00001-of-00002.arrow"]
    (saved / "state.json").write_text(json.dumps({"_data_files": files, "_indices_files": [{"filename": "i.arrow"}]}))
    assert "selects rows of the files" in error(saved, "arrow")
    (saved / "state.json").write_text("{")
    assert "is not what `save_to_disk` writes" in error(saved, "arrow")

    cache = tmp_path / "cache" / "default" / "0.0.0"
    for name, n in (("pets-train-00000-of-00002", 3), ("pets-test", 2), ("cache-ab12", 5)):
        write(cache / f"{name}.arrow", images(n))
    assert "the splits train, test;" in error(tmp_path / "cache", "arrow")
    catalog, report = index(tmp_path / "cache", "arrow", split="test")
    assert len(catalog) == 2
    assert report.left_out == [("default/0.0.0/cache-ab12.arrow", "a cache of `datasets`, by its name")]
    write(tmp_path / "own" / "one.arrow", images(2))
    write(tmp_path / "own" / "two.arrow", images(3).slice(2))
    catalog.save(tmp_path / "own" / "c.arrow")
    catalog, report = index(tmp_path / "own", "arrow")
    assert len(catalog) == 3 and report.left_out == [("c.arrow", "a table of objcrop's own")]


@pytest.mark.parametrize(
    ("names", "splits"),
    [
        (["data/train-00000-of-00002", "data/train-00001-of-00002", "data/test-00000-of-00001"], ["train", "test"]),
        (["train-00000-of-00001-a09b74b3ef9c3b56", "validation-00000-of-00001-2b3c"], ["train", "validation"]),
        (["default/train/0000", "default/train/0001", "default/test/0000"], ["train", "test"]),
        (["food-101-train-00000-of-00002", "food-101-train-00001-of-00002", "food-101-dev"], ["train", "dev"]),
        (["train_1k-00000-of-00001", "train-00000-of-00001", "all-00000-of-00001"], ["train", "train_1k", "all"]),
        (["train_000", "train_001"], []),
        (["a-00000-of-00002", "a-00001-of-00002", "b"], []),
        (["x/part-0", "x/part-1", "y/part-0"], []),
    ],
)
def test_splits_by_names(tmp_path, names, splits):
    """As the hub, older and newer, `datasets` and others call files."""
    for i, name in enumerate(names):
        write(tmp_path / f"{name}.arrow", images(len(names)).slice(i, 1))
    if not splits:
        assert len(index(tmp_path, "arrow")[0]) == len(names)
        return
    assert f"holds the splits {', '.join(splits)}; index each by itself" in error(tmp_path, "arrow")
    assert sum(len(index(tmp_path, "arrow", split=split)[0]) for split in splits) == len(names)


def test_rows_of_a_path_alone_and_keys_twice(tmp_path):
    (tmp_path / "set" / "sub").mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere.png"
    for i, path in enumerate((tmp_path / "set" / "sub" / "a.png", elsewhere)):
        path.write_bytes(png(i))
    paths = ["./sub/a.png", str(elsewhere), str(tmp_path / "set" / "sub" / "a.png"), "gone.png"]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": path} for path in paths] + [{"bytes": png(7), "path": "x\\..\\y//b.png"}]
    table = pa.table({"image": pa.array(rows, kind)})
    write(tmp_path / "set" / "a.arrow", table.take([0, 1, 3, 4]))
    catalog, report = index(tmp_path / "set", "arrow")
    assert catalog.keys() == [str(elsewhere), "sub/a.png", "y/b.png"] and report.missing_annotated == ["gone.png"]
    assert [catalog.image_bytes(row) for row in range(3)] == [png(1), png(0), png(7)]
    write(tmp_path / "set" / "a.arrow", table)
    said = error(tmp_path / "set", "arrow")
    assert "a.arrow, row 0 and a.arrow, row 2 are both 'sub/a.png'" in said
    write(tmp_path / "two" / "a.arrow", images(2))
    write(tmp_path / "two" / "b.arrow", images(2))
    said = error(tmp_path / "two", "arrow")
    assert (
        said == "a.arrow, row 0 and b.arrow, row 0 are both '0.png'; take the rows' numbers for names with --keys row."
    )
    assert index(tmp_path / "two", "arrow", keys="row")[0].keys() == ["a/0", "a/1", "b/0", "b/1"]


def test_what_is_no_arrow_file_of_images(tmp_path):
    file = write(tmp_path / "a.arrow", images(40), stream=False, compression="zstd")
    assert f"{file} is compressed, so that no image can be read by itself; write it anew" in error(file, "arrow")
    write(file, images(5), rows=1)
    file.write_bytes(file.read_bytes()[:-200])
    assert f"{file} is truncated, damaged or no Arrow file" in error(file, "arrow")
    file.write_bytes(b"")
    assert "truncated, damaged or no Arrow file" in error(file, "arrow")
    assert "is not there" in error(tmp_path / "none", "arrow")
    (tmp_path / "empty").mkdir()
    assert "holds no .arrow file" in error(tmp_path / "empty", "arrow")
    write(tmp_path / "a.arrow", images(2))
    write(tmp_path / "b.arrow", images(2, label=[1, 2]))
    assert "has other columns or classes than a.arrow" in error(tmp_path, "arrow")
    assert "--split takes files of a folder" in error(file, "arrow", kind=UsageError, split="train")
    table = pa.table({"image": [png(1), b"", b"no image", None]})
    write(file, table)
    catalog, report = index(file, "arrow")
    assert report.left_out == [
        ("a.arrow, row 1", "the image has no bytes"),
        ("a.arrow, row 3", "there is no image, neither bytes nor a path"),
        ("a/2", "not an image that Pillow knows, or its header is damaged"),
    ]
    when = os.stat(file).st_mtime
    os.utime(file, (when + 5, when + 5))
    with pytest.raises(ObjcropError, match=r"a\.arrow was changed after it was indexed"):
        catalog.image_bytes(0)
