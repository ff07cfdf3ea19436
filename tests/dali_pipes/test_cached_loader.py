"""The decoded cache: the views of the loader without one, from memory alone."""

import os
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from objcrop.dali_pipes import cached_loader
from objcrop.dali_pipes.cached_loader import kept_sizes, pack
from objcrop.dali_pipes.decode_crop_resize import windows_at
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.kernels.crop_resize import Windows, crop_resize

OPTIONS = dict(crops="obj-obj+dilate", augment="moco-v2", size=32, batch_size=8)


def alone(window, size, interpolation="bilinear"):
    """A window (h, w, 3) with nothing around it, resized to size × size."""
    pixels = np.ascontiguousarray(window)
    height, width, _ = pixels.shape
    whole = Windows(np.array([pixels.ctypes.data]), np.array([[3, 3 * width]]), np.array([[width, height]]))
    return crop_resize(whole, size, interpolation, torch.device("cpu"))[0]


def equal(one, other):
    assert torch.equal(one.index, other.index) and torch.equal(one.substituted, other.substituted)
    assert torch.equal(one.labels, other.labels)
    return all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))


def test_the_same_views_without_the_files(save_photos, tmp_path):
    save_photos(tmp_path, 24)
    catalog, _ = index(tmp_path, "folder")
    options = {**OPTIONS, "crops": "scene-scene"}
    with load_views(catalog, **options) as plain:
        expected = [*plain, *plain]
    with load_views(catalog, **options, cache="host") as loader:
        first = next(iter(loader))
        for name in os.listdir(tmp_path):
            os.unlink(tmp_path / name)
        loader.set_epoch(0)
        views = [*loader, *loader]
    assert equal(first, expected[0])
    assert len(views) == len(expected) == 6 and all(map(equal, views, expected))


def test_boxes_and_resuming(photos):
    catalog, boxes = photos
    with load_views(catalog, boxes=boxes, **OPTIONS) as plain:
        expected = list(plain)
    with load_views(catalog, boxes=boxes, **OPTIONS, cache="host") as loader:
        next(iter(loader))
        state = loader.state_dict()
    with load_views(catalog, boxes=boxes, **OPTIONS, cache="host") as loader:
        loader.load_state_dict(state)
        assert all(map(equal, list(loader), expected[1:]))


def test_bad_images_are_stood_in_for_as_without_a_cache(save_photos, tmp_path):
    save_photos(tmp_path, 24)
    catalog, _ = index(tmp_path, "folder")
    os.truncate(catalog.path(5), 300)
    os.unlink(catalog.path(17))
    options = {**OPTIONS, "crops": "scene-scene", "max_bad": 0.2, "batch_size": 24}
    with load_views(catalog, **options) as plain, load_views(catalog, **options, cache="host") as cached:
        one, other = next(iter(plain)), next(iter(cached))
        assert equal(one, other) and int(one.substituted.sum()) == 2
        assert sorted(cached.bad_images.reasons) == [5, 17]
    with (
        load_views(catalog, **{**options, "max_bad": 0.01}, cache="host") as cached,
        pytest.raises(ObjcropError, match="images cannot be used"),
    ):
        next(iter(cached))


def test_smaller_images_give_nearly_the_same_views(photos):
    catalog, boxes = photos
    options = {**OPTIONS, "augment": "none"}
    sizes = kept_sizes(catalog, 64)
    assert (sizes.min(1) == 64).all() and (sizes <= catalog.sizes).all()
    np.testing.assert_allclose(sizes[:, 0] / sizes[:, 1], catalog.sizes[:, 0] / catalog.sizes[:, 1], rtol=0.02)
    with (
        load_views(catalog, boxes=boxes, **options) as plain,
        load_views(catalog, boxes=boxes, **options, cache="host", cache_side=64) as cached,
    ):
        assert int(cached.begins[-1]) == 3 * int(sizes.prod(1).sum())
        for one, other in zip(plain, cached, strict=True):
            for a, b in zip(one.views, other.views):
                assert 0 < float((a - b).abs().mean()) < 0.25  # in units of the normalised views


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_what_is_packed_for_a_gpu_gives_the_same_crops(threads):
    """The way from the host's cache to a GPU, with torch in the kernel's place."""
    rng = np.random.default_rng(0)
    images = [torch.from_numpy(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 60), (80, 30))]
    cached, places = np.concatenate([image.flatten().numpy() for image in images]), np.array([0, 3 * 40 * 60])
    cuts = np.array([[10, 5, 50, 30], [0, 20, 30, 80]], np.int32)
    windows = np.array([[12, 6, 40, 29], [3, 20, 30, 77]], np.int32)
    with ThreadPoolExecutor(threads) as pool:
        pixels, begins, widths = pack(cached, places, np.array([60, 30], np.int32), cuts, pool, threads)
    assert len(pixels) == 3 * (40 * 25 + 30 * 60)
    inside = (windows - np.tile(cuts[:, :2], 2))[:, None]
    there = Windows(*(part[0] for part in windows_at(pixels.data_ptr() + begins, inside, widths)))
    made = crop_resize(there, 16, "bilinear", torch.device("cpu"))
    for view, image, (x0, y0, x1, y1) in zip(made, images, windows):
        assert torch.equal(view, alone(image[y0:y1, x0:x1], 16))


