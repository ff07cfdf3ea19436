"""One suite, every backend: the same rows, boxes, windows and colours, pixels within a stated tolerance."""

from dataclasses import fields

import numpy as np
import pytest
import torch

from objcrop.dali_pipes.crop_policy import crop_policy
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.view_plan import ViewPlan
from objcrop.errors import ObjcropError, UsageError

BACKENDS = {"torch": dict(backend="torch", workers=0), "dali": dict(backend="dali", threads=2)}
SMALL = dict(size=48, batch_size=8, crops="obj-obj+dilate", seed=3)


def load(photos, backend, **options):
    catalog, boxes = photos
    options = {**SMALL, **BACKENDS[backend], **options}
    return load_views(catalog, boxes=boxes if crop_policy(options["crops"]).needs_boxes else None, **options)


def epoch_of(photos, backend, **options):
    with load(photos, backend, **options) as loader:
        return list(loader)


def difference(a, b, std=(0.229, 0.224, 0.225)):
    """Return |a - b| of two normalised views on the scale of 0..255."""
    return (a.float() - b.float()).abs() * torch.tensor(std).view(1, 3, 1, 1) * 255


def assert_same_plan(a, b):
    for field in fields(ViewPlan):
        np.testing.assert_array_equal(getattr(a.plan, field.name), getattr(b.plan, field.name), err_msg=field.name)
    for name in ("index", "requested", "labels", "substituted"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture(scope="module")
def epochs(photos):
    return {
        (backend, augment): epoch_of(photos, backend, augment=augment)
        for backend in BACKENDS
        for augment in ("none", "moco-v2", "byol")
    }


@pytest.mark.parametrize("augment", ["none", "moco-v2", "byol"])
def test_backends_agree(epochs, augment):
    pairs = list(zip(epochs["torch", augment], epochs["dali", augment], strict=True))
    assert len(pairs) == 3
    for ours, other in pairs:
        assert_same_plan(ours, other)
    apart = torch.cat([difference(a, b).flatten() for x, y in pairs for a, b in zip(x.views, y.views)])
    if augment == "none":
        assert apart.mean() <= 0.5 and apart.quantile(0.999) <= 20
    else:
        assert apart.mean() <= 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_batches_are_what_the_design_says(epochs, backend):
    batch = epochs[backend, "moco-v2"][0]
    assert len(batch.views) == 2 and len(batch) == 8
    for view in batch.views:
        assert view.shape == (8, 3, 48, 48) and view.dtype == torch.float32
        assert view.is_contiguous(memory_format=torch.channels_last)
    assert batch.index.dtype == batch.requested.dtype == torch.int64
    assert batch.plan.windows.shape == (8, 2, 4) and batch.plan.windows.dtype == np.int32
    assert not batch.substituted.any()
    seen = torch.cat([b.index for b in epochs[backend, "moco-v2"]])
    assert sorted(seen.tolist()) == list(range(24))


@pytest.mark.parametrize("backend", BACKENDS)
def test_half_precision(photos, epochs, backend):
    batch = epoch_of(photos, backend, dtype="bf16")[0]
    assert batch.views[0].dtype == torch.bfloat16
    torch.testing.assert_close(batch.views[0].float(), epochs[backend, "moco-v2"][0].views[0], atol=0.02, rtol=0.01)


@pytest.mark.parametrize("backend", BACKENDS)
def test_epochs_differ_and_come_again(photos, epochs, backend):
    with load(photos, backend) as loader:
        first, second = list(loader), list(loader)
        loader.set_epoch(0)
        again = list(loader)
    assert not torch.equal(first[0].index, second[0].index)
    for a, b, c in zip(first, again, epochs[backend, "moco-v2"], strict=True):
        assert_same_plan(a, b)
        assert torch.equal(a.views[0], b.views[0]) and torch.equal(a.views[1], c.views[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("consumed", [1, 3, 4])
def test_resume_goes_on_after_what_was_consumed(photos, backend, consumed):
    def endless(loader):
        while True:
            yield from loader

    with load(photos, backend) as loader:
        walk = endless(loader)
        before = [next(walk) for _ in range(consumed)]
        state = loader.state_dict()
        rest = [next(walk) for _ in range(4)]
    assert len(before) == consumed
    with load(photos, backend) as loader:
        loader.load_state_dict(state)
        for a, b in zip(rest, endless(loader)):
            assert_same_plan(a, b)
            assert all(torch.equal(x, y) for x, y in zip(a.views, b.views))


def test_resume_refuses_another_run(photos):
    with load(photos, "torch") as loader:
        state = loader.state_dict()
    with load(photos, "torch", seed=4) as loader, pytest.raises(ObjcropError, match="seed=3"):
        loader.load_state_dict(state)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_make_up_the_batch(photos, world):
    whole = epoch_of(photos, "torch", augment="none")
    for rank in range(world):
        part = epoch_of(photos, "torch", augment="none", rank=rank, world_size=world)
        for a, b in zip(whole, part, strict=True):
            np.testing.assert_array_equal(a.index[rank::world], b.index)
            np.testing.assert_array_equal(a.plan.windows[rank::world], b.plan.windows)
            assert torch.equal(a.views[0][rank::world], b.views[0])


def test_worker_processes_give_the_same(photos, epochs):
    for a, b in zip(epochs["torch", "moco-v2"], epoch_of(photos, "torch", workers=2), strict=True):
        assert_same_plan(a, b)
        torch.testing.assert_close(a.views[0], b.views[0], atol=1e-5, rtol=0)


def test_pil_colour_is_near_and_takes_the_same_decisions(photos, epochs):
    for a, b in zip(epochs["torch", "moco-v2"], epoch_of(photos, "torch", colour="pil"), strict=True):
        assert_same_plan(a, b)
        assert difference(a.views[0], b.views[0]).mean() < 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_probes_see_each_image_once_in_order(photos, backend):
    batches = epoch_of(photos, backend, crops="centre", augment="none", shuffle=False, drop_last=False, batch_size=9)
    assert [len(b) for b in batches] == [9, 9, 6]
    assert torch.cat([b.index for b in batches]).tolist() == list(range(24))
    assert len(batches[0].views) == 1


@pytest.mark.parametrize("backend", BACKENDS)
def test_set_boxes_takes_effect(photos, backend):
    from objcrop.boxes import BoxTable

    catalog, _ = photos
    corner = BoxTable.from_arrays(catalog, [np.array([[0, 0, 30, 30]], np.float32)] * len(catalog))
    with load(photos, backend, min_side=1) as loader:
        next(iter(loader))
        loader.set_boxes(corner)
        batch = next(iter(loader))
        assert loader.state_dict()["boxes"] == corner.fingerprint
    assert batch.plan.regions[:, 0].tolist() == [[0, 0, 30, 30]] * 8


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(batch_size=25), "only has|has only"),
        (dict(crops="boxes"), "obj-scene"),
        (dict(augment="mocov2"), "moco-v2"),
        (dict(device="cuda"), "no GPU"),
        (dict(device="tpu"), "cuda"),
        (dict(backend="dali", colour="pil"), "backend='torch'"),
        (dict(dtype="int8"), "bf16"),
        (dict(size=4), "size"),
        (dict(seed=-1), "seed"),
    ],
)
def test_wrong_use_is_one_sentence(photos, options, word):
    with pytest.raises(UsageError, match=word) as caught:
        load_views(photos[0], boxes=photos[1], **{**SMALL, "backend": "torch", **options})
    assert "\n" not in str(caught.value)
