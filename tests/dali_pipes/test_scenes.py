"""Boxes and masks follow their image: against torchvision's transforms and loops, whatever is drawn."""

import json

import numpy as np
import pytest
import torch
from conftest import write_photos
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision import tv_tensors
from torchvision.transforms import v2

from objcrop.catalog import Catalog
from objcrop.dali_pipes.philox import uniforms
from objcrop.dali_pipes.read_image import open_upright
from objcrop.dali_pipes.scene_loader import load_scenes
from objcrop.dali_pipes.scene_plan import ScenePlanner, scaled
from objcrop.dali_pipes.scenes import follow_boxes, follow_masks, normalised
from objcrop.errors import ObjcropError

SMALL = dict(sides=(64, 160), longest=192, batch_size=4, threads=2)


def rle(mask):
    held = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(held["size"]), "counts": held["counts"].decode()}


def with_objects(folder, n):
    """Photos with up to three ellipses each, the fourth image bare, one of the boxes a crowd, one without a mask."""
    folder.mkdir()
    names = write_photos(folder, n)
    plain = Catalog.from_files([folder / name for name in names])
    rng = np.random.default_rng(4)
    boxes, rows, masks, crowd = [], [], [], []
    for row, (w, h) in enumerate(plain.sizes.tolist()):
        for _ in range(0 if row == 3 else 3):
            cx, cy, rx, ry = rng.uniform(0.3, 0.7, 4) * (w, h, 0.4 * w, 0.4 * h)
            y, x = np.mgrid[:h, :w]
            mask = ((x + 0.5 - cx) / rx) ** 2 + ((y + 0.5 - cy) / ry) ** 2 < 1
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            boxes.append((xs[0], ys[0], xs[-1] + 1, ys[-1] + 1))
            rows.append(row)
            masks.append(json.dumps(rle(mask)))
            crowd.append(len(boxes) == 5)
    masks[7] = None
    return Catalog.build(
        folder, plain.keys(), plain.sizes, plain.orientations, classes=["a", "b"], boxes=boxes, box_rows=rows,
        box_classes=[i % 2 for i in range(len(boxes))], crowd=crowd, masks=masks,
    )  # fmt: skip


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return with_objects(tmp_path_factory.mktemp("scenes") / "photos", 10)


def walked(loader, batches):
    """Take so many batches, over the ends of epochs."""
    found = []
    while True:
        for batch in loader:
            found.append(batch)
            if len(found) == batches:
                return found


SIDES = st.integers(1, 700)


@given(SIDES, SIDES, st.integers(1, 500), st.integers(1, 900))
def test_sizes_are_those_of_resize_shortest_edge(width, height, side, longest):
    """Detectron2's rule in fractions: one scale for both sides, the smaller of two, each side rounded half up."""
    from fractions import Fraction

    scale = min(Fraction(side, min(width, height)), Fraction(longest, max(width, height)))
    expected = [max(int(n * scale + Fraction(1, 2)), 1) for n in (width, height)]
    assert scaled(np.array([[width, height]]), np.array([side]), longest)[0].tolist() == expected


