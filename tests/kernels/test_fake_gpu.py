"""Launches on a GPU that is not there, by PyTorch's fake tensors: right arguments and device, nothing read back."""

import re

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from objcrop.dali_pipes.augment import augment_recipe
from objcrop.dali_pipes.view_plan import colour_decisions
from objcrop.kernels import batch_norm as norm
from objcrop.kernels import nvrtc
from objcrop.kernels.anchor_score import anchor_shapes, normalise_maps, score_anchors
from objcrop.kernels.bing import _between, bing, load_bing, window_boxes
from objcrop.kernels.colour import colour
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.crop_resize import Windows, crop_resize
from objcrop.kernels.nms import nms_topk
from objcrop.proposals.bing import WEIGHTS

GPU = torch.device("cuda:0")
MODEL, SHAPES = load_bing(WEIGHTS), anchor_shapes()
POINTERS = {
    "float": torch.float32,
    "int": torch.int32,
    "long long": torch.int64,
    "unsigned char": torch.uint8,
    "bool": torch.bool,
}
NUMBERS = {"float": np.float32, "int": np.int32, "double": np.float64}


@pytest.fixture(autouse=True)
def no_fakes_are_kept():
    yield
    for kept in (_between, window_boxes):
        kept.cache_clear()


def parameters(name, function):
    """The types of a kernel's parameters, by its source, such as "const float*"."""
    source = (nvrtc.FOLDER / f"{name}.cu").read_text()
    found = re.search(rf"__global__ void {function}\s*\((.*?)\)", source, re.DOTALL)[1]
    return [re.sub(r"\s*\w+$", "", one.strip()) for one in found.split(",")]


def launched(name, function, grid, block, arguments, shared_bytes=0):
    for kind, argument in zip(parameters(name, function), arguments, strict=True):
        if isinstance(argument, torch.Tensor):
            pointed = kind.removeprefix("const ").removesuffix("*")
            assert kind.endswith("*") and pointed in ("void", *POINTERS), kind
            assert pointed == "void" or argument.dtype == POINTERS[pointed], (function, kind, argument.dtype)
            dense = argument.is_contiguous() or argument.is_contiguous(memory_format=torch.channels_last)
            assert argument.device == GPU and dense
        else:
            assert type(argument) is NUMBERS[kind], (function, kind, type(argument))
    assert 1 <= len(grid) <= 3 and np.prod(block) <= 1024 and all(n > 0 for n in grid)


def colours(dtype):
    (augment,) = augment_recipe("byol", 1)
    drawn = colour_decisions(np.arange(4), (augment,), seed=0, epoch=0)
    decisions = Decisions(**{name: torch.from_numpy(array[:, 0].copy()).to(GPU) for name, array in drawn.items()})
    pixels = torch.empty(4, 32, 32, 3, dtype=torch.uint8, device=GPU)
    views = colour(pixels, decisions, augment.mean, augment.std, dtype)
    assert views.shape == (4, 3, 32, 32) and views.dtype == dtype
    assert views.is_contiguous(memory_format=torch.channels_last)
    return [views]


def anchors():
    maps = normalise_maps(torch.rand(2, 5, 7, device=GPU))
    boxes, scores = score_anchors(maps, torch.full((2, 2), 64, device=GPU), SHAPES.to(GPU))
    return [boxes, scores, *nms_topk(scores, boxes, 5, 0.5)]


def normed(dtype):
    weight = torch.ones(24, dtype=torch.promote_types(dtype, torch.float32), device=GPU)
    x = torch.empty(8, 24, 3, 5, dtype=dtype, device=GPU).to(memory_format=torch.channels_last)
    y, seen, saved = norm._forward(x, weight, weight, 2, 1e-5, False)
    dx, slopes = norm._backward(x.new_empty(x.shape), x, weight, saved, 2, 1e-5, False)
    made = [y, seen, saved, dx, slopes]
    said = norm._operator(x, weight, weight, 2, 1e-5, False)
    said += norm._backward_operator(dx, x, weight, saved, 2, 1e-5, False)
    for one, other in zip(made, said, strict=True):  # what PyTorch is told of the operators
        assert (one.shape, one.dtype, one.stride()) == (other.shape, other.dtype, other.stride())
    assert y.dtype == dx.dtype == dtype and y.stride() == dx.stride() == x.stride()
    return made


def resized():
    corners, steps = torch.zeros(2, dtype=torch.int64, device=GPU), torch.ones(2, 2, dtype=torch.int32, device=GPU)
    return [crop_resize(Windows(corners, steps, steps), 8, "bicubic", GPU)]


def suppressed():
    return nms_topk(torch.rand(2, 20, device=GPU), torch.ones(2, 20, 4, dtype=torch.int32, device=GPU), 5, 0.5)


