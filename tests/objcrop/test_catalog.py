"""The catalog against naive loops, plain Python values and damaged files."""

import json
import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from objcrop.catalog import Catalog
from objcrop.catalog_table import SCHEMA, Ranges
from objcrop.errors import ObjcropError, UsageError
from objcrop.joined_catalogs import join_catalogs
from objcrop.place import SourceFile

CLASSES = ["cat", "dog", "eel"]


def random_catalog(root, n=7, seed=0, classes=CLASSES, prefix="", make_files=True):
    """A catalog with rows in random order, and the same rows as a plain dict: key to what is in it."""
    rng = np.random.default_rng(seed)
    keys = [f"{prefix}{i:03d}.png" for i in rng.permutation(n)]
    sizes = rng.integers(20, 90, (n, 2))
    counts = rng.integers(0, 4, n)
    counts[rng.integers(n)] = 0
    box_rows = rng.permutation(np.repeat(np.arange(n), counts))
    m = len(box_rows)
    low = rng.integers(0, 10, (m, 2))
    boxes = np.concatenate((low, low + rng.integers(1, 10, (m, 2))), 1).astype(np.float32)
    ids = rng.integers(0, len(classes), m)
    difficult, crowd = rng.random(m) < 0.5, rng.random(m) < 0.5
    masks = [f'{{"size":[1,1],"counts":"{i}"}}' if i % 2 else None for i in range(m)]
    catalog = Catalog.build(
        root, keys, sizes, classes=classes, boxes=boxes, box_rows=box_rows, box_classes=ids, difficult=difficult,
        crowd=crowd, masks=masks,
    )  # fmt: skip
    plain = {}
    for i, key in enumerate(keys):
        of = [j for j in range(m) if box_rows[j] == i]
        plain[key] = dict(
            size=sizes[i].tolist(), boxes=boxes[of].tolist(), names=[classes[ids[j]] for j in of],
            difficult=difficult[of].tolist(), crowd=crowd[of].tolist(), masks=[masks[j] for j in of],
        )  # fmt: skip
        if make_files:
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(b"")
    return catalog, plain


def assert_holds(catalog, plain):
    assert [catalog.path(i) for i in range(len(catalog))] == sorted(f"{catalog.root}/{key}" for key in plain)
    matrix = catalog.label_matrix(np.arange(len(catalog)))
    for row, key in enumerate(sorted(plain)):
        want, got = plain[key], catalog.annotations(row)
        assert catalog.sizes[row].tolist() == want["size"]
        assert got.boxes.dtype == np.float32 and got.boxes.shape == (len(want["boxes"]), 4)
        assert got.boxes.tolist() == want["boxes"]
        assert [catalog.classes[c] for c in got.classes] == want["names"]
        assert got.difficult.tolist() == want["difficult"] and got.crowd.tolist() == want["crowd"]
        assert catalog.masks(row) == [m and json.loads(m) for m in want["masks"]]
        assert {catalog.classes[c] for c in np.flatnonzero(matrix[row])} == set(want["names"])


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_build_save_load(tmp_path, suffix):
    catalog, plain = random_catalog(tmp_path)
    assert_holds(catalog, plain)
    catalog.save(tmp_path / f"c.{suffix}")
    again = Catalog.load(tmp_path / f"c.{suffix}")
    assert_holds(again, plain)
    assert again.fingerprint == catalog.fingerprint and again.root == str(tmp_path) and again.classes == CLASSES
    assert again.table.schema.equals(SCHEMA)
    assert not [f for f in tmp_path.iterdir() if f.name.startswith(".")]


def test_arrow_is_mapped_not_read(tmp_path):
    catalog, _ = random_catalog(tmp_path, n=500)
    catalog.save(tmp_path / "c.arrow")
    before = pa.total_allocated_bytes()
    again = Catalog.load(tmp_path / "c.arrow")
    _ = again.all_annotations().boxes, again.path(3)
    assert pa.total_allocated_bytes() - before < 1000


