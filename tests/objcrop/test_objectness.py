import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objcrop.catalog import Catalog
from objcrop.coverage import HELD_PART, intersection, pair_coverage
from objcrop.errors import ObjcropError
from objcrop.objectness import area, box_union, object_mask, object_pixels, object_share, summed_area, zones
from objcrop.recall import best_overlaps, budgets

WIDTH, HEIGHT = 13, 9
SIZE = np.array([WIDTH, HEIGHT], np.int32)


def windows(least, most):
    """Lists of integer windows inside the image."""
    axis = [st.tuples(st.integers(0, side - 1), st.integers(1, side)).filter(lambda s: s[0] < s[1]) for side in SIZE]
    window = st.tuples(*axis).map(lambda s: (s[0][0], s[1][0], s[0][1], s[1][1]))
    return st.lists(window, min_size=least, max_size=most).map(lambda w: np.array(w, np.int32).reshape(-1, 4))


def pixels_of(window):
    x0, y0, x1, y1 = window
    return {(x, y) for x in range(x0, x1) for y in range(y0, y1)}


@given(windows(0, 5), windows(1, 6))
def test_object_pixels_are_those_counted_one_by_one(boxes, crops):
    objects = set().union(*(pixels_of(box) for box in boxes))
    table = summed_area(box_union(boxes.astype(np.float32), SIZE))
    assert object_pixels(table, crops).tolist() == [len(objects & pixels_of(crop)) for crop in crops]
    assert area(crops).tolist() == [len(pixels_of(crop)) for crop in crops]


@given(windows(0, 4), windows(4, 4))
def test_pairs_are_those_counted_pixel_by_pixel(boxes, crops):
    pairs = crops.reshape(2, 2, 4)
    objects = [pixels_of(box) for box in boxes]
    union = set().union(*objects)
    found = pair_coverage(summed_area(box_union(boxes.astype(np.float32), SIZE)), pairs, boxes)
    for i, pair in enumerate(pairs):
        one, two = (pixels_of(window) for window in pair)
        both = one & two
        assert found.share[i] == (len(both & union) / len(both) if both else 0)
        assert found.iou[i] == len(both) / len(one | two)
        assert found.of_first[i] == len(both) / len(one)
        held = [min(len(one & thing), len(two & thing)) >= HELD_PART * len(thing) for thing in objects]
        assert found.same_object[i] == any(held)


def test_windows_that_do_not_meet_have_an_empty_intersection():
    one, two = np.array([[0, 0, 3, 3]]), np.array([[5, 1, 9, 2]])
    assert area(intersection(one, two)).tolist() == [0]
    assert object_share(summed_area(np.ones((9, 13), np.uint8)), intersection(one, two)).tolist() == [0]


def test_zones_end_where_the_paper_says():
    found = zones(np.array([1 / 5, 199_999 / 10**6, 4 / 5, 800_001 / 10**6]))
    assert {name: inside.tolist() for name, inside in found.items()} == {
        "poor": [False, True, False, False],
        "coarse": [True, False, True, False],
        "precise": [False, False, False, True],
    }


def rle(mask):
    from pycocotools import mask as coco_mask

    encoded = coco_mask.encode(np.asfortranarray(mask))
    return json.dumps({"size": list(encoded["size"]), "counts": encoded["counts"].decode()})


def masked_catalog(folder, masks, **more):
    """One image of WIDTH × HEIGHT with a box around the whole of it for each mask."""
    n = len(masks)
    return Catalog.build(
        folder,
        ["a.jpg"],
        [SIZE],
        classes=["thing"],
        boxes=[(0, 0, WIDTH, HEIGHT)] * n,
        box_rows=[0] * n,
        box_classes=[0] * n,
        masks=masks,
        **more,
    )


def test_masks_are_used_where_every_box_has_one_and_crowds_count(tmp_path):
    rng = np.random.default_rng(0)
    masks = [(rng.random((HEIGHT, WIDTH)) < 0.3).astype(np.uint8) for _ in range(3)]
    texts = [rle(mask) for mask in masks]
    mask, source = object_mask(masked_catalog(tmp_path, texts, crowd=[False, False, True]), 0)
    assert source == "masks"
    np.testing.assert_array_equal(mask, masks[0] | masks[1] | masks[2])
    mask, source = object_mask(masked_catalog(tmp_path, [*texts[:2], None]), 0)
    assert source == "boxes" and mask.all()


def test_an_image_without_ground_truth_has_no_mask(tmp_path):
    assert object_mask(Catalog.build(tmp_path, ["a.jpg"], [SIZE]), 0) is None


def test_a_mask_of_another_size_is_refused(tmp_path):
    with pytest.raises(ObjcropError, match=r"a\.jpg is 13×9 pixels, but one of its masks is 9×13.*objcrop index"):
        object_mask(masked_catalog(tmp_path, [rle(np.ones((WIDTH, HEIGHT), np.uint8))]), 0)


def naive_overlap(a, b):
    sides = [max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0.0) for i in (0, 1)]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return sides[0] * sides[1] / (areas[0] + areas[1] - sides[0] * sides[1])


def test_best_overlaps_are_a_plain_loops():
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 80, (57, 2))
    boxes = np.concatenate([low, low + rng.uniform(1, 60, (57, 2))], 1).astype(np.float32)
    objects, boxes = boxes[:7], boxes[7:]
    overlap = np.array([[naive_overlap(o, b) for b in boxes.astype(float).tolist()] for o in objects.astype(float)])
    found = best_overlaps(objects, boxes, [1, 10, 1000])
    np.testing.assert_allclose(found, np.stack([overlap[:, :k].max(1) for k in (1, 10, 50)], 1), rtol=1e-12)
    assert best_overlaps(objects, boxes[:0], [1, 10]).tolist() == [[0, 0]] * 7


def test_budgets_go_as_far_as_there_are_boxes():
    assert [budgets(most) for most in (0, 1, 5, 10, 150, 2000)] == [
        [],
        [1],
        [1, 5],
        [1, 10],
        [1, 10, 100, 150],
        [1, 10, 100, 1000],
    ]
