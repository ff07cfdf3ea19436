from dataclasses import fields

import numpy as np
import pytest
import torch
from scipy import stats
from torchvision.transforms import ColorJitter

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes import view_loader
from objcrop.dali_pipes.augment import IMAGENET_MEAN, IMAGENET_STD, RECIPES, augment_recipe
from objcrop.dali_pipes.crop_policy import POLICIES
from objcrop.dali_pipes.crops import Crops
from objcrop.dali_pipes.epoch_order import permute
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner, colour_decisions
from objcrop.errors import UsageError


def planner(photos, crops="obj-obj+dilate", augment="moco-v2", **options):
    catalog, boxes = photos
    seed = options.pop("seed", 5)
    return ViewPlanner(catalog, boxes, Crops(crops=crops, augment=augment, **{"size": 64, **options}), seed=seed)


def assert_same(a: ViewPlan, b: ViewPlan):
    for field in fields(ViewPlan):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@pytest.mark.parametrize("crops", POLICIES)
def test_a_row_does_not_depend_on_its_batch(photos, crops):
    plans = planner(photos, crops)
    samples = np.random.default_rng(0).permutation(plans.samples)
    together = plans.plan(samples, epoch=2)
    for i in (0, 3, len(samples) - 1):
        alone = plans.plan(samples[i : i + 1], epoch=2)
        for field in fields(ViewPlan):
            np.testing.assert_array_equal(getattr(together, field.name)[i], getattr(alone, field.name)[0])
    assert_same(together, planner(photos, crops).plan(samples, epoch=2))


@pytest.mark.parametrize(("batch_size", "world"), [(5, 1), (9, 3), (24, 2)])
@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_planned_at_once_are_those_planned_alone(photos, monkeypatch, batch_size, world, shuffle):
    """From any position on, over the ends of epochs, whose last batches are short here."""
    monkeypatch.setattr(view_loader, "PLANNED", 20)
    for rank in range(world):
        options = dict(crops="obj-obj+dilate", size=16, batch_size=batch_size, shuffle=shuffle, drop_last=False)
        with load_views(photos[0], boxes=photos[1], **options, rank=rank, world_size=world) as loader:
            loader._settle()
            each = [(epoch, batch) for epoch in range(4) for batch in range(len(loader))][2:]
            for at, (position, plan) in zip(each, loader.plans_from(each[0])):
                assert position == at
                epoch, batch = position
                order = permute(np.arange(24), 24, 0, epoch) if shuffle else np.arange(24)
                mine = order[batch * batch_size : (batch + 1) * batch_size][rank::world]
                assert_same(plan, loader.planner.plan(mine, epoch))


@pytest.mark.parametrize("crops", POLICIES)
@pytest.mark.parametrize("epoch", [0, 7])
def test_windows_lie_in_regions_and_regions_in_images(photos, crops, epoch):
    plans = planner(photos, crops)
    plan = plans.plan(np.arange(plans.samples), epoch)
    sizes = plans.catalog.sizes[plan.row][:, None]
    assert plan.windows.dtype == plan.regions.dtype == np.int32
    for inner, low, high in (
        (plan.windows, plan.regions[..., :2], plan.regions[..., 2:]),
        (plan.regions, 0, sizes),
    ):
        assert (inner[..., :2] >= low).all() and (inner[..., 2:] <= high).all()
        assert (inner[..., 2:] > inner[..., :2]).all()


def test_views_share_the_box_and_regions_follow_the_policy(photos):
    catalog, boxes = photos
    one = planner(photos, "obj-obj", min_side=1).plan(np.arange(len(catalog)), 0)
    two = planner(photos, "obj-obj+dilate", min_side=1).plan(np.arange(len(catalog)), 0)
    np.testing.assert_array_equal(one.regions[:, 0], one.regions[:, 1])
    np.testing.assert_array_equal(one.regions[:, 0], two.regions[:, 0])
    np.testing.assert_array_equal(one.box, two.box)
    for i in range(len(catalog)):
        if one.box[i] < 0:
            assert one.regions[i, 0].tolist() == [0, 0, *catalog.sizes[i]]
        else:
            x0, y0, x1, y1 = boxes[i][one.box[i]]
            assert one.regions[i, 0].tolist() == [np.floor(x0), np.floor(y0), np.ceil(x1), np.ceil(y1)]


