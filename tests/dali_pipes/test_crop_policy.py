import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objcrop.dali_pipes.crop_policy import (
    POLICIES,
    centre_square,
    crop_policy,
    dilate,
    enlarge_small,
    outward,
    resolve_min_side,
    shift,
    with_scale,
)
from objcrop.errors import UsageError


@st.composite
def image_and_box(draw):
    w, h = draw(st.integers(1, 900)), draw(st.integers(1, 900))
    x0, y0 = draw(st.integers(0, w - 1)), draw(st.integers(0, h - 1))
    box = [x0, y0, draw(st.integers(x0 + 1, w)), draw(st.integers(y0 + 1, h))]
    return np.array([[w, h]], np.int32), np.array([box], np.int64)


def inside(window, sizes):
    return (window[:, :2] >= 0).all() and (window[:, 2:] <= sizes).all() and (window[:, 2:] > window[:, :2]).all()


@given(image_and_box(), st.integers(1, 400))
def test_small_boxes(case, smallest):
    sizes, box = case
    new = enlarge_small(box, sizes, np.array([smallest]))
    assert inside(new, sizes)
    for axis in range(2):  # closed form, one axis at a time
        low, high, limit = int(box[0, axis]), int(box[0, axis + 2]), int(sizes[0, axis])
        side = max(high - low, min(smallest, limit))
        start = min(max((low + high - side) // 2, 0), limit - side)
        assert (new[0, axis], new[0, axis + 2]) == (start, start + side)


@given(image_and_box(), st.floats(0, 1), st.sampled_from(["image", "box"]))
def test_dilation_grows_by_delta_and_clips(case, delta, by):
    sizes, box = case
    new = dilate(box, sizes, delta, by)
    assert inside(new, sizes)
    for axis in range(2):
        low, high, limit = int(box[0, axis]), int(box[0, axis + 2]), int(sizes[0, axis])
        margin = round((limit if by == "image" else high - low) * (delta / 2))
        assert (new[0, axis], new[0, axis + 2]) == (max(low - margin, 0), min(high + margin, limit))


@given(image_and_box(), st.integers(0, 2**32))
def test_shift_keeps_size_and_stays_inside(case, seed):
    sizes, box = case
    new = shift(box, sizes, (80, 100), np.array([3]), seed=seed, epoch=1)
    assert inside(new, sizes)
    np.testing.assert_array_equal(new[:, 2:] - new[:, :2], box[:, 2:] - box[:, :2])


def test_shift_with_room_moves_by_the_distance_in_every_direction():
    n = 4000
    box = np.tile(np.array([450, 450, 550, 550]), (n, 1))
    new = shift(box, np.full((n, 2), 1000, np.int32), (80, 100), np.arange(n), seed=0, epoch=0)
    step = (new - box)[:, :2]
    distance = np.hypot(*step.T)
    assert distance.min() >= 79 and distance.max() <= 101
    quarter = np.histogram(np.arctan2(step[:, 1], step[:, 0]), bins=4, range=(-np.pi, np.pi))[0]
    assert quarter.min() > 0.22 * n


def test_a_shift_against_the_edge_is_drawn_again():
    n = 500
    box = np.tile(np.array([0, 0, 100, 100]), (n, 1))  # in a corner: three quarters of all directions are undone
    new = shift(box, np.full((n, 2), 400, np.int32), (80, 80), np.arange(n), seed=0, epoch=0)
    moved = np.hypot(*(new - box)[:, :2].T)
    assert moved.min() > 0 and np.mean(moved >= 40) > 0.99


@given(image_and_box())
def test_outward_never_loses_a_pixel(case):
    sizes, box = case
    low, high = box[:, :2] + 0.25, box[:, 2:] - 0.25
    window = outward(np.concatenate([low, high], 1).astype(np.float32), sizes)
    np.testing.assert_array_equal(window, box)


def test_min_side_auto_is_224_on_coco_and_half_the_side_on_small_images():
    sizes = np.array([[640, 480], [300, 224], [100, 31]], np.int32)
    assert resolve_min_side(sizes, "auto", 224).tolist() == [224, 112, 15]
    assert resolve_min_side(sizes, 50, 224).tolist() == [50, 50, 50]


def test_centre_square_is_the_usual_evaluation_crop():
    assert centre_square(np.array([[512, 256]], np.int32)).tolist() == [[144, 16, 368, 240]]


def test_unknown_policy_names_the_known():
    with pytest.raises(UsageError, match="obj-obj\\+dilate"):
        crop_policy("object-object")


def test_scale_min_goes_to_boxes_only():
    policy = with_scale(POLICIES["obj-scene"], (0.2, 1.0), 0.5)
    assert [v.scale for v in policy.views] == [(0.2, 1.0), (0.2, 1.0)]
    policy = with_scale(POLICIES["obj-obj+dilate"], (0.2, 1.0), 0.5)
    assert [v.scale for v in policy.views] == [(0.5, 1.0), (0.5, 1.0)]
