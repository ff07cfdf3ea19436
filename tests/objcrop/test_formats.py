"""Every format, and what is wrong with files: against Pillow, pycocotools and boxes written out by hand."""

import builtins
import importlib
import json
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from objcrop.errors import ObjcropError, UsageError
from objcrop.exif import upright_boxes, upright_sizes
from objcrop.formats import FORMATS, index, module_of
from objcrop.formats.source import Source

DATA = os.environ.get("OBJCROP_TEST_DATA")
real = pytest.mark.skipif(not DATA, reason="OBJCROP_TEST_DATA is not set")


def save(path, size=(40, 30), orientation=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = options.pop("image", None) or Image.new("RGB", size, (90, 120, 60))
    if orientation:
        exif = Image.Exif()
        exif[0x0112] = orientation
        options["exif"] = exif
    image.save(path, **options)


def coco(folder, images=None, notes=(), categories=((1, "cat"), (7, "dog")), file="instances.json"):
    """A COCO folder; `notes` are (image id, category id, bbox, more). Images are 40x30 and named a.jpg, b.jpg, ..."""
    if images is None:
        images = [{"id": i, "file_name": f"{name}.jpg", "width": 40, "height": 30} for i, name in enumerate("ab", 1)]
        for image in images:
            save(folder / "images" / image["file_name"])
    content = {
        "images": images,
        "annotations": [
            {"id": i, "image_id": image, "category_id": c, "bbox": box} | (more[0] if more else {})
            for i, (image, c, box, *more) in enumerate(notes)
        ],
        "categories": [{"id": c, "name": name} for c, name in categories],
    }
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    return folder


def voc_xml(name, objects, size=(40, 30)):
    things = "".join(
        f"<object><name>{label}</name><difficult>{difficult}</difficult><bndbox>"
        + "".join(f"<{side}>{value}</{side}>" for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box))
        + "</bndbox><part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>"
        for label, difficult, box in objects
    )
    frame = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    return f"<annotation><filename>{name}</filename>{frame}{things}</annotation>"


def voc(folder, images):
    for stem, objects in images.items():
        save(folder / "JPEGImages" / f"{stem}.jpg")
        (folder / "Annotations").mkdir(exist_ok=True)
        (folder / "Annotations" / f"{stem}.xml").write_text(voc_xml(f"{stem}.jpg", objects))
    return folder


