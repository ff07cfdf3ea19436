"""The graph that a GPU runs: its arithmetic on a CPU, and its operators' names without a GPU."""

import inspect
from collections import deque
from types import SimpleNamespace
from unittest.mock import create_autospec

import numpy as np
import pytest
import torch
from nvidia.dali import Pipeline
from PIL import Image, ImageOps

from objcrop.dali_pipes.dali_loader import _GraphRun
from objcrop.dali_pipes.decode_crop_resize import decode_graph, feed_of, orientations_of
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.read_image import encoded, upright_views

FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


@pytest.mark.parametrize("decode", ["union", "whole"])
def test_views_are_windows_resized(photos, decode):
    catalog, _ = photos
    rng = np.random.default_rng(0)
    sizes = catalog.sizes[:12]
    low = np.floor(rng.uniform(0, 0.5, (12, 2, 2)) * sizes[:, None])
    high = low + np.ceil(rng.uniform(0.3, 0.5, (12, 2, 2)) * sizes[:, None])
    windows = np.concatenate([low, np.minimum(high, sizes[:, None])], 2).astype(np.int32)
    images = [encoded(catalog, row) for row in range(12)]
    assert {image.orientation for image in images} == {1, 6}
    how = dict(batch_size=12, threads=2, prefetch=1, interpolation=tuple(FILTERS), size=40, decode=decode)
    outputs = decode_graph(lambda: feed_of(images, windows, sizes), **how).run()
    views = [upright_views(torch.from_dlpack(each.as_tensor()), orientations_of(images)) for each in outputs]
    for v, name in enumerate(FILTERS):
        for row in range(12):
            image = ImageOps.exif_transpose(Image.open(catalog.path(row))).convert("RGB")
            expected = image.resize((40, 40), FILTERS[name], box=tuple(windows[row, v].tolist()))
            found = np.asarray(views[v][row]).astype(int)
            assert np.abs(found - np.asarray(expected)).mean() < 1.5, (row, name)


@pytest.mark.parametrize("interpolation", [(), ("bilinear", "bicubic")])
@pytest.mark.parametrize("decode", ["union", "whole"])
def test_a_gpus_operators_take_these_options(monkeypatch, decode, interpolation):
    """DALI looks at names of options when a graph is defined, which needs no GPU; building it does."""
    monkeypatch.setattr(Pipeline, "build", lambda self: None)
    how = dict(batch_size=2, threads=1, prefetch=2, device="cuda", interpolation=interpolation, size=8, decode=decode)
    assert isinstance(decode_graph(lambda: None, **how), Pipeline)


def test_the_side_stream_reaches_dali():
    """Once it was passed by keyword, which DALI takes for the name of an input."""
    run = object.__new__(_GraphRun)
    run.loader = SimpleNamespace(side_stream="the side stream")
    run._in_flight = deque([((0, 0), "asked", "shown", [])])
    run.pipe = create_autospec(Pipeline, instance=True)
    run.next_batch()
    call = run.pipe.run.call_args
    bound = inspect.signature(Pipeline.run).bind(run.pipe, *call.args, **call.kwargs).arguments
    assert bound == {"self": run.pipe, "cuda_stream": "the side stream"}


@pytest.mark.parametrize("cache", [None, "host"])
@pytest.mark.parametrize("augment", ["none", "moco-v2", "byol"])
def test_a_gpus_way_through_the_loader(photos, augment, cache):
    """Windows to the graph, views coloured batch by batch: on a CPU, with the torch operations of each kernel."""
    catalog, boxes = photos
    options = dict(boxes=boxes, crops="obj-obj+dilate", augment=augment, size=64, batch_size=8)
    with load_views(catalog, **options, backend="torch", workers=0) as loader:
        expected = list(loader)
    with load_views(catalog, **options, cache=cache) as loader:
        loader.batchwise = True
        for ours, other in zip(expected, loader, strict=True):
            assert torch.equal(ours.index, other.index)
            for a, b in zip(ours.views, other.views, strict=True):
                assert b.shape == a.shape and b.is_contiguous(memory_format=torch.channels_last)
                assert (a - b).abs().mean() < 0.03