def binged():
    return bing(torch.rand(2, 3, MODEL.canvas, MODEL.canvas, device=GPU), MODEL.to(GPU))


NORMS = [lambda dtype=dtype: normed(dtype) for dtype in (torch.bfloat16, torch.float32, torch.float64)]


@pytest.mark.parametrize(
    "call", [lambda: colours(torch.bfloat16), lambda: colours(torch.float32), anchors, resized, *NORMS]
)
def test_kernels_get_what_their_sources_ask_for(call, monkeypatch):
    monkeypatch.setattr(nvrtc, "available", lambda: True)
    for name in ("most_shared_bytes", "shared_bytes_of_multiprocessor"):
        monkeypatch.setattr(nvrtc, name, lambda device: 227 * 1024)
    calls = []
    monkeypatch.setattr(nvrtc, "launch", lambda *words: (calls.append(words[1]), launched(*words)))
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert all(tensor.device == GPU for tensor in call())
    assert calls


@pytest.mark.parametrize("call", [lambda: colours(torch.bfloat16), suppressed, binged])
def test_torchs_operations_stay_on_the_gpu(call, monkeypatch):
    """A size that a GPU was asked for, one after another, once had it waited for 36 times a batch."""
    monkeypatch.setattr(nvrtc, "available", lambda: False)
    assert MODEL.sizes and MODEL.whole_template  # known before it moves
    with FakeTensorMode(allow_non_fake_inputs=True):
        assert all(tensor.device == GPU for tensor in call())


def test_bing_copies_nothing_to_a_gpu_twice(monkeypatch):
    """What every batch needs was once copied anew for each of 36 sizes, and each copy waited for all before it."""
    assert MODEL.sizes and MODEL.whole_template
    with FakeTensorMode(allow_non_fake_inputs=True):
        binged()
        monkeypatch.setattr(torch, "from_numpy", lambda array: pytest.fail("copied again"))
        binged()


@pytest.mark.parametrize("crops", ["obj-obj+dilate", "scene"])
def test_a_batch_of_the_loader_is_made_by_kernels_alone(photos, crops, monkeypatch):
    """From windows in memory to the views: nothing is read back, and each kernel gets what its source asks for."""
    from objcrop.dali_pipes import dali_loader
    from objcrop.dali_pipes.decode_crop_resize import windows_at
    from objcrop.dali_pipes.load_views import load_views
    from objcrop.dali_pipes.torch_loader import assemble

    def sent(arrays, device):
        assert device == GPU
        torch_kind = {name: torch.from_numpy(np.empty(0, array.dtype)).dtype for name, array in arrays.items()}
        return {name: torch.empty(array.shape, dtype=torch_kind[name], device=GPU) for name, array in arrays.items()}

    calls = []
    monkeypatch.setattr(nvrtc, "available", lambda: True)
    monkeypatch.setattr(nvrtc, "most_shared_bytes", lambda device: 227 * 1024)
    monkeypatch.setattr(nvrtc, "shared_bytes_of_multiprocessor", lambda device: 228 * 1024)
    monkeypatch.setattr(nvrtc, "launch", lambda *words: (calls.append(words[1]), launched(*words)))
    monkeypatch.setattr(dali_loader, "to_device", sent)
    options = dict(boxes=photos[1] if crops != "scene" else None, crops=crops, size=32, batch_size=8, dtype="bf16")
    with load_views(photos[0], **options) as loader:
        plan = loader.batches.plan((0, 0))
        windows = windows_at(np.zeros(8, np.int64), plan.windows, loader.catalog.sizes[plan.row, 0])
        about = assemble(loader.planner, plan, plan, [])
        there = {id(tensor): tensor.numpy() for tensor in about.tensors()}
        monkeypatch.setattr(torch.Tensor, "numpy", lambda self: there[id(self)])
        loader.device, loader.batchwise = GPU, True
        loader.__dict__["side_stream"] = None
        with FakeTensorMode(allow_non_fake_inputs=True):
            batch = loader._finish_batch(about, windows, "the images")
        loader.device = torch.device("cpu")
    assert [name.split("_")[0] for name in calls] == ["crop", "luma", "colour"] * len(batch.views) and batch.views
    assert all(tensor.device == GPU for tensor in batch.tensors())
    assert all(view.shape == (8, 3, 32, 32) and view.dtype == torch.bfloat16 for view in batch.views)
    assert (batch.index.dtype, batch.labels.shape[0], batch.substituted.dtype) == (torch.int64, 8, torch.bool)


def test_signatures_are_read():
    assert parameters("nms", "nms_topk") == [
        *("float*", "const int*", "int", "int", "double", "long long*", "float*"),
    ]
