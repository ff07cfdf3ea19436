"""A step on a GPU that is not there: PyTorch's fake tensors know their device and hold no numbers.

An operation on tensors of two devices raises, and so does whatever would bring a number back to the host, for which a
real GPU would have to be waited for, and a copy to the GPU that the host waits for. What it cannot show are the
numbers, the backward pass and fused optimisers. How many calls a step is can be counted on the "meta" device, with the
backward pass.
"""

from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from objcrop.dali_pipes.augment import Augment
from objcrop.dali_pipes.view_boxes import ViewBoxes
from objcrop.dali_pipes.view_plan import ViewPlan, colour_decisions
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.methods.method import Data
from objcrop.ssl.networks.shuffle_bn import VirtualBatchNorm
from objcrop.ssl.training.online_probe import OnlineProbe
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.trainer import Run, compile_parts, precision_of

GPU = torch.device("cuda:0")
OF_BOXES = [((4,), torch.float32), ((), torch.int64), ((), torch.int64), ((), torch.float32)]
SMALL = dict(arch="timm/test_resnet", size=32, batch_size=16, queue=32, dim=16, hidden=32, optimiser="lars", steps=9)
SMALL |= dict(local_views=0)
# What a method has in place of these; None where it has no such option.
OWN = {
    "moco-v2": {},
    "byol": dict(queue=None),
    "densecl": {},
    "mae": dict(arch="timm/test_vit", size=64, queue=None, dim=None, hidden=None, bn_groups=None, decoder_dim=32),
    "simclr": dict(queue=None),
    "swav": {},
    "cmc": dict(arch="lab/resnet18", queue=None, hidden=None, negatives=9),
    "soco": dict(queue=None, pyramid_width=8, region_width=16, crops="soco"),
    "supervised": dict(queue=None, dim=None, hidden=None),
}


def moved(module):
    """Put a module's parameters and buffers on the GPU; what it holds besides stays where it is."""
    for part in module.modules():
        for name, held in part._parameters.items():
            if held is not None:
                fake = torch.empty(held.shape, dtype=held.dtype, device=GPU)
                part._parameters[name] = nn.Parameter(fake, requires_grad=held.requires_grad)
        for name, held in part._buffers.items():
            if held is not None:
                part._buffers[name] = torch.empty(held.shape, dtype=held.dtype, device=GPU)
    return module


def batch_of(views, labels, with_boxes=False):
    """What the loader hands out, as far as a step looks at it; on demand with three boxes in every second image."""
    plan = colour_decisions(np.arange(len(labels)), (Augment(),) * len(views), seed=0, epoch=0)
    windows = np.zeros((len(labels), len(views), 4), np.int32)
    rows = np.arange(len(labels))
    plan = ViewPlan(sample=rows, row=rows, box=rows, regions=windows, windows=windows, **plan)
    index = torch.arange(len(labels), device=labels.device)
    sample = (index[::2, None] + torch.zeros(3, dtype=torch.int64, device=index.device)).flatten()
    corners = torch.zeros(len(sample), 4, device=index.device)
    corners[:, 2:] = 9
    found = ViewBoxes(corners, sample, torch.arange(len(sample), device=index.device) % 3, corners[:, 0])
    return SimpleNamespace(views=views, labels=labels, index=index, plan=plan, boxes=(found,) * len(views) * with_boxes)


def run_of(recipe, method, device):
    """A run in its midst, without loader and folder."""
    run = object.__new__(Run)
    run.recipe, run.device, run.step, run.total, run.batches, run.world = recipe, device, 3, 9, 10, 1
    run.method = run.model = method
    run.probe, run.optimiser, run.precision = None, run._optimiser(), precision_of(recipe, device)
    return run


class NoWaitedCopies(TorchDispatchMode):
    """Refuses copies from the host to the GPU but those that do not block, from page-locked memory."""

    def __init__(self, page_locked=()):
        super().__init__()
        self.page_locked, self.copies = page_locked, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if func in (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default):
            source = args[func is torch.ops.aten.copy_.default]
            if source.device.type == "cpu" and made.device == GPU:
                unblocked = kwargs.get("non_blocking") or True in args[2:]
                assert unblocked and any(source is tensor for tensor in self.page_locked), "the host waits for a copy"
                self.copies += 1
        return made


