"""Whole steps of MoCo-v2 and BYOL in float64 against second implementations, written from the papers alone.

The twins know the network's layers and take what is drawn (which view is the query, the batch shuffle) as given. All
else is theirs: BatchNorm a virtual device at a time, loss by loops, queue as a list, SGD, LARS and the averages by
their formulas. After every step loss, gradients, weights, momentum encoder, queue and running statistics are compared.
"""

import copy
import math

import pytest
import torch
from torch import nn
from whole_steps import (
    ROLES,
    STEPS,
    N,
    batch_of,
    companies,
    cosine_rate,
    drawn_views,
    follow,
    in_passes,
    lars,
    of_role,
    run_in_float64,
    same,
    sgd,
    unit,
)

from objcrop.ssl.methods.moco import query_view
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.shuffle_bn import permutation

SIDE, LOCAL_SIDE = 32, 16


def our_run(method, heads, local=0, **options):
    """A run in float64, at step 0; with so many local views, whose roles are in turn those of the large ones."""
    roles = (ROLES * 3)[: 2 + local]
    told = dict(method=method, heads=heads, size=SIDE, crops="obj-scene", local_views=local)
    return run_in_float64(roles, **told, **options)


def views_of(step, local):
    return drawn_views(step, *[SIDE] * 2, *[LOCAL_SIDE] * local)


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


def encoded(net, views, role, groups):
    """Rows (N, dim) in the order of `groups`, each of which is normalised for itself."""
    passes = [lambda rows=rows: of_role(net["heads"], role)(net["backbone"](views[rows])) for rows in groups]
    parts = in_passes(nn.ModuleList([net["backbone"], of_role(net["heads"], role)]), passes)
    out = [None] * len(views)
    for rows, part in zip(groups, parts):
        for row, embedding in zip(rows, part):
            out[row] = embedding
    return torch.stack(out)


def encoded_together(net, views, role, groups):
    """Embeddings of several views (views, N, dim); all of them that a group's rows have are one company."""
    wider = [[v * N + row for v in range(len(views)) for row in rows] for rows in groups]
    return encoded(net, torch.cat(views), role, wider).view(len(views), N, -1)


def moco_head(width, hidden, dim):
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, dim))


def byol_head(width, hidden, dim):
    return nn.Sequential(
        nn.Linear(width, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim)
    )


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
    place, velocity = dict.fromkeys(slots, 0), {}
    for step in range(STEPS):
        views = views_of(step, local)
        watched = run.take_step(batch_of(views))
        # ---- the twin
        q = query_view(recipe.seed, step)
        order = permutation(N, recipe.seed, step).tolist()
        shuffled = [order[d * N // groups : (d + 1) * N // groups] for d in range(groups)]
        with torch.no_grad():
            keys = [unit(k) for k in encoded(slow, views[1 - q], ROLES[1 - q], shuffled)]
        queries = [encoded(fast, views[q], ROLES[q], companies(groups))]
        for v in range(2, min(4, len(views))):
            queries += encoded_together(fast, views[v::2], ROLES[v % 2], companies(groups))
        queue = ROLES[1 - q] if ROLES[1 - q] in slots else "all"
        negatives = [key for key in slots[queue] if key is not None]
        loss = torch.zeros((), dtype=torch.float64)
        for query, key in [(unit(x), key) for of_view in queries for x, key in zip(of_view, keys)]:
            positive = torch.exp((query * key).sum() / 0.2)
            others = sum(torch.exp((query * other).sum() / 0.2) for other in negatives)
            loss = loss - torch.log(positive / (positive + others)) / (N * len(queries))
        fast.zero_grad(set_to_none=True)
        loss.backward()
        sgd(fast, velocity, cosine_rate(step, recipe), 1e-2)
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


@pytest.mark.parametrize(("groups", "heads", "local"), OF_STEPS)
def test_byol(groups, heads, local):
    """Grill et al. 2020, equations 1 to 4 and the target's schedule; LARS; of local views the mean over the others."""
    run = our_run("byol", heads, local, bn_groups=groups, base_lr=20.0, ema=0.9, weight_decay=1e-3)
    recipe, module = run.recipe, run.method
    online = plain(module, lambda: byol_head(96, 10, 6), lambda: byol_head(6, 10, 6))
    target = copy.deepcopy(online)
    del target["predictors"]
    parts, velocity = companies(groups), {}
    for step in range(STEPS):
        views = views_of(step, local)
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
        lars(online, velocity, cosine_rate(step, recipe), 1e-3)
        followed = nn.ModuleDict({"backbone": online["backbone"], "heads": online["heads"]})
        follow(target, followed, 1 - (1 - 0.9) * (math.cos(math.pi * (step + 1) / STEPS) + 1) / 2)
        # ---- side by side
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10, abs=1e-10)
        grads = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in online.named_parameters()}
        same(ours_by_the_twins_names(module, module.encoder, grad=True), grads, f"gradient {step}")
        same(ours_by_the_twins_names(module, module.encoder), named(online), f"weight {step}")
        same(ours_by_the_twins_names(module, module.momentum_encoder), named(target), f"target network {step}")
        same(running(module.encoder.backbone), running(online["backbone"]), f"running statistics {step}")
