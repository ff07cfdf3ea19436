"""What whole steps in float64 are compared by: a run without loader or folder, and a twin's parts by formulas."""

import math
from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from objcrop.dali_pipes.augment import Augment
from objcrop.dali_pipes.view_plan import ViewPlan, colour_decisions
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.methods.method import Data
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.trainer import Run

STEPS, N = 5, 24  # of fewer rows BatchNorm makes much of the last digit, step after step
ROLES = ("object", "scene")


def run_in_float64(roles=ROLES, heads_shared=False, samples=0, **options):
    """A run at step 0 of N rows."""
    given = {"arch": "timm/test_resnet", "batch_size": N, "steps": STEPS, "dim": 6, "hidden": 10, **options}
    recipe = resolve(None, given)
    torch.manual_seed(1)
    module = METHODS[recipe.method](recipe, Data(roles, heads_shared, samples=samples)).double()
    with torch.no_grad():
        for p in module.parameters():  # timm's last norm of a block begins at 0, where ReLU's derivative is anybody's
            p += 0.1 * torch.randn_like(p) if p.ndim == 1 else 0
    if hasattr(module, "momentum_encoder"):
        module.momentum_encoder.load_state_dict(module.encoder.state_dict())
    run = object.__new__(Run)
    run.recipe, run.device, run.step = recipe, torch.device("cpu"), 0
    run.total = run.batches = recipe.steps
    run.method = run.model = module
    run.probe, run.precision, run.world = None, "fp32", 1
    run.optimiser = run._optimiser()
    return run


def drawn_views(step, *sides):
    generator = torch.Generator().manual_seed(100 + step)
    views = [torch.randn(N, 3, side, side, dtype=torch.float64, generator=generator) for side in sides]
    return [view.contiguous(memory_format=torch.channels_last) for view in views]


def batch_of(views, boxes=(), windows=None, flip=None):
    """What the loader hands out, as far as a step looks at it."""
    rows = np.arange(N)
    decided = colour_decisions(rows, (Augment(),) * len(views), seed=0, epoch=0)
    decided["flip"] = decided["flip"] if flip is None else flip
    windows = np.zeros((N, len(views), 4), np.int32) if windows is None else windows
    plan = ViewPlan(sample=rows, row=rows, box=rows, regions=windows, windows=windows, **decided)
    return SimpleNamespace(views=views, labels=torch.zeros(N, 0), index=torch.arange(N), plan=plan, boxes=boxes)


def of_role(heads, role):
    return heads[role] if role in heads else heads["all"]


def companies(groups):
    """The rows of each virtual device."""
    return [list(range(device, N, groups)) for device in range(groups)]


def in_passes(net, passes):
    """What each company's pass gives, and the running statistics that it leaves: their mean over the companies."""
    norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
    sums = [(torch.zeros_like(mean), torch.zeros_like(var)) for mean, var in before]
    out = []
    for one in passes:
        for m, (mean, var) in zip(norms, before):
            m.running_mean, m.running_var = mean.clone(), var.clone()
        out.append(one())
        for m, (mean, var) in zip(norms, sums):
            mean += m.running_mean
            var += m.running_var
    for m, (mean, var) in zip(norms, sums):
        m.running_mean, m.running_var = mean / len(passes), var / len(passes)
    return out


def unit(x):
    return x / x.square().sum().sqrt()


def follow(slow, fast, momentum):
    with torch.no_grad():
        theirs = dict(fast.named_parameters())
        for name, p in slow.named_parameters():
            p.copy_(momentum * p + (1 - momentum) * theirs[name])


def cosine_rate(step, recipe):
    return recipe.base_lr * N / 256 * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


def sgd(net, velocity, rate, decay):
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            velocity[name] = 0.9 * velocity.get(name, 0) + p.grad + decay * p
            p -= rate * velocity[name]


def same(ours, theirs, what, tolerance=1e-10):
    __tracebackhide__ = True
    assert ours.keys() == theirs.keys(), what
    for name, tensor in ours.items():
        close = torch.allclose(tensor, theirs[name], rtol=tolerance, atol=tolerance)
        assert close, f"{what} of {name}: {float((tensor - theirs[name]).abs().max()):.3g} apart"


def parameters(parts, grad=False):
    """Parameters or gradients of several modules by part and name."""
    return {
        f"{part}.{name}": (p.grad if grad else p.detach()).clone()
        for part, module in parts.items()
        for name, p in module.named_parameters()
    }


def running(parts):
    """Running statistics of several modules by part and name."""
    return {
        f"{part}.{name}": buffer.clone()
        for part, module in parts.items()
        for name, buffer in module.named_buffers()
        if name.endswith(("running_mean", "running_var"))
    }


def lars(net, velocity, rate, decay):
    """You et al. 2017 as Grill et al. 2020, appendix F has it: norms and biases without decay and trust."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            update = torch.zeros_like(p) if p.grad is None else p.grad
            if p.ndim > 1:
                update = update + decay * p
                long, wide = p.square().sum().sqrt(), update.square().sum().sqrt()
                if long > 0 and wide > 0:
                    update = 0.001 * long / wide * update
            velocity[name] = 0.9 * velocity.get(name, 0) + update
            p -= rate * velocity[name]
