"""Zips of images: bytes as `zipfile` reads them, labels as from a tar, and what cannot be read from the middle."""

import io
import json
import random
import zipfile

import pytest
from image_tables import error, png

from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.formats.zip_members import BadZip, zip_members

MEMBERS = {
    "a/1.png": png(1),
    "a/1.json": json.dumps({"label": "cat", "boxes": [{"box": [0, 0, 2, 1], "label": "dog"}]}).encode(),
    "a/2.png": png(2),
    "a/2.cls": b"dog",
    "ä/x y.png": png(3),
    "notes.txt": b"a caption",
}


def write(path, members=MEMBERS, before=b"", comment=b"", **how):
    with path.open("wb") as out:
        out.write(before)
        with zipfile.ZipFile(out, "w", **how) as file:
            file.comment = comment
            file.writestr("folder/", b"")
            for name, data in members.items():
                info = zipfile.ZipInfo(name)
                info.extra = b"\x99\x99\x02\x00ab"  # the local header and the directory may have different ones
                with file.open(info, "w", force_zip64=name.endswith("2.png")) as member:
                    member.write(data)
    return path


@pytest.mark.parametrize("before", [b"", b"#!/bin/sh\n"])
def test_images_and_labels(tmp_path, before):
    file = write(tmp_path / "a.zip", before=before, comment=b"made by hand")
    catalog, report = index(file, "zips")
    assert report.lines() == ["3 images, 1 boxes"] and catalog.keys() == ["a/1.png", "a/2.png", "ä/x y.png"]
    assert [catalog.image_bytes(row) for row in range(3)] == [png(1), png(2), png(3)]
    assert catalog.classes == ["cat", "dog"] and catalog.label_matrix([0, 1, 2]).tolist() == [[1, 1], [0, 1], [0, 0]]
    assert catalog.annotations(0).boxes.tolist() == [[0, 0, 2, 1]]
    (tmp_path / "more").mkdir()
    write(tmp_path / "more" / "b.zip", {"b/1.png": png(9)})
    both, _ = index(tmp_path, "zips", limit=3)
    assert both.keys() == ["a/1.png", "a/2.png", "b/1.png"] and both.image_bytes(2) == png(9)
    write(tmp_path / "more" / "b.zip")
    assert "a.zip and more/b.zip both hold a/1.png" in error(tmp_path, "zips")


def test_what_cannot_be_read_from_the_middle_is_listed(tmp_path):
    file = tmp_path / "a.zip"
    with zipfile.ZipFile(file, "w") as out:
        out.writestr("1.png", png(1))
        out.writestr("2.png", png(2), zipfile.ZIP_DEFLATED)
        out.writestr("3.png", png(3))
    data = bytearray(file.read_bytes())
    at = data.rindex(b"PK\1\2")
    data[at + 8] |= 1  # encrypted, says the directory
    file.write_bytes(data)
    catalog, report = index(file, "zips")
    assert catalog.keys() == ["1.png"]
    way = "is compressed, so that it cannot be read by itself; make the zip with `zip -0`"
    assert report.left_out == [("a.zip:2.png", way), ("a.zip:3.png", "is encrypted")]
    with pytest.raises(ObjcropError, match=r"2\.png: is compressed"):
        index(file, "zips", strict=True)
    file.write_bytes(data + b"x")
    with pytest.raises(ObjcropError, match="was changed after it was indexed"):
        catalog.image_bytes(0)


def test_what_is_no_zip(tmp_path):
    file = write(tmp_path / "a.zip")
    whole = file.read_bytes()
    for cut in (b"", whole[: len(whole) // 2], whole[:-30], b"<html>"):
        file.write_bytes(cut)
        assert "a.zip cannot be indexed: it is no zip, or it is damaged or cut off" in error(file, "zips")
    assert "The zip" in error(tmp_path / "b.zip", "zips") and "is not there" in error(tmp_path / "b.zip", "zips")
    (tmp_path / "empty").mkdir()
    assert "holds no .zip" in error(tmp_path / "empty", "zips")
    assert "zips are read from a disk; copy it here, or make it a tar" in error("s3://bucket/a.zip", "zips")


def test_mutated_zips_give_members_inside_them_or_a_reason(tmp_path):
    whole = write(tmp_path / "a.zip").read_bytes()
    for seed in range(1500):
        rng, data = random.Random(seed), bytearray(whole)
        for _ in range(rng.choice((1, 1, 4))):
            begin = rng.choice((0, len(data) * 2 // 3))  # the directory is at the end
            data[rng.randrange(begin, len(data))] = rng.choice((0, 255, rng.randrange(256)))
        file = io.BytesIO(data if seed % 5 else data[: rng.randrange(len(data))])

        def read(at, length, file=file):
            file.seek(at)
            return file.read(length)

        try:
            members = list(zip_members(read, len(file.getvalue())))
        except BadZip:
            continue
        assert all(m.offset >= 0 and m.offset + m.length <= len(data) for m in members if not m.reason)
