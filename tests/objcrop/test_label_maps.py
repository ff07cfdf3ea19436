"""Label maps of Cityscapes and VOC in their own layouts, made by hand, against the maps pixel by pixel."""

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.formats.cityscapes import CITYSCAPES_CLASSES, IDS
from objcrop.proposals import propose

NAMES = ["train/bonn/bonn_0_1", "train/ulm/ulm_0_2", "val/lindau/lindau_0_3"]


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def streets(tmp_path):
    for i, name in enumerate(NAMES):
        draw = np.random.default_rng(i)
        write(tmp_path / "leftImg8bit" / f"{name}_leftImg8bit.png", draw.integers(0, 255, (12, 20, 3), np.uint8))
        ids = np.repeat(draw.integers(0, IDS, (12, 5), np.uint8), 4, axis=1)
        write(tmp_path / "gtFine" / f"{name}_gtFine_labelIds.png", ids)
        write(tmp_path / "gtFine" / f"{name}_gtFine_instanceIds.png", ids)
    return tmp_path


def seen(catalog, row):
    """The class of every pixel, -1 where there is none, and how many masks hold it."""
    width, height = catalog.sizes[row]
    labels, count = np.full((height, width), -1), np.zeros((height, width), int)
    truth = catalog.annotations(row)
    for label, corners, mask in zip(truth.classes, truth.boxes, catalog.masks(row), strict=True):
        pixels = coco_mask.decode({"size": mask["size"], "counts": mask["counts"].encode()}).astype(bool)
        rows, columns = np.flatnonzero(pixels.any(1)), np.flatnonzero(pixels.any(0))
        assert corners.tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        labels[pixels] = label
        count += pixels
    assert truth.crowd.all() and not truth.difficult.any()
    return labels, count


@pytest.mark.parametrize(("split", "rows"), [("train", [0, 1]), ("val", [2]), (None, [0, 1, 2])])
def test_cityscapes(streets, split, rows):
    catalog, report = index(streets, "cityscapes", split=split)
    assert catalog.classes == list(CITYSCAPES_CLASSES) and len(catalog.classes) == 19
    assert catalog.keys() == [f"leftImg8bit/{NAMES[i]}_leftImg8bit.png" for i in rows]
    train_id = {number: i for i, number in enumerate(CITYSCAPES_CLASSES.values())}
    for row, i in enumerate(rows):
        ids = np.asarray(Image.open(streets / "gtFine" / f"{NAMES[i]}_gtFine_labelIds.png"))
        labels, count = seen(catalog, row)
        assert (labels == np.vectorize(lambda number: train_id.get(number, -1))(ids)).all()
        assert (count == (labels >= 0)).all()
        assert np.flatnonzero(catalog.label_matrix([row])[0]).tolist() == sorted(set(labels.flat) - {-1})
    assert report.lines() == [f"{len(rows)} images, {report.boxes} boxes"]


def test_regions_are_no_boxes_to_draw_from(streets):
    catalog, _ = index(streets, "cityscapes")
    assert propose(catalog, "gt").counts(range(len(catalog))).sum() == 0


def test_what_is_wrong_with_cityscapes(streets):
    maps = [streets / "gtFine" / f"{name}_gtFine_labelIds.png" for name in NAMES]
    extra = streets / "gtFine" / "train" / "ulm" / "ulm_9_9_gtFine_labelIds.png"
    write(extra, np.zeros((12, 20), np.uint8))
    maps[0].unlink()
    write(maps[1], np.full((11, 20), 7, np.uint8))
    catalog, report = index(streets, "cityscapes")
    assert catalog.keys() == [f"leftImg8bit/{NAMES[2]}_leftImg8bit.png"]
    assert dict(report.left_out) == {
        f"leftImg8bit/{NAMES[0]}_leftImg8bit.png": f"its label map {maps[0]} is not there",
        f"leftImg8bit/{NAMES[1]}_leftImg8bit.png": "its label map is 20×11 pixels, the image 20×12",
    }
    assert report.missing_annotated == ["leftImg8bit/train/ulm/ulm_9_9_leftImg8bit.png"]
    extra.unlink()
    for pixels, reason in (
        (np.full((12, 20), 77, np.uint8), "its label map holds the id 77, which is no class"),
        (np.zeros((12, 20, 3), np.uint8), f"its label map {maps[2]} is a picture in colours, where each pixel should"),
    ):
        write(maps[2], pixels)
        with pytest.raises(ObjcropError, match=reason):
            index(streets, "cityscapes", split="val", strict=True)
    maps[2].write_bytes(maps[2].read_bytes()[:60])
    with pytest.raises(ObjcropError, match=r"has no image to index \(0 tried"):
        index(streets, "cityscapes", split="val")
    with pytest.raises(UsageError, match="--split is 'test2', but it must be one of: train, val, test"):
        index(streets, "cityscapes", split="test2")
    with pytest.raises(ObjcropError, match="leftImg8bit/test is not there; give the folder of Cityscapes"):
        index(streets, "cityscapes", split="test")


