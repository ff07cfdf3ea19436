"""COCO masks against pycocotools and NumPy where they are right; where they are not, nothing reaches pycocotools."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from objcrop.errors import ObjcropError
from objcrop.formats import index
from objcrop.formats.coco_masks import box_of, upright_masks, why_broken

W, H = 40, 30


def rle_of(mask):
    from pycocotools import mask as coco_mask

    return coco_mask.encode(np.asfortranarray(mask))["counts"].decode()


def runs_of(mask):
    flat = np.concatenate(([0], mask.T.reshape(-1), [2]))
    return np.diff(np.concatenate(([0], np.flatnonzero(np.diff(flat))))).tolist()


def read(segmentation, frame=(W, H), orientation=1):
    """The decoded mask, None for none, or why it is dropped."""
    from pycocotools import mask as coco_mask

    why = []
    (text,) = upright_masks([segmentation], [frame], [orientation], lambda i, reason: why.append(reason))
    return why[0] if why else text and coco_mask.decode([json.loads(text)])[:, :, 0]


masks = st.tuples(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32), st.sampled_from((0, 0.01, 0.5, 1.0)))


@given(masks)
@settings(deadline=None, max_examples=150)
def test_whole_masks_are_read(drawn):
    height, width, seed, share = drawn
    mask = (np.random.default_rng(seed).random((height, width)) < share).astype(np.uint8)
    for counts in (rle_of(mask), runs_of(mask), [str(n) for n in runs_of(mask)], [float(n) for n in runs_of(mask)]):
        for size in ([height, width], [str(height), f"{width}.0"], None):
            shape = {"counts": counts} | ({"size": size} if size else {})
            assert np.array_equal(read(shape, (width, height)), mask)
        ys, xs = np.nonzero(mask)
        edges = (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1) if len(xs) else None
        assert box_of({"size": [height, width], "counts": counts}) == edges


@given(st.lists(st.text("0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmno", max_size=30), max_size=8))
@settings(deadline=None, max_examples=300)
def test_a_string_passes_only_if_a_plain_decoder_says_so(texts):
    """The vectorised check, many masks at once, against a loop over each one's characters."""

    def counts(text):
        found, at = [], 0
        while at < len(text):
            value, place = 0, 0
            while True:
                if at == len(text):
                    return None
                code = ord(text[at]) - 48
                value |= (code & 31) << (5 * place)
                at, place = at + 1, place + 1
                if not code & 32:
                    break
            value -= (1 << (5 * place)) if code & 16 else 0
            found.append(value + (found[-2] if len(found) > 2 else 0))
        return found

    frames = [(7, 1 + i) for i in range(len(texts))]
    well = [(c := counts(text)) and min(c) >= 0 and sum(c) == w * h for text, (w, h) in zip(texts, frames)]
    broken = why_broken([{"counts": text} for text in texts], frames)
    assert [i not in broken for i in range(len(texts))] == [bool(fine) for fine in well]


def test_masks_are_checked_together_as_alone():
    rng = np.random.default_rng(0)
    shapes = [{"counts": rle_of((rng.random((H, W)) < share).astype(np.uint8))} for share in rng.random(600)]
    for i in range(0, 600, 7):
        shapes[i] = {"counts": shapes[i]["counts"][: int(rng.integers(1, 9))]}
    alone = {i for i, shape in enumerate(shapes) if why_broken([shape], [(W, H)])}
    assert alone == set(why_broken(shapes, [(W, H)] * 600)) == set(range(0, 600, 7))


SQUARE = [5, 5, 20, 5, 20, 15, 5, 15]
WHOLE = np.zeros((H, W), np.uint8)
WHOLE[5:15, 5:20] = 1


@pytest.mark.parametrize(
    "polygons",
    [
        [SQUARE],
        SQUARE,  # without the outer list
        [[[5, 5], [20, 5], [20, 15], [5, 15]]],  # points in pairs
        [[str(v) for v in SQUARE]],
        [[float(v) for v in SQUARE]],
        [SQUARE, [1, 1, 2, 2]],  # two points are no polygon
        [SQUARE, []],
    ],
)
def test_polygons_as_tools_write_them(polygons):
    assert np.array_equal(read(polygons), WHOLE)
    assert box_of(polygons) == (5, 5, 20, 15)


def test_polygons_reach_over_the_edge_as_pycocotools_has_it():
    from pycocotools import mask as coco_mask

    over = [[-9.5, -3, 55, 10.25, 30, 44, -30, 28]]
    assert np.array_equal(read(over), coco_mask.decode(coco_mask.frPyObjects(over, H, W))[:, :, 0])


@pytest.mark.parametrize("nothing", [None, [], [[]], "", [[1, 2, 3, 4]]])
def test_no_mask(nothing):
    assert read(nothing) is None and box_of(nothing) is None


