"""Policies of one's own, several views of several sizes, local views, and functions of one's own in place of colour."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from objcrop.dali_pipes.augment import Augment
from objcrop.dali_pipes.crop_policy import POLICIES, CropPolicy, ViewSpec, crop_policy
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError, UsageError

SMALL = dict(batch_size=8, size=48, seed=3, rank=0, world_size=1)
MULTI = dict(local_views=6, local_size=24, local_scale=(0.05, 0.14))
OWN = CropPolicy(
    "mine",
    (
        ViewSpec("object", "box", whole=True, size=40, augment=Augment(interpolation="bicubic")),
        ViewSpec("scene", "image", (0.3, 0.5), aspect=(0.9, 1.1), augment=Augment(grey_p=1.0, flip_p=1.0)),
        ViewSpec("scene", "dilated", "auto"),
        ViewSpec("scene", "image", size=16),
    ),
)


def batches(photos, **options):
    catalog, boxes = photos
    given = {"boxes": boxes} if crop_policy(options.get("crops", "scene-scene")).needs_boxes else {}
    with load_views(catalog, **{**SMALL, **given, **options}) as loader:
        return list(loader), loader


def by(backend):
    return {"backend": "torch", "workers": 0} if backend == "torch" else {"backend": "dali", "threads": 2}


@pytest.mark.parametrize("backend", ["torch", "dali", "cache"])
@pytest.mark.parametrize("crops", ["scene-scene", "obj-obj+dilate", "within-box", OWN], ids=str)
def test_backends_agree_on_views_of_several_sizes(photos, backend, crops):
    options = {"crops": crops, **(MULTI if isinstance(crops, str) else {})}
    expected, _ = batches(photos, **options, **by("torch"), augment="none")
    how = {"backend": "dali", "cache": "host"} if backend == "cache" else by(backend)
    found, loader = batches(photos, **options, **how, augment="none")
    sizes = (48, 48, *[24] * 6) if isinstance(crops, str) else (40, 48, 48, 16)
    assert loader.planner.sizes == sizes
    for ours, theirs in zip(expected, found, strict=True):
        np.testing.assert_array_equal(ours.plan.windows, theirs.plan.windows)
        assert [tuple(v.shape) for v in theirs.views] == [(8, 3, s, s) for s in sizes]
        for a, b in zip(ours.views, theirs.views):
            assert (a - b).abs().mean() < 0.05


def test_a_policy_of_ones_own_is_drawn_as_it_says(photos):
    _, loader = batches(photos, crops=OWN, **by("torch"))
    plan = loader.planner.plan(np.arange(24), 1)
    scene, dilated = (plan.windows[:, v].astype(float) for v in (1, 2))
    np.testing.assert_array_equal(plan.windows[:, 0], plan.regions[:, 0])
    share = (scene[:, 2:] - scene[:, :2]).prod(1) / loader.catalog.sizes[plan.row].prod(1)
    ratio = (scene[:, 2] - scene[:, 0]) / (scene[:, 3] - scene[:, 1])
    fell_back = share > 0.6
    assert ((share > 0.27) & (share < 0.55))[~fell_back].all() and fell_back.mean() < 0.3
    assert (ratio > 0.85).all() and (ratio < 1.2).all() and ratio.std() > 0.01
    assert plan.grey[:, 1].all() and plan.flip[:, 1].all() and not plan.grey[:, 0].any()
    assert 0 < plan.grey[:, 2:].mean() < 0.6  # the option's recipe where the view has none
    assert loader.planner.scale_min is not None and (dilated >= plan.regions[:, 2] * [1, 1, 0, 0]).all()


def test_other_views_are_none_the_different_for_local_ones(photos):
    """A view's draws are its own, whatever stands beside it."""
    for crops in ("scene-scene", "obj-obj+dilate", "within-box"):
        plain = batches(photos, crops=crops, **by("torch"))[1].planner
        multi = batches(photos, crops=crops, **MULTI, **by("torch"))[1].planner
        a, b = (planner.plan(np.arange(20), 2) for planner in (plain, multi))
        for name in ("windows", "regions", "flip", "factors", "order", "sigma", "grey"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[:, :2])
        assert len({tuple(w) for w in b.windows[0]}) == 8  # and no two are alike


@pytest.mark.parametrize("source", ["region", "image"])
def test_local_views_lie_in_what_they_are_drawn_from(photos, source):
    _, loader = batches(photos, crops="obj-obj+dilate", **MULTI, local_from=source, **by("torch"))
    plan = loader.planner.plan(np.arange(24), 0)
    regions = plan.regions[:, [0, 1] * 3] if source == "region" else np.repeat(plan.regions[:, 2:3], 6, 1)
    np.testing.assert_array_equal(plan.regions[:, 2:], regions)
    if source == "image":
        np.testing.assert_array_equal(plan.regions[:, 2, 2:], loader.catalog.sizes[plan.row])
    share = np.diff(plan.windows[:, 2:].reshape(24, 6, 2, 2), axis=2).prod((2, 3))
    share = share / np.diff(regions.reshape(24, 6, 2, 2), axis=2).prod((2, 3))
    assert (share < 0.2).mean() > 0.9 and (share > 0.03).mean() > 0.9
    assert loader.policy.roles == ("object", "scene") * 4


