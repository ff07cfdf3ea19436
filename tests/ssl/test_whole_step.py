"""Whole steps of MoCo-v2 and BYOL in float64 against second implementations, written from the papers alone.

The twins know the network's layers and take what is drawn (which view is the query, the batch shuffle) as given. All
else is theirs: BatchNorm a virtual device at a time, loss by loops, queue as a list, SGD, LARS and the averages by
their formulas. After every step loss, gradients, weights, momentum encoder, queue and running statistics are compared.
"""

import copy
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from objcrop.dali_pipes.augment import Augment
from objcrop.dali_pipes.view_plan import ViewPlan, colour_decisions
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.methods.method import Data
from objcrop.ssl.methods.moco import query_view
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.shuffle_bn import permutation
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.trainer import Run

LOCAL_SIDE = 16
STEPS, N, SIDE = 5, 24, 32  # of fewer rows and pixels BatchNorm makes much of the last digit, step after step
ROLES = ("object", "scene")
SHARED = dict(arch="timm/test_resnet", size=SIDE, batch_size=N, steps=STEPS, dim=6, hidden=10, crops="obj-scene")
CPU = torch.device("cpu")


def our_run(method, heads, local=0, **options):
    """A run in float64, at step 0; with so many local views, whose roles are in turn those of the large ones."""
    recipe = resolve(None, {**SHARED, "method": method, "heads": heads, "local_views": local, **options})
    torch.manual_seed(1)
    module = METHODS[method](recipe, Data((ROLES * 3)[: 2 + local])).double()
    with torch.no_grad():
        for p in module.parameters():  # timm's last norm of a block begins at 0, where ReLU's derivative is anybody's
            p += 0.1 * torch.randn_like(p) if p.ndim == 1 else 0
    module.momentum_encoder.load_state_dict(module.encoder.state_dict())
    run = object.__new__(Run)
    run.recipe, run.device, run.step, run.total, run.batches, run.world = recipe, CPU, 0, STEPS, STEPS, 1
    run.method = run.model = module
    run.probe, run.precision = None, "fp32"
    run.optimiser = run._optimiser()
    return run


def drawn_views(step, local=0):
    generator = torch.Generator().manual_seed(100 + step)
    large = torch.randn(2, N, 3, SIDE, SIDE, dtype=torch.float64, generator=generator)
    small = torch.randn(local, N, 3, LOCAL_SIDE, LOCAL_SIDE, dtype=torch.float64, generator=generator)
    return [view.contiguous(memory_format=torch.channels_last) for view in (*large, *small)]


def batch_of(views):
    rows, windows = np.arange(N), np.zeros((N, len(views), 4), np.int32)
    colours = colour_decisions(rows, (Augment(),) * len(views), seed=0, epoch=0)
    plan = ViewPlan(sample=rows, row=rows, box=rows, regions=windows, windows=windows, **colours)
    return SimpleNamespace(views=views, labels=torch.zeros(N, 0), index=torch.arange(N), plan=plan, boxes=())


def plain(module, head, predictor=None):
    """The same layers with the same weights, BatchNorm torch's own: backbone, heads by role, predictors by role."""
    network, _ = backbone("timm/test_resnet", SIDE)
    names = list(module.encoder.heads.heads)
    twin = nn.ModuleDict({"backbone": network, "heads": nn.ModuleDict({name: head() for name in names})})
    if predictor is not None:
        twin["predictors"] = nn.ModuleDict({name: predictor() for name in names})
    twin.double().train()
    twin["backbone"].load_state_dict(module.encoder.backbone.state_dict())
    twin["heads"].load_state_dict(module.encoder.heads.heads.state_dict())
    if predictor is not None:
        twin["predictors"].load_state_dict(module.predictor.heads.state_dict())
    return twin


def of_role(heads, role):
    return heads[role] if role in heads else heads["all"]


def companies(n, groups):
    return [list(range(device, n, groups)) for device in range(groups)]


