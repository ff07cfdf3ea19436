"""Which of Selective Search's boxes SoCo keeps, by the rules of its code one box at a time."""

import math

import numpy as np
import pytest

from objcrop.errors import UsageError
from objcrop.proposals import propose
from objcrop.proposals.soco_filter import kept_by_soco


def by_loops(boxes, width, height):
    sides = [(x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes.tolist()]
    large = [w >= 32 and h >= 32 for w, h in sides]
    plump = [fine and 1 / 3 <= w / h <= 3 for fine, (w, h) in zip(large, sides)]
    roots = [math.sqrt(w * h) / math.sqrt(width * height) for w, h in sides]
    fits = [fine and 0.3 <= root <= 0.8 for fine, root in zip(plump, roots)]
    return fits if any(fits) else plump if any(plump) else large


@pytest.mark.parametrize("scale", [1.0, 0.3, 0.12, 0.05])
def test_by_loops(scale):
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(60):
        low = rng.uniform(0, 300, (int(rng.integers(0, 6)), 2))
        boxes = np.concatenate([low, low + rng.uniform(1, 500, low.shape) * scale], 1).astype(np.float32)
        found = kept_by_soco(boxes, 640, 480)
        assert found.tolist() == by_loops(boxes, 640, 480)
        kinds |= {bool(kept) for kept in found}
    assert kinds == ({False} if scale == 0.05 else {True, False})


def test_each_rule_gives_way_to_the_one_before():
    boxes = np.array([[0, 0, 200, 100], [0, 0, 70, 40], [0, 0, 300, 40], [0, 0, 20, 20]], np.float32)
    for rows, kept in (([0, 1, 2, 3], [0]), ([1, 2, 3], [1]), ([2, 3], [2]), ([3], []), ([], [])):
        assert np.array(rows)[kept_by_soco(boxes[rows], 400, 200)].tolist() == kept


def test_selective_search_keeps_those_that_soco_does(photos):
    catalog, _ = photos
    every = propose(catalog, "selective-search", count=10_000, workers=0)
    kept = propose(catalog, "selective-search", count=3, keep="soco", workers=0)
    for row, (width, height) in enumerate(catalog.sizes.tolist()):
        np.testing.assert_array_equal(kept[row], every[row][kept_by_soco(every[row], width, height)][:3])
    assert len(kept.values) > 0
    assert kept.parameters["keep"] == "soco" and "keep" not in every.parameters
    with pytest.raises(UsageError, match="--keep is 'moco', but it must be one of: all, soco"):
        propose(catalog, "selective-search", keep="moco")
