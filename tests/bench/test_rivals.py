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
from objcrop.bench.contenders import CONTENDERS
from objcrop.bench.loader import QUICKER, measure
from objcrop.bench.rivals.wanted import Wanted
from objcrop.child_process import Child
from objcrop.dali_pipes.decode_crop_resize import union_of
from objcrop.exif import stored_size, stored_windows

SIZE, BATCH = 48, 5


@pytest.fixture
def wanted(photos, tmp_path):
    catalog, boxes = photos
    return Wanted(catalog, boxes, "obj-obj+dilate", SIZE, BATCH, "cpu", 0, 2, tmp_path)


def check(contender, wanted):
    contender.convert(wanted)
    with closing(contender.batches(wanted)) as batches:
        found = list(islice(batches, 6))  # more than the catalog holds once
    assert all(len(batch) == len(batch.index) == BATCH for batch in found)
    rows = torch.cat([batch.index for batch in found]).tolist()
    assert min(rows) >= 0 and max(rows) < len(wanted.catalog) and len(set(rows)) > BATCH
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


ON_A_CPU = [name for name, contender in CONTENDERS.items() if not contender.ours and not contender.needs_gpu]


@pytest.mark.parametrize("name", ON_A_CPU)
def test_views(name, wanted):
    if why := CONTENDERS[name].left_out("cpu"):
        pytest.skip(why)
    check(CONTENDERS[name], wanted)


def stand_in(monkeypatch, **functions):
    """Put decoders with the signatures of torchcodec 0.17 in its place."""
    decoders = ModuleType("torchcodec.decoders")
    vars(decoders).update(functions)
    monkeypatch.setitem(sys.modules, "torchcodec", ModuleType("torchcodec"))
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", decoders)


def pixels_of(source, mode="RGB"):
    return torch.from_numpy(np.asarray(Image.open(source).convert(mode)).copy()).permute(2, 0, 1)


def test_torchcodec_in_workers(wanted, monkeypatch):
    stand_in(monkeypatch, decode_image=lambda source, *, mode="RGB": pixels_of(source, mode))
    check(CONTENDERS["torchvision v2, torchcodec"], wanted)


def test_torchcodec_of_batches(wanted, monkeypatch):
    asked = []

    def decode_jpeg(source, *, mode="RGB", output_dtype=torch.uint8, device="cpu"):
        asked.append((mode, device))
        assert isinstance(source, list) and all(type(data) is bytes for data in source)
        return [pixels_of(io.BytesIO(data), mode) for data in source]

    stand_in(monkeypatch, decode_jpeg=decode_jpeg)
    gpu = CONTENDERS["torchvision v2, torchcodec, gpu"]
    check(replace(gpu, options={**gpu.options, "device": "cpu"}), wanted)
    assert len(asked) >= 6 and set(asked) == {("RGB", "cpu")}  # a batch at once


def test_dalis_torchvision(wanted, monkeypatch):
    pytest.importorskip("nvidia.dali.experimental.torchvision", reason="DALI 2.3 and older have none")
    # It asks for the current CUDA stream even on a CPU.
    monkeypatch.setattr("nvidia.dali.types._get_default_stream_for_array", lambda array: None)
    gpu = CONTENDERS["DALI's torchvision, gpu"]
    check(replace(gpu, options={"device": "cpu"}), wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("name", [name for name, c in CONTENDERS.items() if c.needs_gpu and not c.ours])
def test_on_a_gpu(name, wanted):
    """Each in a process of its own: these libraries die by signals."""
    reason = CONTENDERS[name].left_out("cuda")
    if reason:
        pytest.skip(reason)
    with Child(measure) as child:
        taken = child(replace(wanted, device="cuda"), name, 2)
    assert taken.watch.images == [2 * QUICKER * BATCH]


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


def test_rows_of_ranks_and_epochs(wanted):
    """Every path once between the ranks, in another order each epoch; the files as often as asked."""
    asked = replace(wanted, files=("a", "b", "c"), times=2, world_size=2)
    epochs = [[replace(asked, rank=rank).rows(epoch) for rank in range(2)] for epoch in range(2)]
    assert asked.paths() == ["a", "b", "c"] * 2
    assert all(sorted(one + two) == list(range(6)) for one, two in epochs) and epochs[0] != epochs[1]


def test_whatever_cannot_run_says_why():
    assert CONTENDERS["dali, cuda"].left_out("cpu") == "needs a GPU"
    assert CONTENDERS["dali, cpu"].left_out("cpu") is None
    assert replace(CONTENDERS["dali, cpu"], package="no.such.package").left_out("cpu") == (
        "not installed: pip install no.such.package"
    )
