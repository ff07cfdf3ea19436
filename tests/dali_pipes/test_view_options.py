"""Every option with every policy, loader and device: it changes what comes out, or it is refused in one sentence."""

import logging
import re
from dataclasses import fields

import numpy as np
import pytest

from objcrop.dali_pipes.crop_policy import POLICIES, crop_policy
from objcrop.dali_pipes.crops import why_no_boxes
from objcrop.dali_pipes.load_views import _say_left_out, load_views
from objcrop.dali_pipes.loading import ViewOptions
from objcrop.dali_pipes.view_plan import ViewPlan
from objcrop.errors import UsageError
from objcrop.option import options_of

SMALL = dict(size=24, batch_size=4, seed=3, backend="torch", workers=0)

# A value of each option of crops that is not its default.
CROPS = {
    "boxes": ...,  # the boxes themselves
    "random_crop": False,
    "scale": (0.5, 0.9),
    "scale_min": 0.05,
    "min_side": 3,
    "dilate": 0.7,
    "dilate_by": "box",
    "shift": (5, 9),
    "max_boxes": 1,
    "local_views": 3,
}
OF_LOCAL_VIEWS = {"local_size": 32, "local_scale": (0.1, 0.2), "local_from": "image", "local_overlap": 0.9}

# Where each acts, written down by hand from the papers' definitions of the policies.
IN_BOXES = {"obj-scene", "obj-obj", "obj-obj+dilate", "dilate-dilate", "obj-obj+shift", "within-box", "box"}
ACTS = {
    "boxes": IN_BOXES,
    "random_crop": set(POLICIES) - {"centre"},
    "scale": set(POLICIES) - {"centre"},
    "scale_min": IN_BOXES - {"obj-scene", "within-box", "box"},
    "min_side": IN_BOXES - {"within-box", "box"},
    "dilate": {"obj-obj+dilate", "dilate-dilate"},
    "dilate_by": {"obj-obj+dilate", "dilate-dilate"},
    "shift": {"obj-obj+shift"},
    "max_boxes": IN_BOXES,
    "local_views": set(POLICIES) - {"centre"},
}


def load(photos, crops, **options):
    catalog, boxes = photos
    given = {"boxes": boxes} if crop_policy(crops).needs_boxes else {}
    return load_views(catalog, crops=crops, **{**SMALL, **given, **options})


def whole_plan(loader):
    return loader.planner.plan(np.arange(loader.planner.samples), 1)


def same(a, b):
    return all(np.array_equal(getattr(a, field.name), getattr(b, field.name)) for field in fields(ViewPlan))


@pytest.mark.parametrize("crops", POLICIES)
@pytest.mark.parametrize("name", CROPS)
def test_an_option_of_crops_changes_the_plan_or_is_refused(photos, name, crops):
    value = photos[1] if name == "boxes" else CROPS[name]
    if crops in ACTS[name]:
        if name != "boxes":
            assert not same(whole_plan(load(photos, crops)), whole_plan(load(photos, crops, **{name: value})))
        return
    with pytest.raises(UsageError, match=f"{name}.* cannot act here: .*'{re.escape(crops)}'") as caught:
        load(photos, crops, **{name: value})
    assert "\n" not in str(caught.value) and "leave it out" in str(caught.value)


@pytest.mark.parametrize("name", OF_LOCAL_VIEWS)
def test_an_option_of_local_views_changes_them_or_is_refused(photos, name):
    some = dict(crops="obj-obj+dilate", local_views=4)
    plain, given = (load(photos, **some, **options) for options in ({}, {name: OF_LOCAL_VIEWS[name]}))
    assert plain.planner.sizes != given.planner.sizes or not same(whole_plan(plain), whole_plan(given))
    with pytest.raises(UsageError, match=f"{name} .* cannot act here: there are no local_views"):
        load(photos, "obj-obj+dilate", **{name: OF_LOCAL_VIEWS[name]})


@pytest.mark.parametrize("crops", sorted(IN_BOXES))  # in one order in every test process
def test_whole_views_leave_nothing_to_scales(photos, crops):
    plan = whole_plan(load(photos, crops, random_crop=False))
    np.testing.assert_array_equal(plan.windows, plan.regions)
    for name in ("scale", "scale_min"):
        with pytest.raises(UsageError, match="cropped at random"):
            load(photos, crops, random_crop=False, **{name: CROPS[name]})


def test_the_object_view_of_obj_scene_is_the_box_whole(photos):
    plan = whole_plan(load(photos, "obj-scene"))
    np.testing.assert_array_equal(plan.windows[:, 0], plan.regions[:, 0])
    assert (plan.windows[:, 1] != plan.regions[:, 1]).any()
    cropped = whole_plan(load(photos, "obj-scene", random_crop=True))
    assert (cropped.windows[:, 0] != cropped.regions[:, 0]).any(axis=1).mean() > 0.5
    np.testing.assert_array_equal(plan.windows[:, 1], cropped.windows[:, 1])  # the other view's draws stay