def sides_of(recipe, method):
    return [recipe.size] * min(2, method.takes[-1]) + [recipe.local_size] * recipe.local_views


def refused(method, flags):
    """Skip what a method refuses."""
    if "accumulate" in flags and not METHODS[method].options.in_parts:
        pytest.skip("it takes a step as a whole")
    if "local_views" in flags and not METHODS[method].multi_crop:
        pytest.skip("it has no use for local views")


FLAGS = [{}, dict(bn_groups=1), dict(accumulate=2), dict(precision="fp32"), dict(local_views=4, local_size=16)]


@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_stays_on_the_gpu_and_waits_for_nothing(method, flags, monkeypatch):
    refused(method, flags)
    recipe = resolve(None, {**SMALL, "method": method, **flags, **OWN[method]})
    module = METHODS[method](recipe, Data(("object", "scene") * 3, classes=5, samples=40))
    probe = OnlineProbe(module.encoder.width, 5, False)
    page_locked = []
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (page_locked.append(tensor), tensor)[1])
    with FakeTensorMode():
        run = run_of(recipe, moved(module), GPU)
        run.probe = moved(probe)

        def backward(loss):
            assert loss.device == GPU and loss.ndim == 0
            for parameter in (*module.parameters(), *probe.parameters()):
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        views = [torch.randn(16, 3, side, side, device=GPU) for side in sides_of(recipe, module)]
        labels = torch.zeros(16, 5, device=GPU)
        with NoWaitedCopies(page_locked) as copies:
            watched = run.take_step(batch_of(views, labels, module.needs_boxes))
    assert run.precision == (recipe.precision or "bf16")
    assert run.step == 4 and all(value.device == GPU for value in watched.values())
    shuffles = method in ("moco-v2", "densecl") and recipe.bn_groups != 1
    assert copies.copies == (method in ("mae", "cmc", "soco") or shuffles)  # a permutation, the samples or draws


def test_boxes_are_dealt_without_a_wait(monkeypatch):
    page_locked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: (page_locked.append(tensor), tensor)[1])
    with FakeTensorMode():
        found = ViewBoxes(*(torch.zeros(5, *more, dtype=kind, device=GPU) for more, kind in OF_BOXES))
        place = torch.arange(4)
        with NoWaitedCopies(page_locked) as copies:
            moved = found.moved(place)
    assert copies.copies == 1 and all(tensor.device == GPU for tensor in moved.tensors())


def test_reading_a_number_back_raises():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(2, device=GPU).sum().item()


def test_copies_that_the_host_waits_for_are_seen():
    with FakeTensorMode():
        on_host = torch.arange(3)
        for page_locked, copy in [
            ([], lambda: on_host.to(GPU)),
            ([on_host], lambda: on_host.to(GPU)),
            ([], lambda: on_host.to(GPU, non_blocking=True)),
            ([on_host], lambda: torch.empty(3, dtype=torch.int64, device=GPU).copy_(on_host)),
        ]:
            with NoWaitedCopies(page_locked), pytest.raises(AssertionError, match="waits"):
                copy()
        with NoWaitedCopies([on_host]):
            on_host.to(GPU, non_blocking=True)
            torch.empty(3, dtype=torch.int64, device=GPU).copy_(on_host, True)
            torch.arange(3, device=GPU)


class Calls(TorchDispatchMode):
    """Counts operators but views; one of ours is one."""

    def __init__(self):
        super().__init__()
        self.counted = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counted[str(func)] += not func.is_view
        return func(*args, **(kwargs or {}))