def test_boxes_are_drawn_uniformly_and_anew_each_epoch(photos):
    _, boxes = photos
    row = int(np.argmax(np.diff(boxes.offsets)))
    k = int(np.diff(boxes.offsets)[row])
    plans = planner(photos, "obj-obj")
    drawn = [int(plans.plan(np.array([row]), epoch).box[0]) for epoch in range(600)]
    assert stats.chisquare(np.bincount(drawn, minlength=k)).pvalue > 0.001


def test_max_boxes_takes_the_first(photos):
    plan = planner(photos, "obj-obj", max_boxes=1).plan(np.arange(24), 3)
    assert set(plan.box.tolist()) == {-1, 0}


@pytest.mark.parametrize("most", [None, 2])
def test_within_box_counts_every_box_once(photos, most):
    _, boxes = photos
    plans = planner(photos, "within-box", **({} if most is None else {"max_boxes": most}))
    counts = np.minimum(np.diff(boxes.offsets), most or 1000)
    assert plans.samples == np.maximum(counts, 1).sum()
    plan = plans.plan(np.arange(plans.samples), 0)
    expected = [(r, b) for r, c in enumerate(counts) for b in (range(c) if c else [-1])]
    assert list(zip(plan.row.tolist(), plan.box.tolist())) == expected


def test_scale_min_is_the_papers_s_min(photos):
    catalog, boxes = photos
    plans = planner(photos, "obj-obj+dilate", min_side=30)
    shares = []
    for row, (w, h) in enumerate(catalog.sizes.tolist()):
        areas = []
        for x0, y0, x1, y1 in boxes[row].tolist():
            side_x, side_y = np.ceil(x1) - np.floor(x0), np.ceil(y1) - np.floor(y0)
            areas.append(max(side_x, min(30, w)) * max(side_y, min(30, h)) / (w * h))
        shares += [np.mean(areas)] if areas else []  # OAC averages proposals
    assert plans.scale_min == pytest.approx(min(0.2 / np.mean(shares), 0.9), abs=6e-4)
    assert planner(photos, "obj-scene").scale_min is None  # its scene view keeps `scale` (OAC Table 11)


def test_flip_and_probabilities_are_the_recipes():
    n = 20_000
    for name in RECIPES:
        augment = augment_recipe(name, 2)
        drawn = colour_decisions(np.arange(n), augment, seed=1, epoch=0)
        for v in range(2):
            shares = {
                # Either of the two, one as often as the other.
                what: (happened, np.mean([getattr(a, f"{what}_p") for a in augment]))
                for what, happened in {**drawn, "blur": drawn["sigma"] > 0}.items()
                if what in ("flip", "jitter", "grey", "blur", "solarise")
            }
            for what, (happened, probability) in shares.items():
                if probability in (0, 1):
                    assert happened[:, v].mean() == probability, what
                else:
                    assert stats.binomtest(int(happened[:, v].sum()), n, probability).pvalue > 0.001, what


def test_jitter_is_drawn_as_torchvision_draws_it():
    n = 4000
    drawn = colour_decisions(np.arange(n), augment_recipe("byol", 2), seed=2, epoch=0)
    torch.manual_seed(0)
    jitter = ColorJitter(0.4, 0.4, 0.2, 0.1)
    theirs = [
        ColorJitter.get_params(jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) for _ in range(n)
    ]
    for f in range(4):
        other = np.array([t[1 + f] for t in theirs])
        assert stats.ks_2samp(drawn["factors"][:, 1, f], other).pvalue > 0.01
    orders = drawn["order"][:, 0]
    assert (np.sort(orders, 1) == np.arange(4)).all()
    assert stats.chisquare(np.unique(orders, axis=0, return_counts=True)[1]).pvalue > 0.001
    assert len(np.unique(orders, axis=0)) == 24


