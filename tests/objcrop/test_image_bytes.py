"""Bytes of images inside other files: those that were packed, as a file of their own, and never those of another."""

import io
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objcrop.catalog import Catalog
from objcrop.catalog_table import Ranges
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.errors import ObjcropError
from objcrop.exif import read_header
from objcrop.image_bytes import RangeFile, changed, open_place
from objcrop.place import SourceFile


@pytest.fixture
def packed(tmp_path):
    """Three photos one behind the other in a file, a fourth beside it; the catalog and their bytes."""
    rng, photos = np.random.default_rng(0), []
    for i, ending in enumerate(("jpeg", "png", "webp", "tiff")):
        buffer = io.BytesIO()
        pixels = rng.integers(0, 255, (20 + i, 30, 3), np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(buffer, ending, **({"exif": exif} if i < 2 else {}))
        photos.append(buffer.getvalue())
    (tmp_path / "pack").write_bytes(b"".join(photos[:3]) + b"behind")
    (tmp_path / "d").write_bytes(photos[3])
    sizes = [(20, 30), (21, 30), (30, 22), (30, 23)]
    begins = np.cumsum([0, *map(len, photos[:3])])
    found = os.stat(tmp_path / "pack")
    source = SourceFile("pack", found.st_size, changed(found))
    ranges = Ranges([source], [0, 0, 0, -1], begins[[0, 1, 2, 0]], [*map(len, photos[:3]), 0])
    return Catalog.build(tmp_path, list("abcd"), sizes, [6, 6, 1, 1], ranges=ranges), photos


def test_bytes_headers_and_pixels_are_those_of_the_files(packed, tmp_path):
    catalog, photos = packed
    for row, photo in enumerate(photos):
        assert catalog.image_bytes(row) == photo
        path = tmp_path / f"alone{row}"
        path.write_bytes(photo)
        alone = Catalog.build(tmp_path, [path.name], catalog.sizes[[row]], catalog.orientations[[row]])
        for verify in (False, True):
            assert read_header(catalog.place(row), verify=verify) == read_header(alone.place(0), verify=verify)
        assert np.array_equal(open_upright(catalog, row), open_upright(alone, 0))
        with open_place(catalog.place(row)) as file:
            assert file.read() == photo and file.seek(-3, io.SEEK_END) == len(photo) - 3 and file.read() == photo[-3:]


@given(st.binary(max_size=60), st.lists(st.tuples(st.integers(0, 2), st.integers(-70, 70), st.integers(-1, 70))))
def test_a_range_is_read_as_a_file_is(data, steps):
    inner = RangeFile(len(data), lambda at, n: data[at : at + n])
    with io.BufferedReader(inner, 8) as file, io.BytesIO(data) as reference:
        for whence, offset, count in steps:
            place = max(offset + (0, reference.tell(), len(data))[whence], 0)
            assert file.seek(place) == reference.seek(place)
            assert file.read(count) == reference.read(count) and file.tell() == reference.tell()


def test_another_file_of_that_name_is_never_read(packed, tmp_path):
    catalog, _ = packed
    pack, before = tmp_path / "pack", (tmp_path / "pack").read_bytes()
    when = os.stat(pack).st_mtime

    def shorter():
        pack.write_bytes(before[:-1])
        os.utime(pack, (when, when))

    def later():
        pack.write_bytes(before)
        os.utime(pack, (when + 2, when + 2))

    for change, says in (
        (shorter, "was changed after"),
        (later, "`objcrop index`"),
        (pack.unlink, "is not there; "),
    ):
        change()
        for use in (
            catalog.image_bytes,
            lambda row: open_upright(catalog, row),
            lambda row: open_place(catalog.place(row)),
        ):
            with pytest.raises(ObjcropError, match=says) as caught:
                use(1)
            assert not isinstance(caught.value, BadImage) and str(pack) in str(caught.value)