def test_local_views_meet_their_large_one_where_they_are_told_to(photos):
    catalog, _ = photos

    def far(overlap):
        """The share of local crops that a loop finds to lie less than half in the crop of their turn."""
        options = {"local_overlap": overlap} if overlap else {}
        _, loader = batches(photos, scale=(0.2, 0.4), **MULTI, **options, **by("torch"))
        found = []
        for epoch in range(6):
            plan = loader.planner.plan(np.arange(len(catalog)), epoch)
            for windows in plan.windows.tolist():
                for i, (x0, y0, x1, y1) in enumerate(windows[2:]):
                    a0, b0, a1, b1 = windows[i % 2]
                    meets = max(min(x1, a1) - max(x0, a0), 0) * max(min(y1, b1) - max(y0, b0), 0)
                    found.append(meets / ((x1 - x0) * (y1 - y0)) < 0.5)
        return np.mean(found)

    free, told = far(0), far(0.5)
    assert free > 0.3 and told < free / 4


def test_a_row_with_overlap_does_not_depend_on_its_batch(photos):
    _, loader = batches(photos, scale=(0.2, 0.4), **MULTI, local_overlap=0.5, **by("torch"))
    together = loader.planner.plan(np.arange(24), 1)
    for i in (0, 7, 23):
        np.testing.assert_array_equal(loader.planner.plan(np.array([i]), 1).windows[0], together.windows[i])


@pytest.mark.parametrize("backend", ["torch", "dali", "cache"])
def test_a_function_of_ones_own_gets_bytes(photos, backend):
    how = {"backend": "dali", "cache": "host"} if backend == "cache" else by(backend)
    seen = []

    def double(view):
        assert view.dtype == torch.uint8 and view.shape[1] == 3
        seen.append(tuple(view.shape))
        return view.float() * 2

    plain, _ = batches(photos, **how, **MULTI, augment="none")
    ours, loader = batches(photos, **how, **MULTI, augment=double)
    assert set(seen) == {(8, 3, 48, 48), (8, 3, 24, 24)} and not loader.planner.plan(np.arange(8), 0).flip.any()
    mean, std = (torch.tensor(of)[:, None, None] for of in (Augment().mean, Augment().std))
    for a, b in zip(plain, ours):
        for normalised, doubled in zip(a.views, b.views):
            torch.testing.assert_close((normalised * std + mean) * 255, doubled / 2, atol=0.02, rtol=0)


@pytest.mark.parametrize("backend", ["torch", "dali"])
def test_a_function_that_fails_is_one_sentence(photos, backend):
    def wrong(view):
        raise KeyError("no such thing")

    with pytest.raises(
        ObjcropError, match=r"augment, your own function, failed on view 1, uint8 \(8, 3, 48, 48\)"
    ) as said:
        batches(photos, augment=wrong, **by(backend))
    assert "\n" not in str(said.value)


def test_augmentations_one_a_view(photos):
    grey, mirror = Augment(grey_p=1.0), Augment(flip_p=1.0, mean=(0, 0, 0), std=(1, 1, 1))
    found, loader = batches(photos, augment=[grey, mirror], **by("torch"))
    plan = loader.planner.plan(np.arange(24), 0)
    assert plan.grey[:, 0].all() and not plan.grey[:, 1].any() and plan.flip[:, 1].all() and not plan.flip[:, 0].any()
    assert found[0].views[1].min() >= 0 and found[0].views[0].min() < 0
    both, _ = batches(photos, augment=grey, **by("torch"))
    mean, std = (torch.tensor(of)[:, None, None] for of in (grey.mean, grey.std))
    for view in both[0].views:
        lit = view * std + mean
        assert (lit.amax(1) - lit.amin(1)).max() < 0.01 < lit.std()  # one value in all three channels, and a picture


WRONG = [
    (dict(crops="scene", local_views=16), "local_views is 16"),
    (dict(crops="centre", local_views=2), "cannot act here"),
    (dict(local_size=32), "there are no local_views"),
    (dict(local_overlap=0.5), "there are no local_views"),
    (dict(augment=[Augment()]), "augment has 1 entries, but the crops have 2 views"),
    (dict(augment=3), "augment is 3, but it must be one of"),
    (dict(augment=[]), "augment is"),
    (dict(crops=("scene",)), "crops is"),
    (
        dict(crops=replace(POLICIES["scene"], views=(ViewSpec("scene", "image", (0.1, 0.2)),)), scale=(0.2, 1)),
        "cannot act",
    ),
    (dict(crops=replace(POLICIES["scene"], views=(ViewSpec("scene", "image", size=32),)), size=64), "size of its own"),
]


@pytest.mark.parametrize(("options", "word"), WRONG, ids=str)
def test_wrong_use(photos, options, word):
    with pytest.raises(UsageError, match=word) as said:
        load_views(photos[0], **{**{k: v for k, v in SMALL.items() if k != "size"}, "backend": "torch", **options})
    assert "\n" not in str(said.value)


def test_wrong_policies():
    for build, word in [
        (lambda: ViewSpec("key", "image"), "a view's role is 'key'"),
        (lambda: ViewSpec("scene", "sky"), "a view's region is 'sky'"),
        (lambda: ViewSpec("scene", "image", (0.5, 0.2)), "a view's scale"),
        (lambda: ViewSpec("scene", "image", aspect=(0, 1)), "a view's aspect"),
        (lambda: ViewSpec("scene", "image", size=4), "a view's size"),
        (lambda: CropPolicy("none", ()), "0 views"),
        (lambda: CropPolicy("many", (ViewSpec("scene", "image"),) * 17), "17 views"),
    ]:
        with pytest.raises(UsageError, match=word):
            build()