def test_pickle_maps_the_file_again(tmp_path):
    catalog, plain = random_catalog(tmp_path, n=300)
    assert_holds(pickle.loads(pickle.dumps(catalog)), plain)
    catalog.save(tmp_path / "c.arrow")
    data = pickle.dumps(Catalog.load(tmp_path / "c.arrow"))
    assert len(data) < 1000
    assert_holds(pickle.loads(data), plain)


def test_label_matrix_of_any_rows(tmp_path):
    catalog, plain = random_catalog(tmp_path, n=40)
    keys = sorted(plain)
    rows = np.random.default_rng(1).integers(0, 40, 100)
    expected = np.array([[float(name in plain[keys[r]]["names"]) for name in CLASSES] for r in rows])
    got = catalog.label_matrix(rows)
    assert got.dtype == np.float32 and np.array_equal(got, expected)
    assert catalog.label_matrix(np.zeros(0, np.int64)).shape == (0, 3)
    with pytest.raises(IndexError):
        catalog.label_matrix([40])


def test_image_level_labels(tmp_path):
    catalog = Catalog.build(
        tmp_path, ["b", "a"], [(5, 6), (7, 8)], classes=CLASSES, label_rows=[0, 0, 0], label_classes=[2, 0, 2]
    )
    assert catalog.label_matrix([0, 1]).tolist() == [[0, 0, 0], [1, 0, 1]]
    assert catalog.table.column("labels").to_pylist() == [[], [0, 2]]


TARS = [SourceFile("a.tar", 900, "17"), SourceFile("s3://bucket/b.tar", 800, "etag")]


def in_tars(root, keys, source, classes=CLASSES):
    """A catalog of images in two tars or, where source is -1, in files of their own."""
    n = len(keys)
    sizes, at = np.arange(2 * n).reshape(n, 2) + 9, np.arange(n) * 10
    ranges = Ranges(TARS, source, at, at + 1)
    return Catalog.build(root, keys, sizes, classes=classes, label_rows=[0], label_classes=[1], ranges=ranges)


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_images_inside_other_files(tmp_path, suffix):
    in_tars(tmp_path, ["z", "b", "x"], [0, 1, -1]).save(tmp_path / f"c.{suffix}")
    (tmp_path / "a.tar").write_bytes(b"")
    catalog = Catalog.load(tmp_path / f"c.{suffix}")
    expected = [
        ("b", "s3://bucket/b.tar", 1, 10, 11),
        ("x", f"{tmp_path}/x", -1, 0, -1),
        ("z", f"{tmp_path}/a.tar", 0, 0, 1),
    ]
    for row, (key, path, source, offset, length) in enumerate(expected):
        place = catalog.place(row)
        assert place == (path, key, TARS[source] if source >= 0 else None, offset, length)
        assert catalog.path(row) == (f"{path}:{key}" if source >= 0 else path)
    assert pickle.loads(pickle.dumps(catalog)).place(0) == catalog.place(0)
    plain = Catalog.build(tmp_path, ["z", "b", "x"], np.arange(6).reshape(3, 2) + 9)
    assert plain.fingerprint == catalog.fingerprint