# An option, what is given, and where it cannot act.
LOADERS = [
    ("workers", 0, dict(backend="dali")),
    ("threads", 2, dict(backend="torch")),
    ("prefetch", 3, dict(backend="torch", workers=0)),
    ("colour", "pil", dict(backend="dali")),
    ("decode", "whole", dict(backend="torch")),
    ("decode", "whole", dict(backend="dali")),
    ("hw_decoder_load", 0.5, dict(backend="torch")),
    ("hw_decoder_load", 0.5, dict(backend="dali")),
    ("decoder_padding", 4, dict(backend="torch")),
    ("decoder_padding", 4, dict(backend="dali")),
    ("decode", "whole", dict(backend="dali", cache="host")),
    ("decode_scaled", True, dict(backend="dali", cache="host")),
    ("cache", "host", dict(backend="torch")),
    ("cache_side", 64, dict(backend="dali")),
    ("cache_side", 64, dict(backend="torch")),
    ("disk_cache_gb", 5, dict(backend="torch")),
    ("disk_cache_gb", 5, dict(backend="dali")),
]


@pytest.mark.parametrize(("name", "value", "where"), LOADERS, ids=str)
def test_an_option_of_loading_is_refused_where_it_cannot_act(photos, name, value, where):
    with pytest.raises(UsageError, match=f"{name}.* cannot act here: ") as caught:
        load_views(photos[0], size=24, batch_size=4, **{name: value, **where})
    assert "\n" not in str(caught.value)


def test_all_pairs_of_a_setting_are_decided():
    """Each option either always acts or says in every setting whether it does; with a GPU all of a loader's act."""
    for policy in POLICIES.values():
        for backend in ("torch", "dali"):
            for device in ("cpu", "cuda", "cuda:1"):
                for cache in (None, "host"):
                    at = ViewOptions(crops=policy.name, backend=backend, device=device, cache=cache)
                    idle = {name for name in options_of(ViewOptions) if not at.acts(name)}
                    idle |= {"boxes"} if why_no_boxes(at) else set()
                    assert ("augment" in idle) == (policy.name == "soco")
                    loads = idle - set(CROPS) - set(OF_LOCAL_VIEWS) - {"augment"}
                    decoding = {"decode", "hw_decoder_load", "decoder_padding"}
                    expected = {"threads", "cache"} | decoding if backend == "torch" else {"workers", "colour"}
                    if backend == "dali" and (device == "cpu" or cache):
                        expected |= decoding
                    if backend == "dali" and (device != "cpu" or cache):
                        expected |= {"decode_scaled"}
                    expected |= {"disk_cache_gb"} | (set() if cache else {"cache_side"})
                    assert loads == expected
                    assert idle & set(CROPS) == {name for name in CROPS if policy.name not in ACTS[name]}


def test_what_is_recorded_as_resolved_acted(photos):
    for crops in POLICIES:
        assert ("scale_min" in load(photos, crops).resolved) == (crops in ACTS["scale_min"])


def test_new_boxes_are_refused_where_none_are_drawn(photos):
    with pytest.raises(UsageError, match="set_boxes cannot act here"):
        load(photos, "scene-scene").set_boxes(photos[1])


def test_boxes_that_are_never_drawn_are_said(photos, caplog):
    counts = np.diff(photos[1].offsets)
    _say_left_out.cache_clear()
    with caplog.at_level(logging.WARNING, "objcrop"):
        for _ in range(2):  # a bench builds many loaders: it is said once
            load(photos, "obj-obj", max_boxes=2)
        assert caplog.text.count(f"{np.maximum(counts - 2, 0).sum()} boxes are never drawn") == 1
        caplog.clear()
        load(photos, "obj-obj", max_boxes=int(counts.max()))
        load(photos, "within-box")
        assert not caplog.text


SEEDS = [0, 1, 2**32 - 1, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1, 6021733014713651419]


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_are_whole_numbers_of_64_bits(photos, seed):
    assert load(photos, "scene", seed=seed).planner.seed == seed


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("seed", value) for value in (-1, 2**64, 1.5, float("nan"), True, "x", 2.0**60)],
        *[("size", value) for value in (4, 10**300, "five²", 8.5, float("inf"))],
        *[("dilate", value) for value in (-0.1, float("nan"), float("inf"), "much", 3, 10**400)],
        *[("scale", value) for value in ((0.5, 0.2), (0, 1), (0.1, 1.1), 0.5, (0.1, 0.2, 0.3), "0.2;1")],
        ("scale", (float("nan"), 1)),
        *[("shift", value) for value in ((100, 80), (-1, 2), [1], {1: 2})],
        *[("crops", value) for value in ([], {}, 3, "obj", "\ud800")],
        *[("max_bad", value) for value in (-1, 2, float("nan"))],
        *[("hw_decoder_load", value) for value in (-0.1, 2, float("nan"), "much")],
        *[("decoder_padding", value) for value in (-1, 1.5, 10**9)],
        ("decode", "part"),
        ("shuffle", "no"),
        ("batch_size", 0),
        ("max_boxes", 0),
        ("min_side", "big"),
        ("dtype", "int8"),
    ],
)  # fmt: skip
def test_values_are_of_their_kind(photos, name, value):
    options = {"crops": {"dilate": "dilate-dilate", "shift": "obj-obj+shift"}.get(name, "obj-obj")}
    with pytest.raises(UsageError, match=f"^{name} is ") as caught:
        load_views(photos[0], boxes=photos[1], **{**SMALL, **options, name: value})
    assert "\n" not in str(caught.value) and str(caught.value).isprintable() and len(str(caught.value)) < 300
