"""The same images from a folder, Arrow, Parquet and zip: one catalog, and the same views to the bit."""

import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import boxes_for
from image_tables import photos_in, table_of, write

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.formats import index


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """A catalog file of each source."""
    folder = tmp_path_factory.mktemp("sources")
    for name in ("photos", "stream", "file", "as-is", "packed"):
        (folder / name).mkdir()
    rows, of_files = photos_in(folder / "photos")
    table, packed = table_of(rows), {"row_group_size": 5, "compression": "zstd"}
    write(folder / "stream" / "data-00000-of-00002.arrow", table[:7], stream=True)
    write(folder / "stream" / "data-00001-of-00002.arrow", table[7:], stream=True)
    write(folder / "file" / "a.arrow", table, stream=False)
    pq.write_table(table, folder / "as-is" / "a.parquet", row_group_size=5, compression="none", use_dictionary=False)
    pq.write_table(table, folder / "packed" / "a.parquet", **packed)
    with zipfile.ZipFile(folder / "photos.zip", "w") as file:
        for row in rows:
            file.writestr(row["image"]["path"], row["image"]["bytes"])
    made = {"photos": of_files, "unpacked": index(folder / "packed", "parquet", unpack=folder / "unpacked")[0]}
    made |= {name: index(folder / name, "arrow")[0] for name in ("stream", "file")}
    made |= {name: index(folder / name, "parquet")[0] for name in ("as-is", "packed")}
    made["zip"] = index(folder / "photos.zip", "zips")[0]
    for name, catalog in made.items():
        catalog.save(folder / f"{name}.arrow")
    BoxTable.from_arrays(of_files, boxes_for(of_files)).save(folder / "boxes.arrow")
    return folder, list(made)


def test_one_fingerprint_and_the_same_rows(sources):
    folder, names = sources
    catalogs = [Catalog.load(folder / f"{name}.arrow") for name in names]
    assert len({catalog.fingerprint for catalog in catalogs}) == 1
    for catalog in catalogs:
        assert catalog.keys() == catalogs[0].keys()
        assert np.array_equal(catalog.sizes, catalogs[0].sizes)
        assert np.array_equal(catalog.orientations, catalogs[0].orientations)
        assert [catalog.image_bytes(row) for row in range(12)] == [catalogs[0].image_bytes(row) for row in range(12)]


@pytest.mark.parametrize(("backend", "options"), [("torch", {"workers": 0}), ("torch", {"workers": 2}), ("dali", {})])
def test_the_same_views_to_the_bit(sources, backend, options):
    folder, names = sources
    batches = {}
    for name in names:
        how = {"boxes": folder / "boxes.arrow", "crops": "obj-obj+dilate", "size": 48, "batch_size": 4}
        with load_views(folder / f"{name}.arrow", backend=backend, device="cpu", **how, **options) as loader:
            batches[name] = [[*batch.views, batch.index] for _ in range(2) for batch in loader]
            assert not loader.bad_images.reasons
    for name in names[1:]:
        for batch, of_files in zip(batches[name], batches["photos"], strict=True):
            assert all(torch.equal(one, other) for one, other in zip(batch, of_files, strict=True)), name


def test_a_sliced_table_of_several_columns_keeps_its_bytes(tmp_path):
    """Offsets of a slice begin behind those of its column."""
    rows, catalog = photos_in(tmp_path)
    table = table_of(rows)
    table = table.append_column("more", pa.array([b"x" * i for i in range(12)]))
    write(tmp_path / "a" / "a.arrow", table.slice(5, 4), stream=False, rows=3)
    found, _ = index(tmp_path / "a", "arrow", image_column="image")
    assert [found.image_bytes(row) for row in range(4)] == [catalog.image_bytes(row) for row in range(5, 9)]