def test_join_and_take_keep_where_images_lie(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one = in_tars(tmp_path / "one", ["z", "b", "x"], [0, 1, -1])
    two = in_tars(tmp_path / "two", ["z", "y"], [1, 0], classes=["eel", "ant"])
    joined = join_catalogs([one, two])
    parts = [(one, 0), (one, 1), (one, 2), (two, 0), (two, 1)]
    assert joined.keys() == ["one/b", "one/x", "one/z", "two/y", "two/z"]
    for row, (part, at) in enumerate(parts):
        assert joined.place(row).path == part.place(at).path
        assert joined.place(row)[3:] == part.place(at)[3:]
    some = joined.take([4, 0, 3])
    assert [some.place(row) for row in range(3)] == [joined.place(row) for row in (0, 3, 4)]
    assert some.label_matrix(range(3)).tolist() == joined.label_matrix([0, 3, 4]).tolist()
    assert some.fingerprint == Catalog.build(tmp_path, some.keys(), some.sizes).fingerprint != joined.fingerprint
    assert len(joined.take([])) == 0


def test_an_address_is_never_made_a_path_of(tmp_path):
    catalog = Catalog.build("s3://bucket/photos/", ["a/b.jpg"], [(5, 6)])
    assert catalog.root == "s3://bucket/photos" and catalog.path(0) == "s3://bucket/photos/a/b.jpg"
    catalog.save(tmp_path / "c.arrow")
    assert Catalog.load(tmp_path / "c.arrow").path(0) == "s3://bucket/photos/a/b.jpg"
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b.jpg").write_bytes(b"")
    assert Catalog.load(tmp_path / "c.arrow", root=f"file://{tmp_path}").path(0) == f"{tmp_path}/a/b.jpg"
    other = Catalog.build("s3://bucket/more", ["a/b.jpg"], [(5, 6)])
    joined = join_catalogs([catalog, other])
    assert joined.root == "s3://bucket" and joined.keys() == ["more/a/b.jpg", "photos/a/b.jpg"]
    for root in (tmp_path, "s3://elsewhere/photos", "gs://bucket/photos"):
        with pytest.raises(ObjcropError, match="have no folder or bucket in common"):
            join_catalogs([catalog, Catalog.build(root, ["x"], [(5, 6)])])


def test_fingerprint_is_of_keys_sizes_and_orientations(tmp_path):
    def of(root=tmp_path, keys=("a", "b"), sizes=((5, 6), (7, 8)), orientations=(1, 1), **more):
        return Catalog.build(root, list(keys), sizes, orientations, **more).fingerprint

    assert of() == of(root=tmp_path / "elsewhere") == of(keys=("b", "a"), sizes=((7, 8), (5, 6)))
    assert of() == of(classes=["x"], boxes=[[0, 0, 1, 1]], box_rows=[0], box_classes=[0])
    others = {of(keys=("a", "c")), of(keys=("", "ab")), of(sizes=((5, 6), (8, 7))), of(orientations=(1, 2))}
    assert len(others | {of()}) == 5
    assert len(of()) == 16


def test_empty_and_without_classes(tmp_path):
    catalog = Catalog.build(tmp_path, [], np.zeros((0, 2)))
    assert len(catalog) == 0 and catalog.sizes.shape == (0, 2) and catalog.box_offsets.tolist() == [0]
    catalog.save(tmp_path / "empty.arrow")
    assert len(Catalog.load(tmp_path / "empty.arrow")) == 0
    one = Catalog.build(tmp_path, ["a"], [(4, 4)])
    assert one.label_matrix([0]).shape == (1, 0) and one.annotations(0).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "change, says",
    [
        (dict(keys=["a", "a"]), "'a' comes twice"),
        (dict(sizes=[(5, 6), (0, 8)]), "b has size"),
        (dict(box_classes=[7]), "Class ids run from 7"),
        (dict(boxes=[[0, 0, 9, 1]]), "b of size .* has the box"),
        (dict(boxes=[[2, 2, 2, 3]]), "has the box"),
        (dict(boxes=[[0, 0, float("nan"), 1]]), "has the box"),
        (dict(box_rows=[0, 1]), "1 boxes"),
    ],
)
def test_build_refuses(tmp_path, change, says):
    facts = dict(keys=["a", "b"], sizes=[(5, 6), (7, 8)], boxes=[[0, 0, 1, 1]], box_rows=[1], box_classes=[0])
    with pytest.raises(ObjcropError, match=says):
        Catalog.build(tmp_path, classes=CLASSES, **(facts | change))