class Statistics:
    """The running statistics that a step leaves: their mean over the virtual devices, pass after pass."""

    def __init__(self, net):
        self.norms = [m for m in net.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def of(self, passes):
        before = [(m.running_mean.clone(), m.running_var.clone()) for m in self.norms]
        sums = [(torch.zeros_like(mean), torch.zeros_like(var)) for mean, var in before]
        out = []
        for one in passes:
            for m, (mean, var) in zip(self.norms, before):
                m.running_mean = mean.clone()
                m.running_var = var.clone()
            out.append(one())
            for m, (mean, var) in zip(self.norms, sums):
                mean += m.running_mean
                var += m.running_var
        for m, (mean, var) in zip(self.norms, sums):
            m.running_mean = mean / len(passes)
            m.running_var = var / len(passes)
        return out


def encoded(net, views, role, groups):
    """Rows (N, dim) in the order of `groups`, each of which is normalised for itself."""
    passes = [lambda rows=rows: of_role(net["heads"], role)(net["backbone"](views[rows])) for rows in groups]
    parts = Statistics(nn.ModuleList([net["backbone"], of_role(net["heads"], role)])).of(passes)
    out = [None] * len(views)
    for rows, part in zip(groups, parts):
        for row, embedding in zip(rows, part):
            out[row] = embedding
    return torch.stack(out)


def encoded_together(net, views, role, groups):
    """Embeddings of several views (views, N, dim); all of them that a group's rows have are one company."""
    wider = [[v * N + row for v in range(len(views)) for row in rows] for rows in groups]
    return encoded(net, torch.cat(views), role, wider).view(len(views), N, -1)


def unit(x):
    return x / x.square().sum().sqrt()


def follow(slow, fast, momentum):
    with torch.no_grad():
        for a, b in zip(slow.parameters(), fast.parameters()):
            a.copy_(momentum * a + (1 - momentum) * b)


def rate_at(step, recipe):
    peak = recipe.base_lr * N / 256
    return peak * 0.5 * (1 + math.cos(math.pi * step / STEPS))


def moco_head(width, hidden, dim):
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def byol_head(width, hidden, dim):
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim)
    )


def same(ours, theirs, what, tolerance=1e-10):
    __tracebackhide__ = True
    assert ours.keys() == theirs.keys(), what
    for name, tensor in ours.items():
        close = torch.allclose(tensor, theirs[name], rtol=tolerance, atol=tolerance)
        assert close, f"{what} of {name}: {float((tensor - theirs[name]).abs().max()):.3g} apart"


def named(module, grad=False):
    """Parameters or gradients by plain names."""
    return {n: (p.grad if grad else p.detach()).clone() for n, p in module.named_parameters()}


def running(network):
    return {n: b.clone() for n, b in network.named_buffers() if n.endswith(("running_mean", "running_var"))}


def ours_by_the_twins_names(module, encoder, **how):
    found = {f"backbone.{n}": v for n, v in named(encoder.backbone, **how).items()}
    found |= {f"heads.{n}": v for n, v in named(encoder.heads.heads, **how).items()}
    if hasattr(module, "predictor") and encoder is module.encoder:
        found |= {f"predictors.{n}": v for n, v in named(module.predictor.heads, **how).items()}
    return found


# One local view is a scene, two are objects and go through the network together.
OF_STEPS = [(1, "per-role", 0), (3, "per-role", 0), (1, "shared", 0), (3, "shared", 0), (1, "shared", 3)]
OF_STEPS += [(3, "per-role", 3)]