def test_a_step_of_resnet50_is_few_calls():
    recipe = resolve(None, dict(arch="resnet50", size=33, batch_size=16, queue=32, dim=16, steps=9, bn_groups=8))
    run = run_of(recipe, METHODS["moco-v2"](recipe, Data(("object", "scene"))).to("meta"), torch.device("meta"))
    trained = [p for p in run.method.parameters() if p.requires_grad]
    run.optimiser = torch.optim.SGD(trained, 0.1, momentum=0.9, foreach=True)  # on a GPU it is fused
    batch = batch_of([torch.empty(16, 3, 33, 33, device="meta") for _ in range(2)], torch.empty(16, 0, device="meta"))
    run.take_step(batch)  # makes the velocities
    with Calls() as calls:
        run.take_step(batch)
    norms = sum(isinstance(module, VirtualBatchNorm) for module in run.method.modules())
    assert norms == 106
    assert calls.counted["objcrop.batch_norm.default"] == norms
    assert calls.counted["objcrop.batch_norm_backward.default"] == norms // 2
    assert calls.counted.total() <= 1400, calls.counted.most_common(20)


@pytest.mark.gpu
@pytest.mark.parametrize("flags", FLAGS, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_a_step_waits_for_nothing(method, flags):
    refused(method, flags)
    recipe = resolve(None, {**SMALL, "method": method, "device": "cuda", **flags, **OWN[method]})
    run = run_of(recipe, METHODS[method](recipe, Data(("object", "scene") * 3, classes=5, samples=40)).to(GPU), GPU)
    run.probe = OnlineProbe(run.method.encoder.width, 5, False).to(GPU)
    views = [torch.randn(16, 3, side, side, device=GPU) for side in sides_of(recipe, run.method)]
    views = [view.to(memory_format=torch.channels_last) for view in views]
    batch = batch_of(views, torch.zeros(16, 5, device=GPU), run.method.needs_boxes)
    for _ in range(3):  # compile kernels, choose convolutions, make memory
        run.take_step(batch)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        watched = run.take_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.isfinite(value) for value in watched.values())


COMPILED = [{}, dict(bn_groups=1), dict(accumulate=2), dict(local_views=4, local_size=48)]


@pytest.mark.gpu
@pytest.mark.parametrize("flags", COMPILED, ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_on_a_gpu_compiled_as_graphs_it_learns_the_same(method, flags, monkeypatch):
    """A graph's tensors are written anew by its next run: what a method still holds of the step before would change.

    Losses of 6 steps, on other views each, from the same weights; the first runs of a graph warm up and record. Maps of
    a single pixel are avoided: Inductor takes their gradients to lie as they do not (PyTorch 2.11).
    """
    refused(method, flags)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.compiler.reset()  # what other tests compiled counts towards a limit
    torch._dynamo.utils.counters.clear()
    flags = {**SMALL, "method": method, "device": "cuda", "precision": "fp32", **flags, **OWN[method], "size": 64}
    recipe = resolve(None, {**flags, "optimiser": "sgd", "base_lr": 0.02})
    data = Data(("object", "scene") * 3, classes=5, samples=40)
    torch.manual_seed(0)
    weights = METHODS[method](recipe, data).state_dict()
    losses = []
    for compiled in (False, True):
        made = METHODS[method](recipe, data)
        made.load_state_dict(weights)
        run = run_of(replace(recipe, compile=compiled), made.to(GPU), GPU)
        if compiled:
            compile_parts(made, GPU)
        run.probe = OnlineProbe(run.method.encoder.width, 5, False).to(GPU)
        random = torch.Generator().manual_seed(1)
        losses.append([])
        for _ in range(6):
            views = [torch.randn(16, 3, side, side, generator=random) for side in sides_of(recipe, run.method)]
            views = [view.to(GPU, memory_format=torch.channels_last) for view in views]
            torch.manual_seed(run.step)
            watched = run.take_step(batch_of(views, torch.zeros(16, 5, device=GPU), run.method.needs_boxes))
            losses[-1].append(watched["loss"].item())
    assert len(set(losses[0])) > 1, "nothing was learnt"
    assert losses[1] == pytest.approx(losses[0], rel=2e-2, abs=1e-2)
    counted = torch._dynamo.utils.counters
    assert counted["inductor"]["cudagraph_skips"] == 0 and counted["stats"]["unique_graphs"] > 0
