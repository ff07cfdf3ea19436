"""What is decoded and cut out: the same pixels whatever is decoded, for every turn; a GPU's operators without a GPU."""

import inspect
import io
import weakref
from collections import deque
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from conftest import photo
from nvidia.dali import Pipeline
from PIL import Image

from objcrop.dali_pipes.dali_loader import _Fed, _GraphRun
from objcrop.dali_pipes.decode_crop_resize import decode_graph, feed_of, orientations_of, windows_in
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.read_image import Encoded, encoded, open_upright
from objcrop.errors import ObjcropError
from objcrop.kernels.crop_resize import Windows, crop_resize

CPU = torch.device("cpu")


def jpeg(image, **options):
    file = io.BytesIO()
    image.save(file, **{"format": "JPEG", "quality": 85, **options})
    return np.frombuffer(file.getvalue(), np.uint8)


def some_windows(sizes, rng, views=2):
    """Windows (N, V, 4) of all sizes, a third of them tiny, some at the images' edges."""
    sizes = sizes[:, None]
    low = np.floor(rng.uniform(0, 1, (len(sizes), views, 2)) ** 2 * (sizes - 1))
    span = np.where(rng.random((*low.shape[:2], 1)) < 0.34, rng.integers(1, 9, low.shape), rng.random(low.shape) * 150)
    return np.concatenate([low, np.minimum(low + 1 + np.floor(span), sizes)], 2).astype(np.int32)


def decoded(images, windows, sizes, decode, **how):
    feed, inside = feed_of(images, windows, sizes, decode)
    pipe = decode_graph(lambda: feed, batch_size=len(images), threads=2, prefetch=1, decode=decode, **how)
    return pipe.run()[0], inside


