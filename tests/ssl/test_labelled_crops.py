"""Crops with their label maps: pixels against PIL and loops over them, batches by the rules of every loader."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco_mask
from torchvision.transforms.v2 import functional as tv

from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD, Augment
from objcrop.dali_pipes.bad_images import BadImages
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.kernels.colour_reference import colour_reference
from objcrop.ssl.transfer.label_map import label_map, pixel_classes
from objcrop.ssl.transfer.labelled_crops import CropLoader, DaliCropLoader
from objcrop.ssl.transfer.scaled_crops import ScaledCrops, scaled_crop
from objcrop.ssl.transfer.segmenter import IGNORED

PLAIN, MIRRORED = Augment(), Augment(flip_p=1.0)
JITTERED = Augment(0.125, 0.5, 0.5, 0.05, jitter_p=0.5, flip_p=0.5)


@pytest.fixture(scope="module")
def labelled(tmp_path_factory):
    """Twelve images in all orientations, whose label maps have VOC's classes 0 to 4 and void."""
    folder = tmp_path_factory.mktemp("voc")
    (folder / "JPEGImages").mkdir()
    (folder / "SegmentationClass").mkdir()
    for i in range(12):
        width, height = [(61, 40), (33, 47), (52, 52)][i % 3]
        draw = np.random.default_rng(i)
        exif = Image.Exif()
        exif[0x0112] = 1 + i % 8
        pixels = draw.integers(0, 255, (9, 11, 3), np.uint8)
        Image.fromarray(pixels).resize((width, height)).save(folder / "JPEGImages" / f"{i:02d}.jpg", exif=exif)
        ids = Image.fromarray(draw.choice([0, 1, 2, 3, 4, 255], (5, 6)).astype(np.uint8))
        ids.resize((width, height), Image.Resampling.NEAREST).save(folder / "SegmentationClass" / f"{i:02d}.png")
    return index(folder, "voc-segmentation")[0]


def loader(catalog, crop=(32, 40), scales=(0.5, 2.0), augment=JITTERED, seed=3, by=CropLoader, **options):
    given = {"batch_size": 4, "shuffle": True, "drop_last": True, "prefetch": 2}
    given |= {"dtype": torch.float32, "background": False, **options}
    given |= {"threads": 2} if by is DaliCropLoader else {"workers": given.get("workers", 0), "colour": "float"}
    given |= {} if by is DaliCropLoader else {"device": "cpu"}
    return by(ScaledCrops(catalog, crop, scales, augment, seed), BadImages(catalog, 0.5), **given)


by_each = pytest.mark.parametrize("by", [CropLoader, DaliCropLoader])


def picture(width, height, seed=0):
    draw = np.random.default_rng(seed)
    image = Image.fromarray(draw.integers(0, 255, (height, width, 3), np.uint8))
    return image, draw.integers(0, 5, (height, width), np.uint8)


def one_of_size(width, height):
    return Catalog.build("/nowhere", ["a"], [(width, height)])


@given(st.integers(1, 40), st.integers(1, 40), st.tuples(st.integers(1, 30), st.integers(1, 30)),
       st.tuples(st.floats(0.3, 1), st.floats(1, 3)), st.integers(0, 99), st.booleans())  # fmt: skip
