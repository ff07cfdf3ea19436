"""A step on a GPU that is not there: PyTorch's fake tensors know their device and hold no numbers.

An operation on tensors of two devices raises, and so does whatever would bring a number back to the host, for which a
real GPU would have to be waited for. What it cannot show are the numbers, the backward pass and fused optimisers.
"""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from objcrop.ssl.online_probe import OnlineProbe
from objcrop.ssl.recipe import resolve
from objcrop.ssl.trainer import METHODS, Run

GPU = torch.device("cuda:0")
SMALL = dict(arch="timm/test_resnet", size=32, batch_size=16, queue=32, dim=16, hidden=32, optimiser="lars", steps=9)


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


@pytest.mark.parametrize("flags", [{}, dict(bn_groups=1), dict(accumulate=2), dict(precision="fp32")], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_a_step_stays_on_the_gpu(method, flags, monkeypatch):
    idle = {"moco-v2": (), "byol": ("queue",), "supervised": ("queue", "dim", "hidden")}[method]
    recipe = resolve(None, {**SMALL, "method": method, **flags, **dict.fromkeys(idle)})
    module = METHODS[method](recipe, ("object", "scene"), False, 5)
    probe = OnlineProbe(96, 5, False)
    with FakeTensorMode():
        run = object.__new__(Run)
        run.recipe, run.device, run.step, run.total, run.batches, run.world = recipe, GPU, 3, 9, 10, 1
        run.method = run.model = moved(module)
        run.probe = moved(probe)
        run.optimiser = run._optimiser()

        def backward(loss):
            assert loss.device == GPU and loss.ndim == 0
            for parameter in (*module.parameters(), *probe.parameters()):
                parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None

        monkeypatch.setattr(torch.Tensor, "backward", backward)
        views = [torch.randn(16, 3, 32, 32, device=GPU) for _ in range(2)]
        watched = run.take_step(SimpleNamespace(views=views, labels=torch.zeros(16, 5)))
    assert run.step == 4 and all(value.device == GPU for value in watched.values())


def test_reading_a_number_back_raises():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        torch.ones(2, device=GPU).sum().item()