@given(st.integers(8, 40), st.integers(8, 40), st.integers(8, 70), st.integers(8, 70), st.booleans(), st.integers(0, 9))
def test_boxes_and_masks_follow_as_torchvision_has_it(width, height, new_width, new_height, flip, seed):
    rng = np.random.default_rng(seed)
    low = rng.integers(0, (width // 2, height // 2), (3, 2))
    high = low + rng.integers(1, (width // 2, height // 2), (3, 2))
    boxes = np.concatenate([low, high], 1).astype(np.float32)
    masks = np.zeros((3, height, width), bool)
    for i, (x0, y0, x1, y1) in enumerate(boxes.astype(int)):
        masks[i, y0:y1, x0:x1] = rng.random((y1 - y0, x1 - x0)) < 0.7
    moved = follow_boxes(boxes, (width, height), (new_width, new_height), flip)
    chain = [v2.Resize((new_height, new_width))] + [v2.RandomHorizontalFlip(1.0)] * flip
    theirs = v2.Compose(chain)(tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=(height, width)))
    np.testing.assert_allclose(moved, theirs.numpy(), atol=1e-3)
    got = follow_masks([rle(mask) for mask in masks], moved, (new_width, new_height), flip)
    expected = np.zeros_like(got)
    for i in range(3):
        for y in range(new_height):
            for x in range(new_width):
                at = new_width - 1 - x if flip else x
                expected[i, y, x] = masks[i, int((y + 0.5) * height / new_height), int((at + 0.5) * width / new_width)]
    assert (got == expected).all()
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(masks[None].astype(np.float32)), (new_height, new_width), mode="nearest-exact"
    )[0]
    exact = (exact.flip(-1) if flip else exact).numpy()
    assert (got != exact).mean() < 0.03  # which takes the centre in float32


def test_a_batch_is_the_images_resized_mirrored_and_padded(catalog):
    with load_scenes(catalog, masks=True, **SMALL) as loader:
        batch = next(iter(loader))
    assert batch.images.dtype == torch.uint8 and batch.images.shape[2] % 32 == batch.images.shape[3] % 32 == 0
    for i, row in enumerate(batch.index.tolist()):
        height, width = batch.sizes[i].tolist()
        whole = open_upright(catalog, row)
        whole = whole if isinstance(whole, Image.Image) else Image.fromarray(np.asarray(whole))
        small = np.asarray(whole.convert("RGB").resize((width, height), Image.Resampling.BILINEAR), int)
        expected = small[:, ::-1] if batch.plan.flip[i] else small
        held = batch.images[i].permute(1, 2, 0).numpy().astype(int)
        assert np.abs(held[:height, :width] - expected).mean() < 1.5  # two decoders and two roundings
        assert not held[height:].any() and not held[:, width:].any()
        truth, masks = catalog.annotations(row), catalog.masks(row)
        kept = [k for k in range(len(truth.boxes)) if not truth.crowd[k] and masks[k] is not None]
        scale = np.array([width, height, width, height]) / np.tile(catalog.sizes[row], 2)
        boxes = truth.boxes[kept] * scale
        if batch.plan.flip[i]:
            boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], 1)
        np.testing.assert_allclose(batch.boxes[i].numpy(), boxes.reshape(-1, 4), atol=1e-3)
        assert batch.labels[i].tolist() == truth.classes[kept].tolist()
        assert batch.masks[i].shape == (len(kept), height, width)
        for mask, (x0, y0, x1, y1) in zip(batch.masks[i], boxes):
            ys, xs = mask.any(1).nonzero(), mask.any(0).nonzero()
            seen = [float(v) for v in (xs[0], ys[0], xs[-1] + 1, ys[-1] + 1)]
            assert np.abs(np.array(seen) - (x0, y0, x1, y1)).max() <= 1.5


def test_large_scale_jitter_shows_parts_of_scaled_images(catalog):
    """Each image and mask resized as a whole by PIL and by centres of pixels, then cut."""
    how = {**SMALL, "longest": 96, "scales": (0.3, 2.0), "batch_size": 10}
    with load_scenes(catalog, masks=True, **how) as loader:
        batches = walked(loader, 3)
    cut = 0
    for batch in batches:
        assert batch.sizes.max() <= 96
        for i, row in enumerate(batch.index.tolist()):
            (w, h), (x0, y0, x1, y1) = batch.plan.size[i].tolist(), batch.plan.part[i].tolist()
            assert batch.sizes[i].tolist() == [y1 - y0, x1 - x0] == [min(h, 96), min(w, 96)]
            assert x0 >= 0 and y0 >= 0 and x1 <= w and y1 <= h
            small = Image.fromarray(np.asarray(open_upright(catalog, row).convert("RGB"))).resize(
                (w, h), Image.BILINEAR
            )
            pixels = np.asarray(small, int)[:, :: -1 if batch.plan.flip[i] else 1][y0:y1, x0:x1]
            held = batch.images[i].permute(1, 2, 0).numpy().astype(int)
            assert np.abs(held[: y1 - y0, : x1 - x0] - pixels).mean() < 2
            truth, masks, expected = catalog.annotations(row), catalog.masks(row), []
            for k, mask in enumerate(masks):
                if truth.crowd[k] or mask is None:
                    continue
                old = coco_mask.decode({**mask, "counts": mask["counts"].encode()})
                ys, xs = (np.arange(h) + 0.5) * old.shape[0] / h, (np.arange(w) + 0.5) * old.shape[1] / w
                whole = old[ys.astype(int)][:, xs.astype(int)][:, :: -1 if batch.plan.flip[i] else 1]
                shown = whole[y0:y1, x0:x1]
                cut += shown.sum() < whole.sum()
                if shown.any():
                    expected.append((truth.classes[k], shown))
            assert batch.labels[i].tolist() == [label for label, _ in expected]
            for mask, box, (_, shown) in zip(batch.masks[i].numpy(), batch.boxes[i].tolist(), expected, strict=True):
                assert (mask != shown).mean() < 0.01
                ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                assert box == [xs[0], ys[0], xs[-1] + 1, ys[-1] + 1]
    assert cut > 5
    longer = np.concatenate([batch.plan.size.max(1) for batch in batches])
    assert longer.min() >= 28 and longer.max() <= 192 and longer.max() > 150 and longer.min() < 60


def test_boxes_of_what_is_not_shown_are_left_out(catalog):
    how = {**SMALL, "longest": 64, "scales": (2.0, 4.0), "batch_size": 10}
    with load_scenes(catalog, **how) as loader:
        batch = walked(loader, 1)[0]
    objects = sum((~catalog.annotations(row).crowd).sum() for row in batch.index.tolist())
    boxes = torch.cat(batch.boxes)
    assert 0 < len(boxes) < objects and len(boxes) == len(torch.cat(batch.labels))
    assert (boxes >= 0).all() and (boxes <= 64).all() and (boxes[:, :2] < boxes[:, 2:]).all()