def test_a_crop_is_the_scaled_image_s(width, height, crop, scales, seed, mirrored):
    augment = MIRRORED if mirrored else PLAIN
    plan = ScaledCrops(one_of_size(width, height), crop, scales, augment, seed).plan(np.array([0]), 1)
    image, labels = picture(width, height, seed)
    pixels, classes = scaled_crop(image, labels, plan, 0, augment)
    _, _, across, down = [0, 0, *plan.scaled[0].tolist()]
    assert max(1, int(scales[0] * width)) <= across <= int(scales[1] * width) + 1
    x0, y0, x1, y1 = plan.crop[0].tolist()
    assert (y1 - y0, x1 - x0) == crop and 0 <= x0 <= max(across - crop[1], 0) and 0 <= y0 <= max(down - crop[0], 0)

    whole = np.asarray(image.resize((across, down), Image.Resampling.BILINEAR))
    pixels = pixels * torch.tensor(IMAGENET_STD)[:, None, None] + torch.tensor(IMAGENET_MEAN)[:, None, None]
    for i in range(crop[0]):
        for j in range(crop[1]):
            x, y = (crop[1] - 1 - j if mirrored else j) + x0, i + y0
            if x >= across or y >= down:
                assert classes[i, j] == IGNORED
                torch.testing.assert_close(pixels[:, i, j], torch.tensor(IMAGENET_MEAN))
                continue
            nearest = labels[(2 * y + 1) * height // (2 * down), (2 * x + 1) * width // (2 * across)]
            assert classes[i, j] == nearest
            assert np.abs(pixels[:, i, j].numpy() * 255 - whole[y, x]).max() < 2.01


def test_nearest_is_the_pixel_under_the_centre():
    for side, scaled in ((7, 10), (10, 7), (5, 5), (3, 30), (30, 4)):
        at = [(2 * x + 1) * side // (2 * scaled) for x in range(scaled)]
        assert at == [int(np.floor((x + 0.5) * side / scaled + 1e-12)) for x in range(scaled)]


def test_colours_are_those_of_the_views():
    augment = Augment(0.4, 0.4, 0.4, 0.1, jitter_p=1.0)
    plan = ScaledCrops(one_of_size(20, 16), (16, 20), (1.0, 1.0), augment, 5).plan(np.array([0]), 0)
    image, labels = picture(20, 16)
    pixels, _ = scaled_crop(image, labels, plan, 0, augment)
    wanted = colour_reference(tv.pil_to_tensor(image), plan.decisions(0, 0), augment.mean, augment.std)
    torch.testing.assert_close(pixels, wanted, atol=5e-3, rtol=0)  # a quarter of a level


def test_scales_and_corners_are_spread_evenly():
    many = Catalog.build("/nowhere", [f"{i:04d}" for i in range(4000)], [(100, 100)] * 4000)
    plan = ScaledCrops(many, (50, 50), (0.5, 2.0), JITTERED, 0).plan(np.arange(4000), 0)
    scaled, corner = plan.scaled[:, 0] / 100, plan.crop[:, 0]
    assert scaled.mean() == pytest.approx(1.25, abs=0.03) and scaled.min() < 0.51 and scaled.max() > 1.99
    room = plan.scaled[:, 0] - 50
    assert (corner <= room).all() and (corner == room).any() and (corner[room > 0] == 0).any()
    assert (corner[room > 9] / room[room > 9]).mean() == pytest.approx(0.5, abs=0.03)
    assert plan.flip.mean() == pytest.approx(0.5, abs=0.04)


def shown(batches):
    return {int(row): (x, y) for b in batches for row, x, y in zip(b.index, b.images, b.labels, strict=True)}


@by_each
def test_batches_do_not_depend_on_size_ranks_or_workers(labelled, by):
    more = {"workers": 2} if by is CropLoader else {}
    with loader(labelled, by=by, batch_size=12) as whole, loader(labelled, by=by, **more) as apart:
        first, many = shown(whole), shown(apart)
    ranks = [loader(labelled, by=by, rank=rank, world_size=2) for rank in range(2)]
    split = {row: crop for each in ranks for row, crop in shown(each).items()}
    assert sorted(first) == sorted(many) == sorted(split) == list(range(12))
    for row, (x, y) in first.items():
        for others in (many, split):
            assert torch.equal(x, others[row][0]) and torch.equal(y, others[row][1])


def test_dali_gives_the_same_crops(labelled):
    with loader(labelled) as one, loader(labelled, by=DaliCropLoader) as other:
        for a, b in zip([*one, *one], [*other, *other], strict=True):
            assert torch.equal(a.index, b.index) and torch.equal(a.labels, b.labels)
            assert (a.plan.crop == b.plan.crop).all() and b.images.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(a.images, b.images, atol=0.1, rtol=0)  # decoders round differently: six levels


@by_each
def test_an_epoch_goes_on_where_it_was_left(labelled, by):
    with loader(labelled, by=by) as whole:
        batches = [*whole, *whole]
    assert not torch.equal(batches[0].index, batches[3].index)
    with loader(labelled, by=by) as begun:
        walk = iter(begun)
        next(walk)
        state = begun.state_dict()
    with loader(labelled, by=by) as resumed:
        resumed.load_state_dict(state)
        rest = [*resumed, *resumed]
    assert len(rest) == 5 and all(torch.equal(a.images, b.images) for a, b in zip(batches[1:], rest, strict=True))
    with loader(labelled, by=by, crop=(32, 32)) as other, pytest.raises(ObjcropError, match="was saved with crops="):
        other.load_state_dict(state)


@by_each
def test_a_bad_image_is_stepped_over(labelled, tmp_path, by):
    import shutil

    shutil.copytree(labelled.root, tmp_path / "voc")
    catalog = Catalog.build(tmp_path / "voc", labelled.keys(), labelled.sizes, labelled.orientations)
    catalog = Catalog(labelled.table, catalog.root, labelled.classes, labelled.fingerprint)
    (tmp_path / "voc" / catalog.key(5)).write_bytes(b"\xff\xd8 no photo")
    with loader(catalog, by=by) as broken, loader(labelled, by=by) as sound:
        a, b = list(broken), list(sound)
        assert list(broken.bad_images.reasons) == [5]
    for found, wanted in zip(a, b, strict=True):
        assert torch.equal(found.requested, wanted.index)
        same = found.index == wanted.index
        assert torch.equal(~same, found.substituted) and torch.equal(found.substituted, wanted.index == 5)
        assert torch.equal(found.images[same], wanted.images[same])


def test_batches_are_what_the_network_takes(labelled):
    with loader(labelled, dtype=torch.bfloat16) as batches:
        batch = next(iter(batches))
    assert batch.images.shape == (4, 3, 32, 40) and batch.images.dtype == torch.bfloat16 and len(batch) == 4
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert batch.labels.dtype == torch.uint8 and set(batch.labels.unique().tolist()) <= {0, 1, 2, 3, 4, IGNORED}


def rle(pixels):
    import json

    made = coco_mask.encode(np.asfortranarray(pixels, dtype=np.uint8))
    return json.dumps({"size": list(made["size"]), "counts": made["counts"].decode()})


def objects(masks, classes, boxes=None, names=("cat", "dog")):
    boxes = [[0, 0, 8, 6]] * len(masks) if boxes is None else boxes
    return Catalog.build("/r", ["a", "b"], [(8, 6)] * 2, classes=names, boxes=boxes, box_rows=[0] * len(masks),
                         box_classes=classes, masks=[m if m is None else rle(m) for m in masks])  # fmt: skip


def test_objects_over_a_background():
    large, small = np.zeros((6, 8)), np.zeros((6, 8))
    large[1:5, 1:7], small[2:4, 2:4] = 1, 1
    unmasked = [5.5, 3.5, 8, 6]
    boxes = [[2, 2, 4, 4], [1, 1, 7, 5], unmasked]
    catalog = objects([small, large, None], [1, 0, 0], boxes)
    for background, rest in ((True, 0), (False, IGNORED)):
        wanted = np.full((6, 8), rest)
        wanted[3:, 5:] = IGNORED
        wanted[1:5, 1:7], wanted[2:4, 2:4] = background, 1 + background
        assert (label_map(catalog, 0, background) == wanted).all()
        assert (label_map(catalog, 1, background) == rest).all()
    assert pixel_classes(catalog, True) == ["background", "cat", "dog"] and pixel_classes(catalog, False)[0] == "cat"


def test_label_maps_come_back(labelled):
    for row in range(0, len(labelled), 3):
        stored = Image.open(f"{labelled.root}/SegmentationClass/{row:02d}.png")
        stored.getexif()[0x0112] = labelled.orientation(row)
        from PIL import ImageOps

        assert (label_map(labelled, row, False) == np.asarray(ImageOps.exif_transpose(stored))).all()


def test_catalogs_that_cannot_be_segmented():
    full = np.ones((6, 8))
    with pytest.raises(ObjcropError, match=r"/r has no masks; index it from what has some \(cityscapes"):
        pixel_classes(objects([None, None], [0, 1]), True)
    with pytest.raises(ObjcropError, match="has no masks"):
        pixel_classes(Catalog.build("/r", ["a"], [(8, 6)]), True)
    one = objects([full], [0], names=["cat"])
    with pytest.raises(UsageError, match="one class only, cat: there is nothing to tell apart; with background=True"):
        pixel_classes(one, False)
    assert pixel_classes(one, True) == ["background", "cat"]
    with pytest.raises(UsageError, match="has 256 classes, more than 255"):
        pixel_classes(objects([full], [0], names=[str(i) for i in range(256)]), False)
    with pytest.raises(ObjcropError, match="is 8×6 pixels, but one of its masks is 5×6"):
        label_map(objects([np.ones((6, 5))], [0]), 0, True)
