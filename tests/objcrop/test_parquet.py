"""Images in Parquet files: the bytes pyarrow reads, as ranges of the file or with the group they are compressed in."""

import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_tables import ANNOTATIONS, error, images, photos_in, png, table_of

from objcrop import parquet_values
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.parquet_values import group_of, release

PLAIN = {"compression": "none", "use_dictionary": False}
WRITTEN = {
    "as they are": PLAIN,
    "pages of their own": PLAIN | {"data_page_size": 100, "write_page_index": True},
    "new pages": PLAIN | {"data_page_version": "2.0"},
    "snappy": {"compression": "snappy"},
    "zstd": {"compression": "zstd", "use_dictionary": False, "write_statistics": False},
    "dictionary": {"compression": "none", "use_dictionary": True},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Rows of photos, and the catalog of the same as files with a COCO file."""
    return photos_in(tmp_path_factory.mktemp("photos"))


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("layout", ["struct of lists", "list of structs"])
def test_the_same_catalog_as_of_files_and_coco(tmp_path, photos, layout, written):
    rows, of_files = photos
    table = table_of(rows, layout)
    (tmp_path / "data").mkdir()
    for i in range(3):
        part = table[4 * i : 4 * i + 4]
        pq.write_table(
            part, tmp_path / "data" / f"train-0000{i}-of-00003.parquet", row_group_size=3, **WRITTEN[written]
        )
    catalog, report = index(tmp_path, "parquet")
    assert catalog.fingerprint == of_files.fingerprint
    assert catalog.table.select(ANNOTATIONS) == of_files.table.select(ANNOTATIONS)
    assert [catalog.image_bytes(row) for row in range(12)] == [of_files.image_bytes(row) for row in range(12)]
    ranges = "compression" in WRITTEN[written] and WRITTEN[written] | PLAIN == WRITTEN[written]
    assert [source.column for source in catalog.sources] == ["" if ranges else "image.bytes"] * 3
    assert bool(report.remarks) != ranges and ("up to 3 images or" in str(report.remarks)) != ranges
    assert index(tmp_path, "parquet", limit=5)[0].keys() == of_files.keys()[:5]


@settings(max_examples=60)
@given(
    values=st.lists(st.one_of(st.none(), st.integers(0, 60_000)), min_size=1, max_size=12),
    rows=st.integers(1, 13),
    written=st.sampled_from(sorted(WRITTEN)),
    kind=st.sampled_from(["binary", "large_binary", "struct"]),
)
def test_bytes_are_what_pyarrow_reads(tmp_path_factory, values, rows, written, kind):
    data = [None if value is None else png(value) for value in values]
    array = pa.array(data, pa.large_binary() if kind == "large_binary" else pa.binary())
    if kind == "struct":
        array = pa.StructArray.from_arrays([array], ["bytes"], mask=pa.array([value == 1 for value in values]))
    file = tmp_path_factory.mktemp("parquet") / "a.parquet"
    pq.write_table(pa.table({"other": range(len(data)), "x": array}), file, row_group_size=rows, **WRITTEN[written])
    read = pq.read_table(file)["x"].to_pylist()
    read = [value and value["bytes"] if kind == "struct" else value for value in read]
    expected = {f"a/{row:0{len(str(len(data) - 1))}d}": value for row, value in enumerate(read) if value is not None}
    if not expected:
        assert "no image to index" in error(file, "parquet")
        return
    catalog, report = index(file, "parquet")
    assert {catalog.key(row): catalog.image_bytes(row) for row in range(len(catalog))} == expected
    assert len(report.left_out) == len(data) - len(expected)


def test_unpack_writes_arrow_files_of_the_same_images(tmp_path, photos):
    rows, of_files = photos
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split in ("train", "test"):
        pq.write_table(table_of(rows), tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet", row_group_size=5)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "other.arrow").write_text("of somebody else")
    catalog, report = index(tmp_path / "hub", "parquet", split="test", unpack=tmp_path / "a")
    assert not report.remarks and catalog.root == str(tmp_path / "a")
    assert [source.name for source in catalog.sources] == ["data/test-00000-of-00001.arrow"]
    assert catalog.fingerprint == of_files.fingerprint
    assert catalog.table.select(ANNOTATIONS) == of_files.table.select(ANNOTATIONS)
    assert [catalog.image_bytes(row) for row in range(12)] == [of_files.image_bytes(row) for row in range(12)]
    with pytest.raises(UsageError, match="'arrow' does not take --unpack; leave it out, or use parquet"):
        index(tmp_path / "a", "arrow", unpack=tmp_path / "b")


def test_dictionaries_that_differ_from_group_to_group(tmp_path):
    """pandas' categories, and images that repeat, as a table that says dictionary of itself."""
    names, shades = ["b", "a", "b", "c", "c", "a", None, "d"], [1, 1, 2, 3, 3, 3, 4, 4]
    table = pa.table({"image": [png(i) for i in shades], "label": pa.array(names).dictionary_encode()})
    table = table.set_column(0, "image", table["image"].dictionary_encode())
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
    for unpack in (None, tmp_path / "new"):
        catalog, _ = index(tmp_path / "a.parquet", "parquet", unpack=unpack)
        assert [catalog.image_bytes(row) for row in range(8)] == [png(i) for i in shades]
        found = [[catalog.classes[c] for c in np.flatnonzero(row)] for row in catalog.label_matrix(range(8))]
        assert found == [[name] if name else [] for name in names]


@pytest.fixture
def compressed(tmp_path):
    """A file of ten groups of four images, its catalog, and the images."""
    file = tmp_path / "a.parquet"
    pq.write_table(images(40), file, row_group_size=4, compression="snappy")
    release()
    catalog, _ = index(file, "parquet", keys="row")
    release()
    return catalog, [png(i) for i in range(40)], file


def test_groups_are_kept_within_a_number_of_bytes_and_unpacked_once(compressed, monkeypatch):
    catalog, pictures, _ = compressed
    unpacked, real = [], parquet_values._values
    monkeypatch.setattr(parquet_values, "_values", lambda *asked: (unpacked.append(asked[2]), real(*asked))[1])
    assert [catalog.image_bytes(row) for row in range(40)] == pictures and unpacked == list(range(10))
    assert [catalog.image_bytes(row) for row in range(40)] == pictures and unpacked == list(range(10))
    first = group_of(catalog.place(6))
    assert first.first == 4 and [value.as_py() for value in first.values] == pictures[4:8]
    release()
    monkeypatch.setattr(parquet_values, "MEMORY", 2 * first.values.nbytes)
    unpacked.clear()
    for row in (0, 4, 1, 8, 2, 5):  # the second group is the one that was not asked for last
        assert catalog.image_bytes(row) == pictures[row]
    assert unpacked == [0, 1, 2, 1] and len(parquet_values._groups) == 2


def test_a_disk_cache_keeps_a_group_with_the_first_of_its_images(compressed, tmp_path, monkeypatch):
    catalog, pictures, _ = compressed
    cached = catalog.cached_on_disk(tmp_path / "cache", 1)
    assert cached.image_bytes(5) == pictures[5]
    release()
    monkeypatch.setattr(parquet_values, "_values", None)
    again = catalog.cached_on_disk(tmp_path / "cache", 1)
    assert [again.image_bytes(row) for row in range(4, 8)] == pictures[4:8]
    with pytest.raises(TypeError):
        again.image_bytes(8)


def test_threads_share_a_group_that_is_being_unpacked(compressed, monkeypatch):
    catalog, pictures, _ = compressed
    unpacked, real, all_there, together = [], parquet_values._values, threading.Event(), threading.Barrier(8)

    def slow(*asked):
        unpacked.append(asked[2])
        assert all_there.wait(60)
        return real(*asked)

    monkeypatch.setattr(parquet_values, "_values", slow)
    found = {}

    def read(number):
        together.wait()
        if number == 7:
            all_there.set()
        found[number] = [catalog.image_bytes(row) for row in range(40)]

    threads = [threading.Thread(target=read, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[number] == pictures for number in range(8)) and sorted(unpacked) == list(range(10))


def test_a_damaged_group_is_bad_images_and_another_file_ends_it(compressed):
    catalog, pictures, file = compressed
    data, when = bytearray(file.read_bytes()), os.stat(file).st_mtime
    at = pq.read_metadata(file).row_group(3).column(0).data_page_offset
    data[at : at + 40] = bytes(40)
    file.write_bytes(data)
    os.utime(file, (when, when))
    for row in (12, 15):
        with pytest.raises(BadImage, match="its group of rows in the file is damaged"):
            open_upright(catalog, row)
    assert np.array_equal(open_upright(catalog, 16).size, (3, 2)) and catalog.image_bytes(11) == pictures[11]
    file.write_bytes(data + b"x")
    with pytest.raises(ObjcropError, match="was changed after it was indexed") as caught:
        open_upright(catalog, 11)
    assert not isinstance(caught.value, BadImage)


def test_what_is_no_parquet_file_of_images(tmp_path, monkeypatch):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"x": [1, 2], "text": ["a", "b"]}), file)
    said = error(file, "parquet")
    assert "has no column of encoded images" in said and "(its columns: x, text); take --format list where" in said
    assert "is far away, and .parquet files are read from a disk; copy it here." in error("s3://bucket/a", "parquet")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": str(tmp_path / "1.png")}], kind)}), file)
    (tmp_path / "1.png").write_bytes(png(1))
    catalog, report = index(file, "parquet")
    assert catalog.image_bytes(0) == png(1) and not report.remarks
    pq.write_table(images(30), file)
    whole = file.read_bytes()
    for cut in (b"", whole[:-9], whole[:3], b"<html>" + whole[6:]):
        file.write_bytes(cut)
        assert "a.parquet is truncated, damaged or no Parquet file" in error(file, "parquet") or cut[:1] == b"<"
    pq.write_table(images(30), file, row_group_size=10, compression="snappy")
    monkeypatch.setattr("objcrop.formats.parquet.LARGEST", 500)
    assert "compresses 0.0 GB of images together, all unpacked to read one; give --unpack FOLDER" in error(
        file, "parquet"
    )
    assert len(index(file, "parquet", unpack=tmp_path / "new" / "folder")[0]) == 30