@pytest.mark.parametrize("stumbled", [False, True])
def test_what_fills_the_cache_is_waited_for_part_by_part(photos, monkeypatch, stumbled):
    """Once what PIL read was copied to a GPU and nobody waited: the first batch could see it unwritten."""
    done = []
    whole = cached_loader.decode_whole

    def decoded(*arguments, **graph):
        for part in whole(*arguments, **graph):
            yield part._replace(decoded=None) if stumbled else part

    monkeypatch.setattr(cached_loader, "decode_whole", decoded)
    monkeypatch.setattr(cached_loader, "ROWS", 10)
    keep, wait = cached_loader.CachedLoader._keep, cached_loader.CachedLoader._wait
    kept = lambda self, row, pixels: (done.append(row), keep(self, row, pixels))  # noqa: E731
    monkeypatch.setattr(cached_loader.CachedLoader, "_keep", kept)
    monkeypatch.setattr(cached_loader.CachedLoader, "_wait", lambda self: (done.append("wait"), wait(self)))
    with load_views(photos[0], **{**OPTIONS, "crops": "scene"}, cache="host") as loader:
        next(iter(loader))
    assert done == [*range(10), "wait", *range(10, 20), "wait", *range(20, 24), "wait"]


def test_closing_waits_for_the_kernels_that_read(photos):
    """Once the cache's memory was another tensor's while kernels in the side stream still read it."""
    said = []
    loader = load_views(photos[0], **{**OPTIONS, "crops": "scene"}, cache="host")
    next(iter(loader))
    last = SimpleNamespace(synchronize=lambda: said.append(bool(loader._held)))
    loader._read_later.append((last, "images"))
    loader.close()
    assert said == [True] and not loader._read_later and not loader._held


def test_what_does_not_fit_is_refused_before_it_starts(photos, monkeypatch):
    catalog, boxes = photos
    monkeypatch.setattr(cached_loader, "available_memory", lambda: (2 << 30) + 1_000_000)
    with pytest.raises(ObjcropError, match=r"decoded images take 0\.0 GB.*give a cache_side"):
        load_views(catalog, boxes=boxes, **OPTIONS, cache="host")
    load_views(catalog, boxes=boxes, **OPTIONS, cache="host", cache_side=32).close()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "100")
    with pytest.raises(ObjcropError, match=r"for each of 100 processes.*a smaller cache_side"):
        load_views(catalog, boxes=boxes, **OPTIONS, cache="host", cache_side=32)
    assert cached_loader.available_memory() > 0


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(cache="disk"), "one of: device, host"),
        (dict(cache="host", backend="torch"), "backend='dali'"),
        (dict(cache="device"), "needs device='cuda'"),
        (dict(cache_side=64), "give cache='device' or 'host' too"),
        (dict(cache="host", cache_side=16), "views of 32 px need at least as much"),
    ],
)
def test_wrong_use(photos, options, word):
    catalog, boxes = photos
    with pytest.raises(UsageError, match=word):
        load_views(catalog, boxes=boxes, **OPTIONS, **options)


@pytest.mark.gpu
@pytest.mark.parametrize("cache", ["host", "device"])
def test_on_the_gpu(photos, cache):
    catalog, boxes = photos
    with (
        load_views(catalog, boxes=boxes, **OPTIONS, device="cuda") as plain,
        load_views(catalog, boxes=boxes, **OPTIONS, device="cuda", cache=cache) as cached,
    ):
        for _ in range(2):
            for one, other in zip(plain, cached, strict=True):
                assert torch.equal(one.index, other.index)
                for a, b in zip(one.views, other.views):
                    assert b.is_cuda and float((a - b).abs().mean()) < 0.05