def test_masks_lie_where_the_object_is_seen(tmp_path):
    """A white block on black, turned by EXIF, mirrored or not: its mask covers what is white."""
    folder = tmp_path / "blocks"
    folder.mkdir()
    upright = np.zeros((90, 140), np.uint8)
    upright[20:50, 30:100] = 1
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    Image.fromarray(np.rot90(upright * 255)).save(folder / "a.png", exif=exif)
    plain = Catalog.from_files([folder / "a.png"])
    assert plain.sizes.tolist() == [[140, 90]]
    catalog = Catalog.build(
        folder, plain.keys(), plain.sizes, plain.orientations, classes=["block"], boxes=[(30, 20, 100, 50)],
        box_rows=[0], box_classes=[0], masks=[json.dumps(rle(upright))],
    )  # fmt: skip
    seen = set()
    with load_scenes(catalog, masks=True, **{**SMALL, "batch_size": 1}) as loader:
        for _ in range(6):
            batch = next(iter(loader))
            height, width = batch.sizes[0].tolist()
            white = batch.images[0, 0, :height, :width] > 127
            assert (white != batch.masks[0][0].bool()).float().mean() < 0.03
            seen.add(bool(batch.plan.flip[0]))
    assert seen == {False, True}


def test_the_plan_is_a_pure_function_of_seed_epoch_and_sample(catalog):
    planner = ScenePlanner(catalog, (64, 160), 1000, 0.5, seed=3)
    rows = np.array([7, 2, 5])
    together, alone = planner.plan(rows, 2), [planner.plan(rows[i : i + 1], 2) for i in range(3)]
    assert together.size.tolist() == [each.size[0].tolist() for each in alone]
    assert together.flip.tolist() == (uniforms(3, 2, rows, 0, "flip")[:, 0] < 0.5).tolist()
    drawn = {int(planner.plan(np.array([2]), epoch).size.min()) for epoch in range(60)}
    assert drawn == {64, 96, 128, 160}
    assert not ScenePlanner(catalog, (64, 64), 100, 0.0).plan(rows, 0).flip.any()


def test_ranks_and_resuming_show_the_same_scenes(catalog):
    with load_scenes(catalog, **SMALL) as whole:
        expected = walked(whole, 5)
    with load_scenes(catalog, **SMALL) as first:
        walked(first, 3)
        state = first.state_dict()
    with load_scenes(catalog, **SMALL) as second:
        second.load_state_dict(json.loads(json.dumps(state)))
        resumed = walked(second, 1)[0]
    assert (
        torch.equal(resumed.images, expected[3].images) and resumed.plan.row.tolist() == expected[3].plan.row.tolist()
    )
    parts = []
    for rank in range(2):
        with load_scenes(catalog, **SMALL, rank=rank, world_size=2) as part:
            parts.append(walked(part, 1)[0].index.tolist())
    assert sorted(parts[0] + parts[1]) == sorted(expected[0].index.tolist())
    with load_scenes(catalog, **{**SMALL, "sides": (64, 64)}) as other, pytest.raises(ObjcropError, match="sides="):
        other.load_state_dict(state)


def test_a_bad_image_is_replaced_with_its_objects(catalog, tmp_path):
    broken = with_objects(tmp_path / "photos", 10)
    (tmp_path / "photos" / broken.key(1)).write_bytes(b"\xff\xd8 nothing")
    listing = tmp_path / "bad.txt"
    how = {**SMALL, "shuffle": False, "max_bad": 0.5, "bad_images": listing}
    with load_scenes(broken, **how) as loader:
        batch = next(iter(loader))
    assert batch.substituted.tolist() == [False, True, False, False] and batch.requested.tolist() == [0, 1, 2, 3]
    truth = broken.annotations(int(batch.index[1]))
    assert len(batch.boxes[1]) == (~truth.crowd).sum() and broken.key(1) in listing.read_text()
    assert batch.boxes[3].shape == (0, 4) and batch.to("cpu").images.shape == batch.images.shape


def test_normalised_is_what_torchvision_does_in_a_common_frame():
    images = torch.from_numpy(np.random.default_rng(0).integers(0, 255, (2, 3, 32, 64), np.uint8))
    sizes = torch.tensor([[32, 40], [17, 64]])
    found = normalised(images, sizes)
    for image, out, (height, width) in zip(images, found, sizes.tolist()):
        inside = image[:, :height, :width].float() / 255
        expected = v2.functional.normalize(inside, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        torch.testing.assert_close(out[:, :height, :width], expected, rtol=0, atol=1e-5)
        assert not out[:, height:].any() and not out[:, :, width:].any()
