import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError


@pytest.fixture
def catalog(tmp_path):
    return Catalog.build(tmp_path, ["a.jpg", "b.jpg", "c.jpg"], [(100, 50), (60, 80), (10, 10)])


BOXES = [
    np.array([[1, 2, 30, 40], [5, 5, 20, 25]], np.float32),
    np.zeros((0, 4), np.float32),
    np.array([[0, 0, 10, 10]], np.float32),
]


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_round_trip(catalog, tmp_path, suffix):
    made = BoxTable.from_arrays(catalog, BOXES, [[0.5, 0.25], [], [1.0]], method="hand", parameters={"k": 2})
    made.save(tmp_path / f"boxes.{suffix}")
    read = BoxTable.load(tmp_path / f"boxes.{suffix}", catalog)
    assert (read.method, read.parameters, read.fingerprint) == ("hand", {"k": 2}, made.fingerprint)
    for row, boxes in enumerate(BOXES):
        np.testing.assert_array_equal(read[row], boxes)
    np.testing.assert_array_equal(read.scores, np.array([0.5, 0.25, 1.0], np.float32))
    assert pa.types.is_fixed_size_list(read.table.schema.field("boxes").type.value_type)


def test_other_programs_read_the_file(catalog, tmp_path):
    BoxTable.from_arrays(catalog, BOXES).save(tmp_path / "boxes.arrow")
    with pa.memory_map(str(tmp_path / "boxes.arrow")) as file:
        rows = pa.ipc.open_file(file).read_all().to_pylist()
    assert rows[0]["boxes"] == BOXES[0].tolist() and rows[1] == {"boxes": [], "scores": []}


def test_gather_takes_the_box_asked_for(catalog):
    table = BoxTable.from_arrays(catalog, BOXES)
    np.testing.assert_array_equal(table.gather([2, 0, 0], [0, 1, 0]), [BOXES[2][0], BOXES[0][1], BOXES[0][0]])
    np.testing.assert_array_equal(table.counts([2, 1, 0]), [1, 0, 2])


def test_what_is_no_box_is_dropped_and_counted(catalog):
    nan, inf = float("nan"), float("inf")
    odd = [[-5, -5, 20, 20], [nan, 0, 5, 5], [0, 0, inf, 5], [30, 30, 30, 40], [200, 0, 210, 10], [9, 9, 3, 3]]
    table = BoxTable.from_arrays(catalog, [np.array(odd), [], []])
    assert table[0].tolist() == [[0, 0, 20, 20]]
    assert (table.clipped, table.dropped) == (1, 5)


@settings(max_examples=50)
@given(st.lists(st.tuples(*[st.floats(-300, 300, width=32)] * 4), max_size=8))
def test_every_box_lies_inside_and_has_area(corners):
    catalog = Catalog.build("/", ["a.jpg"], [(100, 50)])
    table = BoxTable.from_arrays(catalog, [np.array(corners, np.float32).reshape(-1, 4)])
    x0, y0, x1, y1 = table[0].T
    assert ((x0 >= 0) & (y0 >= 0) & (x1 <= 100) & (y1 <= 50) & (x1 > x0) & (y1 > y0)).all()
    assert len(table[0]) + table.dropped == len(corners)


def test_fingerprint_sees_every_number(catalog):
    moved = [BOXES[0] + np.float32([0, 0, 0, 1]), *BOXES[1:]]
    prints = {BoxTable.from_arrays(catalog, boxes).fingerprint for boxes in (BOXES, moved, BOXES)}
    assert len(prints) == 2


@pytest.mark.parametrize(
    ("boxes", "scores", "word"),
    [
        (BOXES[:2], None, "2 images"),
        ([np.zeros((2, 5)), [], []], None, "row 0"),
        (BOXES, [[1], [], [1]], "row 0"),
    ],
)
def test_wrong_shapes_name_the_row(catalog, boxes, scores, word):
    with pytest.raises(UsageError, match=word):
        BoxTable.from_arrays(catalog, boxes, scores)


def test_another_catalogs_boxes_are_refused(catalog, tmp_path):
    BoxTable.from_arrays(catalog, BOXES, method="grid").save(tmp_path / "boxes.arrow")
    other = Catalog.build(tmp_path, ["a.jpg", "b.jpg", "d.jpg"], catalog.sizes)
    with pytest.raises(ObjcropError, match="propose --method grid"):
        BoxTable.load(tmp_path / "boxes.arrow", other)


def test_load_says_what_is_wrong(catalog, tmp_path):
    good = tmp_path / "boxes.arrow"
    BoxTable.from_arrays(catalog, BOXES).save(good)
    catalog.save(tmp_path / "catalog.arrow")
    (tmp_path / "cut.arrow").write_bytes(good.read_bytes()[:200])
    (tmp_path / "text.parquet").write_text("no table")
    foreign = pa.table({"boxes": [1]})
    with pa.OSFile(str(tmp_path / "foreign.arrow"), "wb") as sink, pa.ipc.new_file(sink, foreign.schema) as writer:
        writer.write_table(foreign)
    narrow = BoxTable.load(good).table.select(["boxes"])
    with pa.OSFile(str(tmp_path / "narrow.arrow"), "wb") as sink, pa.ipc.new_file(sink, narrow.schema) as writer:
        writer.write_table(narrow)
    for name, word in {
        "none.arrow": "not there",
        "boxes.txt": "must end in",
        "cut.arrow": "truncated",
        "text.parquet": "truncated or not parquet",
        "foreign.arrow": "not an objcrop boxes file",
        "catalog.arrow": "kind 'catalog'",
        "narrow.arrow": "lacks the column 'scores'",
    }.items():
        with pytest.raises((ObjcropError, UsageError), match=word) as caught:
            BoxTable.load(tmp_path / name, catalog)
        assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_ten_million_rows_open_at_once(tmp_path):
    """Ten boxes a row: 1.6 GB on disk, nothing in memory."""
    import os
    import subprocess
    import sys

    n = 10_000_000
    corners = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(4 * 10 * n, np.float32)), 4)
    starts = pa.array(np.arange(0, 10 * n + 1, 10, dtype=np.int32))
    columns = [
        pa.ListArray.from_arrays(starts, corners),
        pa.ListArray.from_arrays(starts, pa.array(np.ones(10 * n, np.float32))),
    ]
    from objcrop.boxes import SCHEMA

    facts = {"method": "made up", "parameters": {}, "catalog": "none", "fingerprint": "none"}
    BoxTable(pa.Table.from_arrays(columns, schema=SCHEMA), facts).save(tmp_path / "big.arrow")
    code = f"""
import time, numpy as np
from objcrop.boxes import BoxTable
def most_memory():  # of this program: ru_maxrss begins with what its parent had
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before, began = most_memory(), time.perf_counter()
boxes = BoxTable.load({os.fspath(tmp_path / "big.arrow")!r})
assert boxes.gather(np.array([{n - 1}]), np.array([9])).tolist() == [[1, 1, 1, 1]] and len(boxes) == {n}
print(most_memory() - before, time.perf_counter() - began)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(out[0]) < 50_000, f"{out[0]} KiB"  # how long it took is out[1], shown by -s
    print(f"\nopened 100 million boxes in {float(out[1]):.3f} s, {int(out[0])} KiB more in memory")