def with_value(value, at=3):
    return [[*SQUARE[:at], value, *SQUARE[at + 1 :]]]


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        (with_value(None), "not finite"),
        (with_value(None, 0), "not finite"),
        (with_value(math.nan), "not finite"),
        (with_value(math.inf), "not finite"),
        (with_value(-math.inf, 0), "not finite"),
        (with_value("nan"), "not finite"),
        (with_value(10**400), "not finite"),
        (with_value("x"), "'x' is no number"),
        (with_value([5]), "[5] is no number"),
        (with_value(True), "True is no number"),
        (with_value(1e8), "far outside the image of 40x30"),
        (with_value(-9223372036854775808), "far outside"),
        (with_value(2**63, 0), "far outside"),
        (with_value(1e308, 0), "far outside"),
        (with_value(81, 0), "far outside"),
        ([[1e308, 1e308, 1e308, 0, 5, 5]], "not finite"),
        ([SQUARE[:7]], "7 coordinates"),
        ([[[1, 2, 3], [4, 5, 6]]], "no x, y pairs"),
        ([[[[1, 2]]]], "no x, y pairs"),
        ([{"x": 1}], "is no number"),
        ([SQUARE, 5], "a polygon is 5"),
        ("garbage", "the segmentation is 'garbage'"),
        (5, "the segmentation is 5"),
        ([[0, 0, W, H] * 20_000], "outline"),
        ({}, "counts are None"),
        ({"counts": []}, "counts are []"),
        ({"counts": 5}, "counts are 5"),
        ({"counts": None, "size": [H, W]}, "counts are None"),
        ({"counts": [W * H]} | {"size": [W, H]}, "[height, width], is [40, 30], the image's [30, 40]"),
        ({"counts": [W * H], "size": [10**30, 10**30]}, "[height, width]"),
        ({"counts": [W * H], "size": [10**400, 1]}, "[height, width]"),
        ({"counts": [W * H], "size": "30x40"}, "size is '30x40'"),
        ({"counts": [W * H], "size": [H, None]}, "[height, width]"),
        ({"counts": [W * H], "size": [H, W, 3]}, "size is"),
        ({"counts": [W * H - 1]}, "fill 1199 pixels, the image has 1200"),
        ({"counts": [10, -5, W * H - 5]}, "-5 is negative"),
        ({"counts": [10**30]}, "fill 1000000000000...00000000000000 pixels"),
        ({"counts": [W * H, math.nan]}, "no whole number"),
        ({"counts": [W * H - 0.5, 0.5]}, "no whole number"),
        ({"counts": [W * H, "x"]}, "'x' is no number"),
        ({"counts": "garbage!!"}, "no compressed RLE"),
        ({"counts": ""}, "no compressed RLE"),
        ({"counts": "猫"}, "no compressed RLE"),
        ({"counts": "\0"}, "no compressed RLE"),
        ({"counts": "o"}, "end in the middle"),
        ({"counts": "P" * 100_000 + "0"}, "cannot be"),
        ({"counts": "0" * 100_000}, "fill 0 pixels"),
        ({"counts": rle_of(WHOLE)[:-1]}, "the mask's count"),
        ({"counts": rle_of(WHOLE) + "1"}, "the mask's count"),
        ({"counts": rle_of(WHOLE), "size": [W, H]}, "[height, width]"),
    ],
)
def test_broken_masks_are_dropped_with_the_reason(segmentation, reason):
    assert reason in read(segmentation)
    for orientation in (1, 6):
        assert isinstance(read(segmentation, orientation=orientation), str)


def folder(path, *notes):
    (path / "images").mkdir(parents=True)
    Image.new("RGB", (W, H)).save(path / "images/a.png")
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": W, "height": H}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [{"image_id": 1, "category_id": 1} | note for note in notes],
    }
    (path / "instances.json").write_text(json.dumps(content))
    return path


def test_a_dropped_mask_leaves_its_box(tmp_path):
    notes = [{"bbox": [5, 5, 15, 10], "segmentation": s} for s in (with_value(math.nan), [SQUARE], {"counts": "!"})]
    catalog, report = index(folder(tmp_path, *notes), "coco")
    assert len(catalog.annotations(0).boxes) == 3 and [m is None for m in catalog.masks(0)] == [True, False, True]
    assert [place for place, _ in report.dropped_masks] == [f"instances.json annotations[{i}]" for i in (0, 2)]
    assert "2 masks dropped, their boxes kept:" in report.lines()
    with pytest.raises(ObjcropError, match=r"annotations\[0\]: a coordinate of the polygon is not finite"):
        index(tmp_path, "coco", strict=True)


def test_boxes_follow_from_masks(tmp_path):
    rle = {"size": [H, W], "counts": rle_of(WHOLE)}
    shapes = [[[5.25, 5, 20, 5, 20, 14.5]], rle, {"size": [H, W], "counts": runs_of(WHOLE)}, [SQUARE]]
    notes = [{"segmentation": shape} | ({"bbox": []} if i % 2 else {}) for i, shape in enumerate(shapes)]
    bad = [{"segmentation": s} for s in ({"counts": [1200]}, {"size": [9, 9], "counts": [40, 9, 32]}, with_value(1e8))]
    catalog, report = index(folder(tmp_path, *notes, *bad), "coco")
    boxes = catalog.annotations(0).boxes.tolist()
    assert boxes == [[5.25, 5, 20, 14.5], [5, 5, 20, 15], [5, 5, 20, 15], [5, 5, 20, 15]]
    assert len(catalog.masks(0)) == 4 and all(catalog.masks(0)) and report.boxes == 4
    reasons = dict(report.bad_entries)
    assert "states its size" in reasons["instances.json annotations[4]"]
    assert "[9, 9]" in reasons["instances.json annotations[5]"] and "far" in reasons["instances.json annotations[6]"]