def test_join(tmp_path):
    first, first_plain = random_catalog(tmp_path / "x" / "one", seed=1)
    second, second_plain = random_catalog(tmp_path / "x" / "two" / "deep", seed=2, classes=["eel", "ant", "cat"])
    joined = join_catalogs([first, second])
    assert joined.root == str(tmp_path / "x") and joined.classes == ["cat", "dog", "eel", "ant"]
    plain = {f"one/{k}": v for k, v in first_plain.items()} | {f"two/deep/{k}": v for k, v in second_plain.items()}
    assert_holds(joined, plain)
    for labels in joined.table.column("labels").to_pylist():
        assert labels == sorted(set(labels))
    assert join_catalogs([first]).fingerprint == first.fingerprint


def test_join_refuses_the_same_image_twice(tmp_path):
    first, _ = random_catalog(tmp_path / "one")
    with pytest.raises(ObjcropError, match=r"'000\.png' comes twice"):
        join_catalogs([first, first])
    with pytest.raises(UsageError):
        join_catalogs([])


def test_moved_images(tmp_path):
    catalog, plain = random_catalog(tmp_path / "old")
    catalog.save(tmp_path / "c.arrow")
    (tmp_path / "old").rename(tmp_path / "new")
    with pytest.raises(ObjcropError, match="--root"):
        Catalog.load(tmp_path / "c.arrow")
    moved = Catalog.load(tmp_path / "c.arrow", root=tmp_path / "new")
    assert_holds(moved, plain)
    assert moved.fingerprint == catalog.fingerprint
    with pytest.raises(ObjcropError, match=r"000\.png, which is not there.*--root"):
        Catalog.load(tmp_path / "c.arrow", root=tmp_path)


def test_load_says_what_is_wrong_with_the_file(tmp_path):
    catalog, _ = random_catalog(tmp_path)
    file = tmp_path / "c.arrow"
    catalog.save(file)
    data = file.read_bytes()

    def error(name="bad.arrow"):
        with pytest.raises(ObjcropError) as caught:
            Catalog.load(tmp_path / name)
        return str(caught.value)

    (tmp_path / "bad.arrow").write_bytes(data[: len(data) // 2])
    assert "truncated or not arrow" in error()
    (tmp_path / "bad.arrow").write_bytes(b"")
    assert "truncated or not arrow" in error()
    Image.new("RGB", (9, 9)).save(tmp_path / "bad.parquet", "PNG")
    assert "truncated or not parquet" in error("bad.parquet")
    assert "is not there" in error("none.arrow")
    assert ".arrow or .parquet" in error("c.csv")

    def rewrite(table, facts):
        table = table.replace_schema_metadata(facts and {b"objcrop": json.dumps(facts).encode()})
        pq.write_table(table, tmp_path / "bad.parquet")
        return error("bad.parquet")

    facts = json.loads(pa.ipc.open_file(file).schema.metadata[b"objcrop"])
    assert "not an objcrop catalog" in rewrite(catalog.table, None)
    assert "of kind 'boxes'" in rewrite(catalog.table, facts | {"kind": "boxes"})
    assert "newer objcrop" in rewrite(catalog.table, facts | {"version": 99})
    assert "lacks the column 'boxes'" in rewrite(catalog.table.drop_columns("boxes"), facts)
    wide = catalog.table.set_column(1, "width", catalog.table["width"].cast(pa.int64()))
    assert "column 'width' is int64, not int32" in rewrite(wide, facts)


def test_save_refuses_and_leaves_nothing_behind(tmp_path):
    catalog, _ = random_catalog(tmp_path, make_files=False)
    with pytest.raises(UsageError, match=r"\.arrow or \.parquet"):
        catalog.save(tmp_path / "c.csv")
    with pytest.raises(ObjcropError, match="make it first"):
        catalog.save(tmp_path / "none" / "c.arrow")
    assert list(tmp_path.iterdir()) == []
