import io
import json

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from objcrop.box_stats import ImageMeans, stats
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.crop_policy import POLICIES
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError, UsageError
from objcrop.proposals import propose
from objcrop.stats_picture import draw_stats
from objcrop.stats_table import stats_table


@pytest.fixture(scope="module")
def annotated(tmp_path_factory):
    """40 images with up to five objects each, some difficult, some crowds, the last three images without any."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(40, 90, (40, 2))
    rows = np.repeat(np.arange(37), rng.integers(1, 6, 37))
    low = (rng.uniform(0, 0.6, (len(rows), 2)) * sizes[rows]).round(1)
    high = np.minimum(low + rng.uniform(0.1, 0.6, (len(rows), 2)) * sizes[rows], sizes[rows])
    return Catalog.build(
        tmp_path_factory.mktemp("annotated"),
        [f"{i:02d}.jpg" for i in range(40)],
        sizes,
        classes=["thing"],
        boxes=np.concatenate([low, high], 1),
        box_rows=rows,
        box_classes=np.zeros(len(rows), int),
        difficult=rng.random(len(rows)) < 0.2,
        crowd=rng.random(len(rows)) < 0.1,
    )


def painted(catalog, row):
    """The object pixels of an image, painted box by box."""
    width, height = catalog.sizes[row]
    mask = np.zeros((height, width), bool)
    for x0, y0, x1, y1 in catalog.annotations(row).boxes:
        mask[int(np.floor(y0)) : int(np.ceil(y1)), int(np.floor(x0)) : int(np.ceil(x1))] = True
    return mask


def test_ground_truth_boxes_are_all_object_and_all_found(annotated):
    result = stats(annotated, propose(annotated, "gt"))
    boxes = result["objectness"]["boxes"]
    assert boxes["object_share"] == {"mean": 1, "low": 1, "high": 1} and boxes["precise"]["mean"] == 1
    assert boxes["histogram"][-1] == boxes["crops"]
    *_, last = result["recall"].values()
    assert last["recall"]["mean"] == last["best_overlap"]["mean"] == 1
    truth, known = result["ground_truth"], annotated.all_annotations()
    assert truth["by_boxes"] == 37 and truth["by_masks"] == 0 and truth["without"] == 3
    assert truth["crowd_regions"] == known.crowd.sum()
    assert truth["recall_objects"] == (~known.crowd & ~known.difficult).sum()
    assert result["boxes"]["without_boxes"]["mean"] >= 3 / 40


def test_the_whole_frame_has_the_objects_share_of_the_image(annotated):
    result = stats(annotated, propose(annotated, "image"), bootstrap=0)
    shares = [painted(annotated, row).mean() for row in range(37)]
    assert result["objectness"]["boxes"]["object_share"]["mean"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert result["objectness"]["boxes"]["poor"]["mean"] == np.mean(np.array(shares) < 0.2)
    assert result["objectness"]["boxes"]["area"]["mean"] == 1
    assert result["objectness"]["boxes"]["object_share"]["low"] is None
    assert result["crops"] is None and result["coverage"] is None


def test_windows_are_the_loaders_and_measured_pixel_by_pixel(photos):
    catalog, boxes = photos
    with_truth = Catalog.build(
        catalog.root,
        catalog.table["key"].to_pylist(),
        catalog.sizes,
        catalog.orientations,
        classes=["thing"],
        boxes=boxes.values,
        box_rows=np.repeat(np.arange(len(catalog)), np.diff(boxes.offsets)),
        box_classes=np.zeros(len(boxes.values), int),
    )
    assert with_truth.fingerprint == catalog.fingerprint
    result = stats(with_truth, boxes, "obj-obj+dilate", size=40, seed=3, draws=2, bootstrap=0)
    shares, covered, ious = [], [], []
    with load_views(
        with_truth, boxes=boxes, crops="obj-obj+dilate", size=40, seed=3, batch_size=4, backend="torch", workers=0
    ) as loader:
        for epoch in (0, 1):
            loader.set_epoch(epoch)
            for batch in loader:
                for row, pair in zip(batch.plan.row, batch.plan.windows):
                    if not len(with_truth.annotations(row).boxes):
                        continue
                    mask, frames = painted(with_truth, row), np.zeros((2, *with_truth.sizes[row][::-1]), bool)
                    for frame, (x0, y0, x1, y1) in zip(frames, pair):
                        frame[y0:y1, x0:x1] = True
                    shares.append([mask[frame].mean() for frame in frames])
                    both = frames.all(0)
                    covered.append(both.any() and mask[both].mean() >= 0.05)
                    ious.append(both.sum() / frames.any(0).sum())
    for v in range(2):
        found = result["objectness"][f"view {v + 1}"]
        assert found["crops"] == len(shares)
        assert found["object_share"]["mean"] == pytest.approx(np.mean(shares, 0)[v], abs=1e-12)
    assert result["coverage"]["covered"]["mean"] == pytest.approx(np.mean(covered))
    assert result["coverage"]["iou"]["mean"] == pytest.approx(np.mean(ious))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_policy_is_measured_and_json_takes_it(annotated, policy):
    boxes = propose(annotated, "random", count=12)
    result = stats(annotated, boxes, policy, size=32, bootstrap=50)
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    views = [entry for name, entry in result["objectness"].items() if name != "boxes"]
    assert len(views) == len(POLICIES[policy].views)
    assert {view["crops"] for view in views} == {37 * 12 if POLICIES[policy].per_box else 37}
    assert (result["coverage"] is None) == (len(views) != 2)
    rule = POLICIES[policy].needs_boxes and POLICIES[policy].small_box_rule
    assert (result["boxes"]["enlarged"] is not None) == rule
    for entry in views:
        assert entry["poor"]["mean"] + entry["coarse"]["mean"] + entry["precise"]["mean"] == pytest.approx(1)
        share = entry["object_share"]
        assert share["low"] <= share["mean"] <= share["high"]


def test_small_boxes_among_the_first_ten_count_as_enlarged(annotated):
    small, large = [1, 1, 9, 30], [0, 0, 39, 39]
    boxes = BoxTable.from_arrays(annotated, [[small] * 5 + [large] * 5 + [small] * 20] * 40)
    assert stats(annotated, boxes, "obj-obj", size=16)["boxes"]["enlarged"]["mean"] == 0.5


def test_facts_about_boxes(annotated):
    boxes = BoxTable.from_arrays(annotated, [[[0, 0, 20, 10]] * (row % 3) for row in range(40)])
    facts = stats(annotated, boxes)["boxes"]
    assert facts["boxes"] == 39 and facts["per_image"]["mean"] == 39 / 40
    assert facts["without_boxes"]["mean"] == 14 / 40
    assert facts["aspect"] == {"mean": 2, "low": 2, "high": 2} and facts["quartiles"]["aspect"] == [2, 2, 2]
    share = 200 / annotated.sizes.prod(1)
    np.testing.assert_allclose(facts["box_area"]["mean"], np.repeat(share, np.arange(40) % 3).mean(), rtol=1e-6)


def test_no_boxes_at_all_are_no_crops(annotated):
    result = stats(annotated, BoxTable.from_arrays(annotated, [[]] * 40), "obj-scene", size=32)
    assert result["objectness"]["boxes"]["object_share"]["mean"] is None
    assert result["objectness"]["view 1"]["crops"] == 37
    assert result["recall"] is None and result["boxes"]["quartiles"] is None
    stats_table(result, Console(file=io.StringIO()))


def test_a_few_images_are_spread_over_the_catalog(annotated):
    boxes = propose(annotated, "image")
    result = stats(annotated, boxes, "within-box", images=5, bootstrap=0)
    rows = [0, 10, 20, 29, 39]
    shares = [painted(annotated, row).mean() for row in rows[:-1]]
    assert result["catalog"]["measured"] == 5 and result["ground_truth"]["without"] == 1
    assert result["objectness"]["boxes"]["object_share"]["mean"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert result["objectness"]["view 1"]["crops"] == 4


def test_intervals_are_those_of_the_normal_law():
    rng = np.random.default_rng(0)
    values = rng.normal(5, 2, 4000)
    means = ImageMeans(4000)
    entry = means.mean(values, np.arange(4000))
    means.resample(2000, seed=1)
    half = 1.96 * values.std(ddof=1) / np.sqrt(4000)
    assert entry["mean"] == pytest.approx(values.mean())
    np.testing.assert_allclose([entry["low"], entry["high"]], values.mean() + np.array([-half, half]), atol=half / 10)


def test_crops_of_one_image_are_resampled_together():
    """Ten equal crops an image say no more than one: the interval is that of the images, not narrower by √10."""
    values = np.random.default_rng(0).normal(0, 1, 500)
    means = ImageMeans(500)
    one, ten = means.mean(values, np.arange(500)), means.mean(np.repeat(values, 10), np.repeat(np.arange(500), 10))
    means.resample(300, seed=0)
    assert ten == pytest.approx(one)


def test_a_ratio_of_sums_has_the_interval_of_the_delta_method():
    rng = np.random.default_rng(2)
    counts = rng.integers(1, 8, 3000)
    image = np.repeat(np.arange(3000), counts)
    values = rng.random(len(image)) < np.repeat(rng.random(3000), counts)
    means = ImageMeans(3000)
    entry = means.mean(values, image)
    means.resample(2000, seed=0)
    residuals = np.bincount(image, values - values.mean())
    half = 1.96 * residuals.std() * np.sqrt(3000) / len(image)
    low, high = entry["low"], entry["high"]
    np.testing.assert_allclose([low, high], values.mean() + np.array([-half, half]), atol=half / 8)


def test_the_same_seed_gives_the_same_numbers(annotated):
    boxes = propose(annotated, "grid")
    first, again = (stats(annotated, boxes, "scene-scene", size=32, seed=4, bootstrap=100) for _ in range(2))
    assert first == again
    assert first != stats(annotated, boxes, "scene-scene", size=32, seed=5, bootstrap=100)


def test_errors_say_what_to_do(annotated, photos):
    catalog, boxes = photos
    with pytest.raises(UsageError, match="nothing to measure: pass --boxes"):
        stats(annotated)
    with pytest.raises(UsageError, match="made for another catalog"):
        stats(annotated, boxes)
    with pytest.raises(ObjcropError, match=r"no ground truth.*index it with its annotations"):
        stats(catalog, boxes)
    with pytest.raises(UsageError, match="crops 'obj-scene' are drawn from boxes"):
        stats(annotated, crops="obj-scene")
    with pytest.raises(UsageError, match="crops is 'scenes', but it must be a CropPolicy, or one of"):
        stats(annotated, crops="scenes")
    with pytest.raises(UsageError, match=r"size \(32\) cannot act here: no crops are measured"):
        stats(annotated, propose(annotated, "gt"), size=32)
    with pytest.raises(UsageError, match=r"dilate \(0.2\) cannot act here"):
        stats(annotated, crops="scene-scene", dilate=0.2)
    with pytest.raises(UsageError, match="size is -1, but it must be"):
        stats(annotated, crops="scene-scene", size=-1)
    for name in ("images", "draws", "bootstrap"):
        with pytest.raises(UsageError, match=f"{name} is -1, but it must be at least"):
            stats(annotated, crops="scene-scene", **{name: -1})


@pytest.mark.parametrize("crops", [None, "obj-obj+dilate"])
def test_the_table_shows_means_with_intervals(annotated, crops):
    options = {} if crops is None else {"size": 32}
    result = stats(annotated, propose(annotated, "gt"), crops, bootstrap=100, **options)
    out = io.StringIO()
    stats_table(result, Console(file=out, width=100))
    shown = out.getvalue()
    assert "40 of 40 images measured: 37 by the union of their boxes, 3 left out: no ground truth" in shown
    assert "100.0 % (100.0–100.0)" in shown and "Recall" in shown and "half below" in shown
    assert ("same object" in shown) == (crops is not None)


def test_the_picture_is_drawn(annotated, tmp_path):
    boxes = propose(annotated, "grid")
    results = {"grid": stats(annotated, boxes), "dilate": stats(annotated, boxes, "obj-obj+dilate", size=32)}
    draw_stats(results, tmp_path / "s.png")
    picture = np.asarray(Image.open(tmp_path / "s.png").convert("RGB"))
    for colour in ((224, 164, 88), (91, 146, 121), (93, 127, 168)):  # the three zones
        assert (picture == colour).all(-1).sum() > 1000
    with pytest.raises(ObjcropError, match=r"none/s\.png cannot be written"):
        draw_stats(results, tmp_path / "none" / "s.png")
    with pytest.raises(UsageError, match="no result"):
        draw_stats({}, tmp_path / "s.png")
