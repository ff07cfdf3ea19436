"""What is measured beside our loaders does what it says: views of the right shape, normalised, without end."""

import io
import sys
from contextlib import closing
from dataclasses import replace
from itertools import islice
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from objcrop.bench.ceilings import cached_batch, decode_union, decode_whole, read_only
from objcrop.bench.loader import CONTENDERS, QUICKER, measure
from objcrop.bench.rivals.batch_decoded import nvimgcodec_v2, torchcodec_v2
from objcrop.bench.rivals.dali_torchvision import dali_torchvision
from objcrop.bench.rivals.solo_dali import solo_dali
from objcrop.bench.rivals.torchvision_v2 import torchvision_v2
from objcrop.bench.rivals.wanted import Wanted, shuffled
from objcrop.child_process import Child
from objcrop.dali_pipes.decode_crop_resize import union_of
from objcrop.exif import stored_size, stored_windows

SIZE, BATCH = 48, 5


@pytest.fixture
def wanted(photos, tmp_path):
    catalog, boxes = photos
    return Wanted(catalog, boxes, "obj-obj+dilate", SIZE, BATCH, "cpu", 0, 2, tmp_path)


def check(begin, wanted):
    with closing(begin(wanted)) as batches:
        found = list(islice(batches, 6))  # more than the catalog holds once
    assert all(len(batch) == BATCH for batch in found)
    for place in (0, 1):
        views = torch.cat([batch.views[place] for batch in found])
        assert views.shape == (6 * BATCH, 3, SIZE, SIZE) and views.dtype == torch.float32
        # Normalised: between black and white, and somewhere around the middle.
        assert views.min() > -2.2 and views.max() < 2.7 and views.mean().abs() < 1 and 0.1 < views.std() < 2
        grey = views * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        grey = grey + torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        share = (grey.amax(1) - grey.amin(1) < 0.01).flatten(1).all(1).float().mean()
        assert share < 0.7
    assert not torch.equal(found[0].views[0], found[0].views[1])


def test_torchvision_v2(wanted):
    check(torchvision_v2, wanted)


def test_solo_dali(wanted):
    check(lambda wanted: solo_dali(wanted, "cpu"), wanted)


def test_torchcodec(wanted, monkeypatch):
    """By a stand-in with the signature of torchcodec 0.17: sources, then keywords alone."""
    asked = []

    def decode_jpeg(source, *, mode="RGB", output_dtype=torch.uint8, device="cpu"):
        asked.append((mode, device))
        assert isinstance(source, list) and all(type(data) is bytes for data in source)
        images = (Image.open(io.BytesIO(data)).convert(mode) for data in source)
        return [torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).to(device) for image in images]

    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    decoders = ModuleType("torchcodec.decoders")
    decoders.decode_jpeg = decode_jpeg
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)
    check(lambda wanted: torchcodec_v2(wanted, "cpu"), wanted)
    assert asked == [("RGB", "cpu")] * 6  # a batch at once


def test_nvimgcodec(wanted):
    pytest.importorskip("nvidia.nvimgcodec")
    check(lambda wanted: nvimgcodec_v2(wanted, "cpu"), wanted)


def test_dalis_torchvision(wanted, monkeypatch):
    pytest.importorskip("nvidia.dali.experimental.torchvision", reason="DALI 2.3 and older have none")
    # It asks for the current CUDA stream even on a CPU.
    monkeypatch.setattr("nvidia.dali.types._get_default_stream_for_array", lambda array: None)
    check(lambda wanted: dali_torchvision(wanted, "cpu"), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, c in CONTENDERS.items() if c.needs_gpu and not c.ours])
def test_on_a_gpu(name, wanted):
    """Each in a process of its own: these libraries die by signals."""
    reason = CONTENDERS[name].left_out("cuda")
    if reason:
        pytest.skip(reason)
    with Child(measure) as child:
        watch, _ = child(replace(wanted, device="cuda"), name, 2)
    assert watch.images == [2 * QUICKER * BATCH]


def test_ceilings_hand_out_what_they_say(wanted):
    with closing(read_only(wanted)) as batches:
        assert bytes(next(batches)[0][:3]) in (b"\xff\xd8\xff", b"\x89PN")
    with wanted.loader() as loader:
        plan = loader.batches.plan((0, 0))
    with closing(decode_whole(wanted)) as batches:
        whole = [image.shape for image in map(np.asarray, next(batches))]
    stored = [stored_size(wanted.catalog, row) for row in plan.row]
    assert [shape[1::-1] for shape in whole] == stored
    with closing(decode_union(wanted)) as batches:
        part = [image.shape for image in map(np.asarray, next(batches))]
    facts = wanted.catalog.sizes[plan.row], wanted.catalog.orientations[plan.row]
    x0, y0, x1, y1 = stored_windows(union_of(plan.windows)[:, None], *facts)[:, 0].T
    assert part == list(zip(y1 - y0, x1 - x0, [3] * BATCH))


def test_a_cached_batch_is_the_first_one(wanted):
    with wanted.loader() as loader:
        first = next(iter(loader))
    with closing(cached_batch(wanted)) as batches:
        found = list(islice(batches, 12))
    assert all(torch.equal(batch.views[0], first.views[0]) for batch in found)


def test_every_epoch_has_every_image_once():
    order = list(islice(shuffled(7), 21))
    epochs = [order[:7], order[7:14], order[14:]]
    assert all(sorted(epoch) == list(range(7)) for epoch in epochs) and epochs[0] != epochs[1]


def test_whatever_cannot_run_says_why():
    assert CONTENDERS["dali, cuda"].left_out("cpu") == "needs a GPU"
    assert CONTENDERS["dali, cpu"].left_out("cpu") is None
    assert replace(CONTENDERS["dali, cpu"], package="no.such.package").left_out("cpu") == "not installed"