KINDS = {
    **{f"jpeg {s}": dict(subsampling=s) for s in ("4:4:4", "4:2:2", "4:2:0", "4:1:1")},
    "progressive": dict(subsampling="4:2:0", progressive=True),
    "restarts": dict(subsampling="4:2:0", restart_marker_blocks=3),
    "grey": dict(),
    "png": dict(format="PNG"),
    "webp": dict(format="WEBP"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_is_decoded_as_the_whole_is(kind):
    """To the bit, up to the part's edges: chroma there is made of neighbours outside."""
    rng = np.random.default_rng(1)
    pictures = [photo(*size, seed) for seed, size in enumerate([(161, 123), (97, 200), (64, 64), (33, 17)] * 8)]
    if kind == "grey":
        pictures = [picture.convert("L") for picture in pictures]
    images = [Encoded(jpeg(picture, **KINDS[kind]), 1) for picture in pictures]
    sizes = np.array([picture.size for picture in pictures], np.int32)
    windows = some_windows(sizes, rng, views=1)
    part, _ = decoded(images, windows, sizes, "union")
    whole, _ = decoded(images, windows, sizes, "whole")
    for i, (x0, y0, x1, y1) in enumerate(windows[:, 0].tolist()):
        np.testing.assert_array_equal(np.asarray(part[i]), np.asarray(whole[i])[y0:y1, x0:x1])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("decode", ["union", "whole"])
def test_views_are_windows_alone_whatever_is_decoded(turned, decode, interpolation):
    catalog, _ = turned
    rows = range(len(catalog))
    windows = some_windows(catalog.sizes, np.random.default_rng(2))
    # Three of them go PIL's way: a copy that holds no more than the union.
    unions = np.concatenate([windows[..., :2].min(1), windows[..., 2:].max(1)], 1)
    images = [encoded(catalog, row, unions[row], by_pil=row in (4, 9, 13)) for row in rows]
    assert any(image.corner != (0, 0) for image in images)
    pixels, inside = decoded(images, windows, catalog.sizes, decode)
    there = windows_in(pixels, inside, orientations_of(images))
    for v in range(2):
        views = crop_resize(Windows(*(part[v] for part in there)), 40, interpolation, CPU)
        for row in rows:
            x0, y0, x1, y1 = windows[row, v]
            pixels = np.ascontiguousarray(np.array(open_upright(catalog, row))[y0:y1, x0:x1])
            shape = np.array([[x1 - x0, y1 - y0]])
            alone = Windows(np.array([pixels.ctypes.data]), np.array([[3, 3 * (x1 - x0)]]), shape)
            assert torch.equal(views[row], crop_resize(alone, 40, interpolation, CPU)[0]), row


def test_an_image_of_another_size_than_its_header_says_is_refused(turned):
    catalog, _ = turned
    images, sizes = [encoded(catalog, row) for row in range(8)], catalog.sizes[:8]
    windows = some_windows(sizes, np.random.default_rng(0))
    pixels, inside = decoded(images, windows, sizes, "whole")
    for beyond in (inside + 200, inside - 200):
        with pytest.raises(ObjcropError, match="another size than its header says"):
            windows_in(pixels, beyond, orientations_of(images))


@pytest.mark.parametrize("decode", ["union", "whole"])
def test_a_gpus_operators_take_these_options(monkeypatch, decode):
    """DALI looks at names of options when a graph is defined, which needs no GPU; building it does."""
    monkeypatch.setattr(Pipeline, "build", lambda self: None)
    how = dict(batch_size=2, threads=1, prefetch=2, device="cuda", decode=decode)
    assert isinstance(decode_graph(lambda: None, **how), Pipeline)


@pytest.mark.parametrize("decode", ["union", "whole"])
def test_the_graph_does_no_arithmetic(decode):
    """An operator on two numbers an image costs as much processor time as planning the batch."""
    pipe = decode_graph(lambda: None, batch_size=2, threads=1, prefetch=2, decode=decode)
    decoders = [operator.name for operator in pipe._ops if "ExternalSource" not in operator.name]
    assert len(decoders) == 1 and "Image" in decoders[0]


def test_the_side_stream_reaches_dali():
    """Once it was passed by keyword, which DALI takes for the name of an input."""
    run = object.__new__(_GraphRun)
    run.loader = SimpleNamespace(side_stream="the side stream")
    run._in_flight = deque([_Fed((0, 0), "asked", "shown", [], [], None)])
    run.pipe = create_autospec(Pipeline, instance=True)
    run.pipe.run.return_value = ("pixels",)
    assert run.next_batch()[1] == "pixels"
    call = run.pipe.run.call_args
    bound = inspect.signature(Pipeline.run).bind(run.pipe, *call.args, **call.kwargs).arguments
    assert bound == {"self": run.pipe, "cuda_stream": "the side stream"}


@pytest.mark.parametrize("cache", [None, "host"])
@pytest.mark.parametrize("augment", ["none", "moco-v2", "byol"])
def test_a_gpus_way_through_the_loader(photos, augment, cache):
    """Windows to the kernels, views coloured batch by batch: on a CPU, with the torch operations of each kernel."""
    catalog, boxes = photos
    options = dict(boxes=boxes, crops="obj-obj+dilate", augment=augment, size=64, batch_size=8)
    with load_views(catalog, **options, backend="torch", workers=0) as loader:
        expected = list(loader)
    with load_views(catalog, **options, cache=cache) as loader:
        loader.batchwise = True
        for ours, other in zip(expected, loader, strict=True):
            assert torch.equal(ours.index, other.index) and torch.equal(ours.labels, other.labels)
            assert torch.equal(ours.requested, other.requested) and torch.equal(ours.substituted, other.substituted)
            for a, b in zip(ours.views, other.views, strict=True):
                assert b.shape == a.shape and b.is_contiguous(memory_format=torch.channels_last)
                assert (a - b).abs().mean() < 0.03


@pytest.mark.parametrize("augment", ["none", "moco-v2", "byol"])  # byol's is bicubic
def test_views_do_not_depend_on_the_way_of_decoding(turned, augment):
    """Union, whole and cache, in a batch and each for itself, at every border, all eight turns: to the bit."""
    catalog, boxes = turned
    options = dict(boxes=boxes, crops="obj-obj", augment=augment, size=31, batch_size=8, min_side=1, seed=3)

    def views(batchwise, decode="union", **more):
        with load_views(catalog, **options, **more) as loader:
            loader.batchwise, loader.decode = batchwise, decode
            return [view for batch in loader for view in batch.views]

    alone, together = views(False), views(True)
    for batchwise, plain in ((False, alone), (True, together)):
        for way in (views(batchwise, "whole"), views(batchwise, cache="host")):
            assert all(torch.equal(a, b) for a, b in zip(plain, way, strict=True))
    if augment == "none":  # else the two ways of colouring differ
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("prefetch", [1, 2, 5])
def test_what_is_fed_is_held_until_it_is_decoded(prefetch):
    """DALI reads arrays where they lie, so none may go before its batch is handed out."""
    alive: list[weakref.ref[np.ndarray]] = []
    files = [jpeg(photo(80, 60, i)) for i in range(4)]

    def feed():
        images = [file.copy() for file in files]
        alive.append(weakref.ref(images[0]))
        return [images]

    pipe = decode_graph(feed, batch_size=4, threads=2, prefetch=prefetch, decode="whole")
    with Image.open(io.BytesIO(files[0].tobytes())) as image:
        expected = np.asarray(image).astype(int)
    for i in range(4 * prefetch):
        (decoded,) = pipe.run()
        assert all(array() is not None for array in alive[i + 1 :])
        np.testing.assert_allclose(np.asarray(decoded[0]), expected, atol=2)
    del pipe, decoded
    assert sum(array() is not None for array in alive) <= prefetch + 2