def error(*args, **options):
    with pytest.raises(ObjcropError) as caught:
        index(*args, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def keys(catalog):
    return catalog.table.column("key").to_pylist()


# EXIF orientation


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_painted_box_is_found_upright(tmp_path, orientation, suffix):
    stored = np.zeros((48, 80, 3), np.uint8)
    stored[8:24, 32:72] = 255
    save(tmp_path / f"images/a.{suffix}", image=Image.fromarray(stored), orientation=orientation, quality=95)
    with Image.open(tmp_path / f"images/a.{suffix}") as image:
        shown = np.asarray(ImageOps.exif_transpose(image))[..., 0] > 127
    ys, xs = np.nonzero(shown)
    expected = [xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]
    images = [{"id": 1, "file_name": f"a.{suffix}"}]
    if suffix == "tif":  # Pillow decodes TIFF upright, so upright is the frame that its pixels are stored in
        images[0] |= {"width": shown.shape[1], "height": shown.shape[0]}
        box = [int(v) for v in (expected[0], expected[1], xs.max() + 1 - xs.min(), ys.max() + 1 - ys.min())]
    else:
        box = [32, 8, 40, 16]
    catalog, report = index(coco(tmp_path, images, [(1, 1, box)]), "coco")
    assert catalog.sizes.tolist() == [[shown.shape[1], shown.shape[0]]]
    assert catalog.annotations(0).boxes.tolist() == [expected]
    assert catalog.orientations.tolist() == [1 if suffix == "tif" else orientation]
    assert report.clipped == 0 and report.other_size == []


@pytest.mark.parametrize(
    "stated, expected",
    [
        ((40, 30), [0, 2, 10, 5]),  # the stored size: turned by 90 degrees with the pixels (x, y -> 30 - y, x)
        ((30, 40), [2, 20, 5, 30]),  # the upright size: as they are
        ((None, None), [0, 2, 10, 5]),
        ((99, 99), [0, 2, 10, 5]),
    ],
)
def test_stated_size_says_which_frame_boxes_are_in(tmp_path, stated, expected):
    box = [2, 20, 3, 10]
    save(tmp_path / "images/a.jpg", (40, 30), orientation=6)
    images = [{"id": 1, "file_name": "a.jpg", "width": stated[0], "height": stated[1]}]
    catalog, report = index(coco(tmp_path, images, [(1, 1, box)]), "coco")
    assert catalog.sizes.tolist() == [[30, 40]]
    assert catalog.annotations(0).boxes.tolist() == [expected]
    assert report.other_size == (["a.jpg"] if stated == (99, 99) else [])


def test_upright_arrays_agree_with_single_images():
    rng = np.random.default_rng(0)
    orientations, sizes = rng.integers(1, 9, 50), rng.integers(20, 50, (50, 2))
    boxes = np.sort(rng.integers(0, 20, (50, 2, 2)), axis=1).reshape(50, 4)
    together = upright_boxes(boxes, sizes, orientations)
    for i in range(50):
        assert np.array_equal(together[i], upright_boxes(boxes[i], sizes[i], orientations[i : i + 1])[0])
    assert np.array_equal(upright_sizes(sizes, orientations)[orientations < 5], sizes[orientations < 5])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_are_turned_upright(tmp_path, orientation):
    from pycocotools import mask as coco_mask

    stored = np.zeros((30, 40), np.uint8)
    stored[4:9, 20:33] = 1
    stored[6, 20] = 0
    save(tmp_path / "images/a.png", image=Image.fromarray(stored * 255), orientation=orientation)
    rle = coco_mask.encode(np.asfortranarray(stored))
    flat = stored.T.reshape(-1)
    runs = np.diff(np.flatnonzero(np.concatenate(([1], np.diff(flat), [1])))).tolist()
    box = [20, 4, 13, 5]
    notes = [
        (1, 1, box, {"segmentation": {"size": [30, 40], "counts": rle["counts"].decode()}}),
        (1, 1, box, {"segmentation": {"size": [30, 40], "counts": runs}, "iscrowd": 1}),
        (1, 1, box, {"segmentation": [[20, 4, 33, 4, 33, 9, 20, 9]]}),
        (1, 1, box, {"segmentation": []}),
        (1, 1, box, {"segmentation": {"size": [31, 40], "counts": rle["counts"].decode()}}),
        (1, 1, box),
    ]
    images = [{"id": 1, "file_name": "a.png", "width": 40, "height": 30}]
    catalog, _ = index(coco(tmp_path, images, notes), "coco")
    with Image.open(tmp_path / "images/a.png") as image:
        expected = np.asarray(ImageOps.exif_transpose(image)) > 0
    compressed, uncompressed, polygon, *none = catalog.masks(0)
    assert np.array_equal(coco_mask.decode(compressed), expected)
    assert np.array_equal(coco_mask.decode(uncompressed), expected)
    whole = coco_mask.decode(polygon)
    assert whole.sum() == expected.sum() + 1 and np.all(whole >= expected)
    assert none == [None, None, None]
    assert catalog.annotations(0).crowd.tolist() == [False, True, False, False, False, False]


# folder


def test_folder(tmp_path):
    for name in ("z.png", "deep/er/a.jpg", "b.JPEG"):
        save(tmp_path / name, (11, 7), format="JPEG")
    save(tmp_path / ".hidden.jpg")
    save(tmp_path / ".cache/c.jpg")
    save(tmp_path / "no_suffix", format="BMP")
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "deep/loop").symlink_to(tmp_path)
    catalog, report = index(tmp_path)
    assert keys(catalog) == ["b.JPEG", "deep/er/a.jpg", "no_suffix", "z.png"]
    assert catalog.classes == [] and report.images == 4
    assert [key for key, _ in report.left_out] == ["notes.txt"]
    assert "1 files left out:" in report.lines()
    assert keys(index(tmp_path, limit=2)[0]) == ["b.JPEG", "deep/er/a.jpg"]
    assert keys(index(tmp_path / "deep/er", root=tmp_path)[0]) == ["deep/er/a.jpg"]


