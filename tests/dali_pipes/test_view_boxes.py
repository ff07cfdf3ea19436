"""Boxes painted into pictures are found in the views where the arrays say."""

import numpy as np
import pytest
import torch
from PIL import Image

from objcrop.boxes import BoxTable
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_boxes import ViewBoxes, view_boxes
from objcrop.errors import UsageError
from objcrop.formats import index

CHANNELS = 3  # of a picture, one box in each


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """Black pictures with a red, a green and a blue box that may overlap; every other one turned by EXIF."""
    folder = tmp_path_factory.mktemp("painted")
    rng = np.random.default_rng(0)
    boxes = []
    for i in range(12):
        width, height = rng.integers(150, 260, 2)
        low = rng.integers(0, (width - 60, height - 60), (CHANNELS, 2))
        high = np.minimum(low + rng.integers(30, 120, (CHANNELS, 2)), (width, height))
        pixels = np.zeros((height, width, 3), np.uint8)
        for channel, ((x0, y0), (x1, y1)) in enumerate(zip(low, high)):
            pixels[y0:y1, x0:x1, channel] = 255
        image, exif = Image.fromarray(pixels), Image.Exif()
        if i % 2:
            image, exif[0x0112] = image.transpose(Image.Transpose.ROTATE_90), 6  # stored on its side
        image.save(folder / f"{i:02d}.png", exif=exif)
        boxes.append(np.concatenate([low, high], 1)[: 0 if i == 5 else CHANNELS])
    catalog, _ = index(folder, "folder")
    return catalog, BoxTable.from_arrays(catalog, [box.astype(np.float32) for box in boxes], method="import")


def extent(channel):
    """x0, y0, x1, y1 of what is lit in (S, S), to a pixel; None where nothing is."""
    y, x = np.nonzero(channel > 0.5)
    return None if not len(x) else (x.min(), y.min(), x.max() + 1, y.max() + 1)


@pytest.mark.parametrize("backend", ["torch", "dali"])
@pytest.mark.parametrize("crops", ["scene-scene", "obj-obj+dilate", "within-box"])
def test_painted_boxes_are_where_the_arrays_say(painted, backend, crops):
    catalog, boxes = painted
    how = dict(
        crops=crops, augment="flip", size=96, batch_size=6, backend=backend, view_boxes=True, rank=0, world_size=1
    )
    mean, std = (np.array(of)[:, None, None] for of in (IMAGENET_MEAN, IMAGENET_STD))
    seen = flipped = 0
    with load_views(catalog, boxes=boxes, **how) as loader:
        for batch in loader:
            for v, (views, found) in enumerate(zip(batch.views, batch.boxes, strict=True)):
                lit = views.numpy() * std + mean
                for i in range(len(batch)):
                    here = {int(n): c.numpy() for n, c, s in zip(found.box, found.corners, found.sample) if s == i}
                    for number in range(CHANNELS):
                        shown = extent(lit[i, number])
                        if len(boxes[int(batch.index[i])]) == 0 or number not in here:
                            assert not here or shown is None or shown[2] - shown[0] < 3 or shown[3] - shown[1] < 3
                            continue
                        sides = here[number][2:] - here[number][:2]
                        if sides.min() < 3:  # the filter blurs it away
                            continue
                        np.testing.assert_allclose(shown, here[number], atol=1.5)
                        seen += 1
                        flipped += bool(batch.plan.flip[i, v])
    assert seen > 40 and flipped > 10


def test_a_loop_says_the_same(painted):
    catalog, boxes = painted
    with load_views(catalog, boxes=boxes, view_boxes=True, size=64, batch_size=12, rank=0, world_size=1) as loader:
        plan = loader.planner.plan(np.arange(12), 3)
    for v, found in enumerate(view_boxes(plan, boxes, (64, 64))):
        expected = []
        for i, row in enumerate(plan.row):
            x0, y0, x1, y1 = map(float, plan.windows[i, v])
            for number, (a, b, c, d) in enumerate(boxes[int(row)].tolist()):
                inside = max(min(c, x1) - max(a, x0), 0) * max(min(d, y1) - max(b, y0), 0)
                if inside <= 0:
                    continue
                left, right = ((min(max(x, x0), x1) - x0) / (x1 - x0) * 64 for x in (a, c))
                top, bottom = ((min(max(y, y0), y1) - y0) / (y1 - y0) * 64 for y in (b, d))
                if plan.flip[i, v]:
                    left, right = 64 - right, 64 - left
                expected.append((i, number, left, top, right, bottom, inside / ((c - a) * (d - b))))
        columns = torch.cat([found.sample[:, None], found.box[:, None], found.corners, found.visible[:, None]], 1)
        np.testing.assert_allclose(columns.numpy(), np.array(expected), rtol=1e-5, atol=1e-4)


def test_shared_boxes_by_two_loops():
    rng = np.random.default_rng(1)
    for _ in range(20):
        a, b = ({(int(s), int(n)) for s, n in rng.integers(0, 5, (rng.integers(0, 12), 2))} for _ in range(2))
        first, second = (of(sorted(pairs)) for pairs in (a, b))
        here, there = first.shared(second)
        pairs = [(int(first.sample[i]), int(first.box[i])) for i in here]
        assert pairs == [(int(second.sample[j]), int(second.box[j])) for j in there] == sorted(a & b)


def of(pairs):
    sample, box = (torch.tensor([pair[k] for pair in pairs], dtype=torch.int64) for k in (0, 1))
    return ViewBoxes(torch.zeros(len(pairs), 4), sample, box, torch.ones(len(pairs)))


def test_they_move_with_the_batch_and_are_asked_for(painted):
    catalog, boxes = painted
    how = dict(size=32, batch_size=4, rank=0, world_size=1)
    with load_views(catalog, boxes=boxes, view_boxes=True, **how) as loader:
        batch = next(iter(loader))
    assert len(batch.tensors()) == 2 + 4 + 2 * 4
    moved = batch.to("meta")
    assert all(tensor.device.type == "meta" for tensor in moved.tensors()) and len(moved.boxes) == 2
    with load_views(catalog, **how) as loader:
        assert next(iter(loader)).boxes == ()
    with pytest.raises(UsageError, match="view_boxes is True, but there are no boxes"):
        load_views(catalog, view_boxes=True, **how)
    with pytest.raises(UsageError, match="boxes cannot act here"):
        load_views(catalog, boxes=boxes, **how)