@pytest.mark.parametrize(("groups", "heads", "local"), OF_STEPS)
def test_moco_v2(groups, heads, local):
    """He et al. 2020, algorithm 1; Chen et al. 2020; a queue that wraps; the shuffled batch of each device's keys.

    With local views the mean is over all queries of the key (Van Gansbeke et al. 2021).
    """
    run = our_run("moco-v2", heads, local, queue=3 * N, bn_groups=groups, base_lr=2.0, ema=0.9, weight_decay=1e-2)
    recipe, module = run.recipe, run.method
    fast = plain(module, lambda: moco_head(96, 10, 6))
    slow = copy.deepcopy(fast)
    slots = {name: [None] * recipe.queue for name in fast["heads"]}
    place = dict.fromkeys(slots, 0)
    velocity = {name: torch.zeros_like(p) for name, p in fast.named_parameters()}
    for step in range(STEPS):
        views = drawn_views(step, local)
        watched = run.take_step(batch_of(views))
        # ---- the twin
        q = query_view(recipe.seed, step)
        order = permutation(N, recipe.seed, step).tolist()
        shuffled = [order[d * N // groups : (d + 1) * N // groups] for d in range(groups)]
        with torch.no_grad():
            keys = [unit(k) for k in encoded(slow, views[1 - q], ROLES[1 - q], shuffled)]
        queries = [encoded(fast, views[q], ROLES[q], companies(N, groups))]
        for v in range(2, min(4, len(views))):
            queries += encoded_together(fast, views[v::2], ROLES[v % 2], companies(N, groups))
        queue = ROLES[1 - q] if ROLES[1 - q] in slots else "all"
        negatives = [key for key in slots[queue] if key is not None]
        loss = torch.zeros((), dtype=torch.float64)
        for query, key in [(unit(x), key) for of_view in queries for x, key in zip(of_view, keys)]:
            positive = torch.exp((query * key).sum() / 0.2)
            others = sum(torch.exp((query * other).sum() / 0.2) for other in negatives)
            loss = loss - torch.log(positive / (positive + others)) / (N * len(queries))
        fast.zero_grad(set_to_none=True)
        loss.backward()
        rate = rate_at(step, recipe)
        with torch.no_grad():
            for name, p in fast.named_parameters():
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
                velocity[name] = 0.9 * velocity[name] + p.grad + 1e-2 * p
                p -= rate * velocity[name]
        follow(slow, fast, 0.9)
        for key in keys:
            slots[queue][place[queue]] = key
            place[queue] = (place[queue] + 1) % recipe.queue
        # ---- side by side
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10, abs=1e-10)
        same(ours_by_the_twins_names(module, module.encoder, grad=True), named(fast, grad=True), f"gradient {step}")
        same(ours_by_the_twins_names(module, module.encoder), named(fast), f"weight {step}")
        same(ours_by_the_twins_names(module, module.momentum_encoder), named(slow), f"momentum encoder {step}")
        same(running(module.encoder.backbone), running(fast["backbone"]), f"running statistics {step}")
        same(running(module.momentum_encoder.backbone), running(slow["backbone"]), f"momentum statistics {step}")
        for name, held in slots.items():
            ours = module.queues[name]
            assert ours.filled.tolist() == [key is not None for key in held] and int(ours.place) == place[name]
            if place[name] or ours.filled.any():
                theirs = torch.stack([key for key in held if key is not None])
                torch.testing.assert_close(ours.keys[ours.filled], theirs, rtol=1e-10, atol=1e-10)
    assert sum(key is not None for held in slots.values() for key in held) > N


def lars_step(net, velocity, rate, decay):
    """You et al. 2017 as Grill et al. 2020, appendix F has it: norms and biases without decay and trust."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            update = torch.zeros_like(p) if p.grad is None else p.grad
            if p.ndim > 1:
                update = update + decay * p
                long, wide = p.square().sum().sqrt(), update.square().sum().sqrt()
                if long > 0 and wide > 0:
                    update = 0.001 * long / wide * update
            velocity[name] = 0.9 * velocity[name] + update
            p -= rate * velocity[name]


@pytest.mark.parametrize(("groups", "heads", "local"), OF_STEPS)
def test_byol(groups, heads, local):
    """Grill et al. 2020, equations 1 to 4 and the target's schedule; LARS; of local views the mean over the others."""
    run = our_run("byol", heads, local, bn_groups=groups, base_lr=20.0, ema=0.9, weight_decay=1e-3)
    recipe, module = run.recipe, run.method
    online = plain(module, lambda: byol_head(96, 10, 6), lambda: byol_head(6, 10, 6))
    target = copy.deepcopy(online)
    del target["predictors"]
    velocity = {name: torch.zeros_like(p) for name, p in online.named_parameters()}
    parts = companies(N, groups)
    for step in range(STEPS):
        views = drawn_views(step, local)
        watched = run.take_step(batch_of(views))
        # ---- the twin
        with torch.no_grad():
            targets = [encoded(target, view, role, parts) for view, role in zip(views, ROLES)]
        loss = torch.zeros((), dtype=torch.float64)
        kinds = [([0], 0), ([1], 1), (range(2, len(views), 2), 0), (range(3, len(views), 2), 1)]
        for which, role in [(list(which), ROLES[role]) for which, role in kinds if len(which)]:
            projections = encoded_together(online, [views[v] for v in which], role, parts)
            for rows in parts:
                predictions = of_role(online["predictors"], role)(projections[:, rows].flatten(0, 1))
                for (v, row), prediction in zip([(v, row) for v in which for row in rows], predictions):
                    for t in {0, 1} - {v}:
                        apart = (unit(prediction) - unit(targets[t][row])).square().sum()
                        loss = loss + apart / N / (len(views) - 1)
        online.zero_grad(set_to_none=True)
        loss.backward()
        lars_step(online, velocity, rate_at(step, recipe), 1e-3)
        followed = nn.ModuleDict({"backbone": online["backbone"], "heads": online["heads"]})
        follow(target, followed, 1 - (1 - 0.9) * (math.cos(math.pi * (step + 1) / STEPS) + 1) / 2)
        # ---- side by side
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10, abs=1e-10)
        grads = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in online.named_parameters()}
        same(ours_by_the_twins_names(module, module.encoder, grad=True), grads, f"gradient {step}")
        same(ours_by_the_twins_names(module, module.encoder), named(online), f"weight {step}")
        same(ours_by_the_twins_names(module, module.momentum_encoder), named(target), f"target network {step}")
        same(running(module.encoder.backbone), running(online["backbone"]), f"running statistics {step}")