def test_folder_errors(tmp_path):
    assert "is not there" in error(tmp_path / "none")
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in error(tmp_path / "file")
    assert "no image to index" in error(tmp_path)
    (tmp_path / "empty").mkdir()
    assert "no image to index" in error(tmp_path / "empty")
    assert ", ".join(FORMATS) in error(tmp_path, "pascal")
    assert "--limit" in error(tmp_path, limit=0)
    with pytest.raises(UsageError, match="--root"):
        index(tmp_path, root=tmp_path / "empty")


def test_a_format_refuses_options_that_it_does_not_take(tmp_path):
    save(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match="'folder' does not take --annotations; leave it out, or use coco or voc"):
        index(tmp_path, annotations="x.json")
    with pytest.raises(UsageError, match="'coco' does not take --of-nobody; leave it out\\."):
        index(tmp_path, "coco", of_nobody=3)
    assert keys(index(tmp_path, annotations=None, of_nobody=False)[0]) == ["a.jpg"]
    assert f"'folder:x', but it must be one of: {', '.join(FORMATS)}." in error(tmp_path, "folder:x")


def test_every_format_has_its_reader_and_takes_fields_of_source():
    for name, takes in FORMATS.items():
        module = module_of(name.removesuffix(":NAME"))
        assert not hasattr(builtins, module)  # as the package's attribute it would hide Python's own
        assert callable(getattr(importlib.import_module(f"objcrop.formats.{module}"), f"read_{module}"))
        assert set(takes) <= {field.name for field in fields(Source)}


def test_names_that_are_not_utf8(tmp_path):
    save(tmp_path / "good.jpg")
    try:
        (tmp_path / os.fsdecode(b"caf\xe9.jpg")).write_bytes((tmp_path / "good.jpg").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    catalog, report = index(tmp_path)
    assert keys(catalog) == ["good.jpg"]
    assert report.left_out == [("caf\\udce9.jpg", "the name is not UTF-8")]
    "\n".join(report.lines()).encode()


def test_verify_finds_what_headers_hide(tmp_path):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 255, (60, 80, 3), np.uint8))
    save(tmp_path / "good.jpg", image=noise)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "good.jpg").read_bytes()[:3000])
    assert keys(index(tmp_path)[0]) == ["cut.jpg", "good.jpg"]
    catalog, report = index(tmp_path, verify=True)
    assert keys(catalog) == ["good.jpg"]
    assert report.left_out[0][0] == "cut.jpg" and "truncated" in report.left_out[0][1]


def test_bombs_are_left_out_and_large_images_kept(tmp_path):
    save(tmp_path / "large.png", image=Image.new("1", (7680, 4320)))
    save(tmp_path / "bomb.png", image=Image.new("1", (20000, 10000)))
    catalog, report = index(tmp_path, verify=True)
    assert keys(catalog) == ["large.png"]
    assert report.left_out[0][0] == "bomb.png" and report.left_out[0][1].startswith("decompression bomb")


# COCO


def test_coco(tmp_path):
    notes = [
        (2, 7, [1, 2, 10, 20], {"difficult": 1}),
        (1, 1, [0.5, 0, 4, 5]),
        (2, 1, [3, 3, 3, 3], {"iscrowd": 1}),
    ]
    folder = coco(tmp_path / "set", notes=notes, categories=((7, "dog"), (1, "cat"), (3, "eel")))
    for source in (folder, folder / "instances.json"):
        catalog, report = index(source, "coco")
        assert catalog.classes == ["cat", "eel", "dog"] and keys(catalog) == ["a.jpg", "b.jpg"]
        assert catalog.annotations(0).boxes.tolist() == [[0.5, 0, 4.5, 5]]
        boxes, classes, difficult, crowd = catalog.annotations(1)
        assert boxes.tolist() == [[1, 2, 11, 22], [3, 3, 6, 6]] and classes.tolist() == [2, 0]
        assert difficult.tolist() == [True, False] and crowd.tolist() == [False, True]
        assert catalog.label_matrix([0, 1]).tolist() == [[1, 0, 0], [1, 0, 1]]
        assert (report.images, report.boxes, report.dropped_boxes, report.clipped) == (2, 3, 0, 0)
    (folder / "instances.json").rename(tmp_path / "other.json")
    for options in (dict(annotations=tmp_path / "other.json"), dict(root=folder / "images")):
        source = folder if "annotations" in options else tmp_path / "other.json"
        assert index(source, "coco", **options)[0].fingerprint == catalog.fingerprint
    one, _ = index(folder, "coco", annotations=tmp_path / "other.json", limit=1)
    assert keys(one) == ["a.jpg"] and one.classes == catalog.classes