@pytest.fixture
def voc(tmp_path):
    (tmp_path / "ImageSets" / "Segmentation").mkdir(parents=True)
    for i in range(3):
        draw = np.random.default_rng(i)
        write(tmp_path / "JPEGImages" / f"{i}.jpg", draw.integers(0, 255, (9, 14, 3), np.uint8))
        ids = draw.choice([0, 0, 0, 15, 20, 255], (9, 14)).astype(np.uint8)
        image = Image.fromarray(ids)
        image.putpalette(list(range(256)) * 3)  # as VOC has them
        (tmp_path / "SegmentationClass").mkdir(exist_ok=True)
        image.save(tmp_path / "SegmentationClass" / f"{i}.png")
    (tmp_path / "ImageSets" / "Segmentation" / "train.txt").write_text("2\n0\n")
    return tmp_path


def test_voc(voc):
    catalog, _ = index(voc, "voc-segmentation", split="train")
    assert catalog.keys() == ["JPEGImages/0.jpg", "JPEGImages/2.jpg"]
    assert (len(catalog.classes), catalog.classes[0], catalog.classes[15]) == (21, "background", "person")
    ids = np.asarray(Image.open(voc / "SegmentationClass" / "2.png")).astype(int)
    assert (seen(catalog, 1)[0] == np.where(ids == 255, -1, ids)).all()
    assert len(index(voc, "voc-segmentation")[0]) == 3
    assert index(voc, "voc-segmentation", limit=1)[0].keys() == ["JPEGImages/0.jpg"]


def test_voc_with_other_maps_and_bad_ones(voc):
    write(voc / "more" / "1.png", np.full((9, 14), 21, np.uint8))
    write(voc / "more" / "0.png", np.full((9, 14), 3, np.uint8))
    (voc / "ImageSets" / "Segmentation" / "aug.txt").write_text("0\n1\n../../x\n7\n")
    catalog, report = index(voc, "voc-segmentation", split="aug", annotations=voc / "more")
    assert catalog.keys() == ["JPEGImages/0.jpg"] and catalog.annotations(0).classes.tolist() == [3]
    assert report.left_out == [("JPEGImages/1.jpg", "its label map holds the id 21, which is no class")]
    assert report.missing_annotated == ["JPEGImages/7.jpg"] and report.bad_entries[0][0] == "../../x"
    with pytest.raises(ObjcropError, match="such as VOCdevkit/VOC2012"):
        index(voc / "ImageSets", "voc-segmentation", annotations=voc / "more")
    with pytest.raises(ObjcropError, match=r"The list of images .*val\.txt cannot be read"):
        index(voc, "voc-segmentation", split="val")


@pytest.mark.parametrize("turn", range(1, 9))
def test_maps_turn_with_their_images(tmp_path, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    ids = np.random.default_rng(turn).choice([0, 4, 9, 255], (9, 14)).astype(np.uint8)
    write(tmp_path / "SegmentationClass" / "a.png", ids)
    (tmp_path / "JPEGImages").mkdir()
    Image.new("RGB", (14, 9)).save(tmp_path / "JPEGImages" / "a.jpg", exif=exif)
    catalog, _ = index(tmp_path, "voc-segmentation")
    from PIL import ImageOps

    image = Image.fromarray(ids)
    image.getexif()[0x0112] = turn
    upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    assert (seen(catalog, 0)[0] == np.where(upright == 255, -1, upright)).all()