def test_byols_two_augmentations_are_turned_round_per_sample():
    """Each sample has both, whichever view gets which: no role of a policy goes with one of them."""
    n, augment = 4000, augment_recipe("byol", 2)
    drawn = colour_decisions(np.arange(n), augment, seed=1, epoch=0)
    assert {(a.interpolation, a.mean, a.std) for a in augment} == {("bicubic", IMAGENET_MEAN, IMAGENET_STD)}
    solarised = drawn["solarise"]
    assert not solarised.all(axis=1).any(), "both views solarised, but one recipe of the two never does it"
    assert (drawn["sigma"] > 0).any(axis=1).all(), "one of the two always blurs"
    # A sample whose first view is the unblurred or the solarised one has the second recipe there.
    second_first = solarised[:, 0] | (drawn["sigma"][:, 0] == 0)
    second_last = solarised[:, 1] | (drawn["sigma"][:, 1] == 0)
    assert not (second_first & second_last).any()
    assert stats.binomtest(int(second_first.sum()), int((second_first | second_last).sum())).pvalue > 0.001
    other = colour_decisions(np.arange(n), augment, seed=1, epoch=1)["solarise"]
    assert (other[:, 0] & solarised[:, 1]).any() and (other[:, 0] & solarised[:, 0]).any()  # anew each epoch


def test_a_new_augmentation_leaves_the_others_alone():
    samples = np.arange(200)
    moco = colour_decisions(samples, augment_recipe("moco-v2", 2), seed=1, epoch=0)
    byol = colour_decisions(samples, augment_recipe("byol", 2), seed=1, epoch=0)
    np.testing.assert_array_equal(moco["order"], byol["order"])
    np.testing.assert_array_equal(moco["flip"], byol["flip"])


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(dilate=-0.1), "dilate"),
        (dict(scale=(0.5, 0.2)), "scale"),
        (dict(scale_min="all"), "scale_min"),
        (dict(scale_min=1.5), "scale_min"),
        (dict(min_side="big"), "min_side"),
        (dict(shift=(100, 80)), "shift"),
        (dict(max_boxes=0), "max_boxes"),
        (dict(dilate_by="photo"), "dilate_by"),
    ],
)
def test_bad_options_are_named(photos, options, word):
    with pytest.raises(UsageError, match=word):
        planner(photos, **options)


def test_box_policy_without_boxes_says_what_to_do(photos):
    with pytest.raises(UsageError, match="objcrop propose"):
        planner((photos[0], None))


def made_up(sizes_of_boxes, size=(400, 400)):
    """A catalog without files, each image with square boxes of these sides; and its boxes."""
    sizes = np.tile(np.array([size], np.int32), (len(sizes_of_boxes), 1))
    catalog = Catalog.build("/", [f"{i}.jpg" for i in range(len(sizes))], sizes)
    boxes = [np.array([[0, 0, side, side] for side in sides], np.float32).reshape(-1, 4) for sides in sizes_of_boxes]
    return catalog, BoxTable.from_arrays(catalog, boxes)


def test_images_without_boxes_do_not_count_for_s_min():
    having = [[200, 300], [100], [400, 80, 300]]
    assert planner(made_up(having)).scale_min == planner(made_up([*having, [], [], []])).scale_min
    assert planner(made_up([[], []])).scale_min == 0.2  # nothing but whole frames


def test_s_min_of_a_periodic_catalog_is_that_of_all_its_images(monkeypatch):
    """Every 5th image differs, as sorted or interleaved folders have it: evenly spaced rows would see one kind only."""
    monkeypatch.setattr("objcrop.dali_pipes.view_plan._SCALE_SAMPLE", 400)
    photos = made_up([[360] if i % 5 == 0 else [180] for i in range(2000)])
    exact = 0.2 / ((360**2 + 4 * 180**2) / 5 / 400**2)
    assert planner(photos).scale_min == pytest.approx(exact, rel=0.06)


def test_s_min_does_not_depend_on_the_order_of_adding():
    """The sum is exact: rows in any order, as any number of lanes would add them, give the same digits."""
    draw = np.random.default_rng(0)
    sides = [draw.integers(60, 400, draw.integers(1, 9)).tolist() for _ in range(300)]
    assert len({planner(made_up([sides[i] for i in draw.permutation(300)])).scale_min for _ in range(20)}) == 1
    share = [np.mean([max(side, 64) ** 2 / 160_000 for side in image]) for image in sides]
    assert planner(made_up(sides)).scale_min == round(0.2 / np.mean(share), 3)