def test_coco_boxes_clipped_and_dropped(tmp_path):
    nan = float("nan")
    notes = [
        (1, 1, [-5, 10, 10, 10]),  # clipped
        (1, 1, [30, 20, 100, 100]),  # clipped
        (1, 1, [0, 0, 40.004, 30]),  # rounding, not counted
        (1, 1, [3, 3, 0, 5]),  # no area
        (1, 1, [3, 3, -2, 5]),  # no area
        (1, 1, [50, 3, 5, 5]),  # outside
        (1, 1, [nan, 3, 5, 5]),
        (1, 1, [None, 3, 5, 5]),
        (1, 1, [1, 2, float("inf"), 5]),
        (1, 1, [1e300, 2, 1, 5]),  # outside
    ]
    catalog, report = index(coco(tmp_path, notes=notes), "coco")
    assert catalog.annotations(0).boxes.tolist() == [[0, 10, 5, 20], [30, 20, 40, 30], [0, 0, 40, 30]]
    assert (report.clipped, report.dropped_empty, report.dropped_not_finite, report.dropped_boxes) == (2, 4, 3, 7)
    assert any("7 boxes dropped" in line for line in report.lines())


def test_coco_missing_images_are_listed(tmp_path):
    images = [{"id": i, "file_name": f"{name}.jpg"} for i, name in enumerate("abc")]
    save(tmp_path / "images/b.jpg")
    save(tmp_path / "images/unlisted.jpg")
    catalog, report = index(coco(tmp_path, images, [(i, 1, [1, 1, 5, 5]) for i in (0, 1, 2, 9)]), "coco")
    assert keys(catalog) == ["b.jpg"] and report.boxes == 1
    assert sorted(report.missing_annotated) == ["a.jpg", "c.jpg", "image id 9"]
    assert "3 annotated images are not there:" in report.lines()
    (tmp_path / "images/b.jpg").unlink()
    assert "check the folder, or --root" in error(tmp_path, "coco")


def test_coco_errors(tmp_path):
    file = tmp_path / "instances.json"
    assert "--annotations" in error(tmp_path, "coco")
    assert "is not there" in error(tmp_path, "coco", root=tmp_path / "none", annotations=coco(tmp_path) / file)
    file.write_text('{"images": [],\n "annotations": [}')
    assert "line 2, column 18" in error(tmp_path, "coco") and str(file) in error(tmp_path, "coco")
    file.write_bytes(b'{"images": "\xff"}')
    assert "no list 'images'" in error(tmp_path, "coco")
    file.write_text('{"images": [], "annotations": []}')
    assert "no image to index" in error(tmp_path, "coco")
    file.write_text("[]")
    assert "no list 'images'" in error(tmp_path, "coco")

    same = [{"id": 1, "file_name": "x/a.jpg", "width": 8, "height": 6}, {"id": 2, "file_name": "./x/a.jpg"}]
    same[1] |= {"width": 8, "height": 7}
    assert "'x/a.jpg' with two sizes, 8x6 and 8x7" in error(coco(tmp_path, same), "coco")
    same = [{"id": 1, "file_name": "a.jpg"}, {"id": 1, "file_name": "b.jpg"}]
    assert "same id" in error(coco(tmp_path, same), "coco")
    assert "must lie below" in error(coco(tmp_path, [{"id": 1, "file_name": "../a.jpg"}]), "coco")
    assert "images[0]: file_name is None" in error(coco(tmp_path, [{"id": 1}]), "coco")
    twice = error(coco(tmp_path, categories=((1, "cat"), ("1", "dog"))), "coco")
    assert "category id twice" in twice and "'cat'" in twice and "'dog'" in twice


def test_scenes_error(tmp_path):
    assert "no instances.json" in error(tmp_path, "scenes")


# VOC


def test_voc(tmp_path):
    year = voc(tmp_path / "VOC2007", {"000002": [("dog", 0, (1, 1, 40, 30)), ("cat", 1, (3, 4, 3, 4))], "000001": []})
    catalog, report = index(year, "voc")
    assert keys(catalog) == ["JPEGImages/000001.jpg", "JPEGImages/000002.jpg"] and len(catalog.classes) == 20
    truth = catalog.annotations(1)
    assert truth.boxes.tolist() == [[0, 0, 40, 30], [2, 3, 3, 4]]
    assert [catalog.classes[c] for c in truth.classes] == ["dog", "cat"] and truth.difficult.tolist() == [False, True]
    assert report.clipped == report.dropped_boxes == 0

    voc(tmp_path / "VOC2012", {"000001": [("dog", 0, (0, 5, 50, 9))]})
    both, report = index(tmp_path, "voc")
    expected = ["VOC2007/JPEGImages/000001.jpg", "VOC2007/JPEGImages/000002.jpg", "VOC2012/JPEGImages/000001.jpg"]
    assert keys(both) == expected
    assert both.annotations(2).boxes.tolist() == [[0, 4, 40, 9]] and report.clipped == 1

    (tmp_path / "list.txt").write_text("000002  1\n000009 -1\n")
    some, report = index(year, "voc", annotations=tmp_path / "list.txt")
    assert keys(some) == ["JPEGImages/000002.jpg"] and report.missing_annotated == ["000009"]


def test_voc_missing_and_unannotated_images(tmp_path):
    voc(tmp_path, {"a": [("goose", 0, (1, 1, 5, 5))], "b": [("auk", 0, (1, 1, 5, 5))]})
    (tmp_path / "JPEGImages/b.jpg").unlink()
    save(tmp_path / "JPEGImages/c.jpg")
    catalog, report = index(tmp_path, "voc")
    assert catalog.classes == ["auk", "goose"]
    assert report.missing_annotated == ["JPEGImages/b.jpg"]
    assert report.left_out == [("JPEGImages/c.jpg", "no XML file of that name")]


def test_voc_errors(tmp_path):
    assert "no Annotations folder" in error(tmp_path, "voc")
    (tmp_path / "Annotations").mkdir()
    assert "no XML file" in error(tmp_path, "voc")
    file = voc(tmp_path, {"a": []}) / "Annotations/a.xml"
    file.write_text(file.read_text() + "\n<more>")
    assert "Annotations/a.xml: it is broken XML at line 2, column 1" in error(tmp_path, "voc")
    (tmp_path / "list.txt").write_text("b\n")
    assert "no XML file" in error(tmp_path, "voc", annotations=tmp_path / "list.txt")
    assert "cannot be read (no such file" in error(tmp_path, "voc", annotations=tmp_path / "none.txt")


# Real files


@real
def test_odd_files_are_all_accounted_for():
    folder = Path(DATA) / "odd"
    told = {entry["file"]: entry["pil"] for entry in json.loads((folder / "MANIFEST.json").read_text())}
    catalog, report = index(folder, verify=True)
    assert set(keys(catalog)) == {name for name, pil in told.items() if not pil.startswith("ERR")}
    assert {name for name, _ in report.left_out} == set(os.listdir(folder)) - set(keys(catalog))
    for row, key in enumerate(keys(catalog)):
        with Image.open(folder / key) as image:
            assert ImageOps.exif_transpose(image).size == tuple(catalog.sizes[row])


@real
def test_real_voc_against_coco_format_of_it():
    catalog, report = index(Path(DATA) / "VOCdevkit", "voc")
    assert len(catalog) == 300 and report.dropped_boxes == report.clipped == 0
    small, _ = index(Path(DATA) / "voc07_224/instances_test.json", "coco", root=Path(DATA) / "voc07_224/test")
    assert catalog.classes == small.classes
    row_of = {key: row for row, key in enumerate(keys(small))}
    names = [key.split("/")[-1] for key in keys(catalog)]
    both = [(row, row_of[name]) for row, name in enumerate(names) if name in row_of]
    assert both
    for row, other in both:
        assert np.array_equal(catalog.label_matrix([row]), small.label_matrix([other]))


@real
def test_real_coco_with_missing_files():
    catalog, report = index(Path(DATA) / "scenes_cc0", "coco")
    assert len(catalog) == 58 and len(report.missing_annotated) == 3
