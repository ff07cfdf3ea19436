"""Losses, queue, heads, momentum encoder, schedules and LARS against naive second implementations."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode

from objcrop.errors import UsageError
from objcrop.ssl.methods.byol import BYOL, byol_loss
from objcrop.ssl.methods.info_nce import info_nce
from objcrop.ssl.methods.method import Batch, Data, similarities
from objcrop.ssl.methods.moco import MoCo, query_view
from objcrop.ssl.methods.supervised import Supervised, label_loss
from objcrop.ssl.networks.heads import RoleHeads, byol_head, moco_head
from objcrop.ssl.networks.key_queue import KeyQueue
from objcrop.ssl.networks.momentum_encoder import follow, momentum_copy
from objcrop.ssl.training.larc import LARC
from objcrop.ssl.training.lars import LARS
from objcrop.ssl.training.optimisers import optimiser_of
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.schedules import byol_momentum, cosine_rate


def units(n, dim=8, seed=0):
    return normalize(torch.randn(n, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_info_nce_by_two_loops():
    q, k, negatives = units(5), units(5, seed=1), units(11, seed=2)
    total = 0.0
    for i in range(5):
        positive = math.exp(float(q[i] @ k[i]) / 0.2)
        total -= math.log(positive / (positive + sum(math.exp(float(q[i] @ n) / 0.2) for n in negatives)))
    assert float(info_nce(q, k, negatives, 0.2)) == pytest.approx(total / 5, rel=1e-5)


def test_info_nce_agrees_with_lightly():
    from lightly.loss import NTXentLoss

    q, k, queue = units(6), units(6, seed=1), units(16, seed=2)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(16, 8))
    theirs.memory_bank.bank = queue.clone()
    theirs.memory_bank.bank_ptr = torch.zeros(1, dtype=torch.int64)
    torch.testing.assert_close(info_nce(q, k, queue, 0.2), theirs(q, k), atol=1e-5, rtol=0)


def test_byol_loss_closed_form():
    x = torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    assert float(byol_loss(x, 5 * x)) == pytest.approx(0, abs=1e-6)
    assert float(byol_loss(x, -x)) == pytest.approx(4)
    assert float(byol_loss(x, x.flip(1))) == pytest.approx(2)
    a, b = units(4), units(4, seed=1)
    assert float(byol_loss(a, b)) == pytest.approx(float((a - b).square().sum(1).mean()), rel=1e-5)


def test_queue_is_first_in_first_out():
    queue, naive = KeyQueue(8, 2), None
    naive = [row.tolist() for row in queue.keys]
    place = 0
    for step in range(7):
        keys = units(4, 2, seed=step)
        queue.push(keys)
        for key in keys:
            naive[place % 8] = key.tolist()
            place += 1
        torch.testing.assert_close(queue.keys, torch.tensor(naive))
        assert int(queue.filled.sum()) == min(place, 8)
    assert int(queue.place) == place % 8


def test_momentum_encoder_is_an_exponential_average():
    net = nn.Linear(2, 1, bias=False)
    nn.init.constant_(net.weight, 1.0)
    twin = momentum_copy(net)
    nn.init.constant_(net.weight, 3.0)
    for _ in range(4):
        follow(twin, net, 0.9)
    torch.testing.assert_close(twin.weight.data, torch.full((1, 2), 3 - 2 * 0.9**4))
    assert not any(p.requires_grad for p in twin.parameters())


@pytest.mark.parametrize("make", [moco_head, byol_head])
@pytest.mark.parametrize("role", ["object", "scene"])
def test_every_head_has_a_gradient_and_the_roles_own_output(make, role):
    heads = RoleHeads(("object", "scene"), False, lambda: make(6, 5, 4))
    x = torch.randn(8, 6)
    out = heads(x, role)
    torch.testing.assert_close(out, heads.heads[role](x))
    out.sum().backward()
    assert all(p.grad is not None for p in heads.parameters())
    other = next(name for name in heads.heads if name != role)
    assert all(p.grad.abs().max() == 0 for p in heads.heads[other].parameters())


def test_shared_heads_are_one():
    assert len(RoleHeads(("scene", "scene"), False, lambda: nn.Linear(2, 2)).heads) == 1
    assert len(RoleHeads(("object", "scene"), True, lambda: nn.Linear(2, 2)).heads) == 1


def test_lars_by_hand():
    weight, bias = nn.Parameter(torch.tensor([[3.0, 4.0]])), nn.Parameter(torch.tensor([1.0]))
    optimiser = LARS([weight, bias], lr=0.5, momentum=0.9, weight_decay=0.1, trust=0.01)
    w, b, vw, vb = np.array([3.0, 4.0]), 1.0, 0.0, 0.0
    for _ in range(3):
        weight.grad, bias.grad = torch.tensor([[1.0, -2.0]]), torch.tensor([0.5])
        optimiser.step()
        g = np.array([1.0, -2.0]) + 0.1 * w
        vw = 0.9 * vw + 0.01 * np.linalg.norm(w) / np.linalg.norm(g) * g
        vb = 0.9 * vb + 0.5  # neither decayed nor adapted
        w, b = w - 0.5 * vw, b - 0.5 * vb
    np.testing.assert_allclose(weight.detach().numpy()[0], w, rtol=1e-5)
    assert float(bias.detach()) == pytest.approx(b)


class Calls(TorchDispatchMode):
    """Keeps the names of the operators called."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("dtype", "relative"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_lars_of_many_tensors_is_that_of_each_and_few_calls(dtype, relative):
    torch.manual_seed(0)
    shapes = [(5, 3), (7,), (2, 3, 3, 3), (3,), (4, 4), (6, 2)] * 20
    weights = [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]
    with torch.no_grad():
        weights[0].zero_()  # no norm to adapt by
    expected = [w.detach().double().numpy().copy() for w in weights]
    velocities = [np.zeros_like(w) for w in expected]
    optimiser = LARS(weights, lr=0.3, momentum=0.9, weight_decay=0.1, trust=0.01)
    for _ in range(3):
        for weight, w, v in zip(weights, expected, velocities):
            weight.grad = torch.randn_like(weight)
            update = weight.grad.double().numpy()
            if w.ndim > 1:
                update = update + 0.1 * w
                update = update * (0.01 * np.linalg.norm(w) / np.linalg.norm(update) if w.any() else 1.0)
            v += update - 0.1 * v
            w -= 0.3 * v
        with Calls() as calls:
            optimiser.step()
    for weight, w in zip(weights, expected):
        np.testing.assert_allclose(weight.detach().double().numpy(), w, rtol=relative, atol=relative)
    assert len(calls.names) < len(weights) // 4, "a call a tensor"


def test_schedules():
    assert [cosine_rate(s, 100, 10, 2.0) for s in (0, 9, 10)] == pytest.approx([0.2, 2.0, 2.0])
    assert cosine_rate(55, 100, 10, 2.0) == pytest.approx(1.0)
    assert cosine_rate(99, 100, 0, 1.0) == pytest.approx(0.5 * (1 + math.cos(math.pi * 0.99)))
    assert [byol_momentum(p, 0.99) for p in (0, 0.5, 1)] == pytest.approx([0.99, 0.995, 1])


def test_query_views_are_functions_of_seed_and_step():
    drawn = [query_view(1, step) for step in range(400)]
    assert drawn == [query_view(1, step) for step in range(400)]
    assert set(drawn) == {0, 1} and 150 < sum(drawn) < 250


SMALL = dict(arch="timm/test_resnet", size=32, batch_size=8, queue=16, dim=16)


def test_mocos_step_is_the_loss_of_its_parts():
    torch.manual_seed(0)
    moco = MoCo(resolve(None, {**SMALL, "bn_groups": 1}), Data(("object", "scene"))).eval()
    views = torch.randn(2, 8, 3, 32, 32)
    batch = Batch(tuple(views), torch.zeros(8, 1), torch.arange(8))
    assert float(moco(batch, moco.targets(batch, 3), 3).loss.detach()) == 0  # its role's queue is empty yet
    moco.after_step(0.0)
    q = query_view(0, 3)
    queue = moco.queues[moco.roles[1 - q]].keys.clone()
    output = moco(batch, moco.targets(batch, 3), 3)
    with torch.no_grad():
        query = normalize(moco.encoder.heads.heads[moco.roles[q]](moco.encoder.backbone(views[q])), dim=1)
        twin = moco.momentum_encoder
        key = normalize(twin.heads.heads[moco.roles[1 - q]](twin.backbone(views[1 - q])), dim=1)
    torch.testing.assert_close(output.loss, info_nce(query, key, queue[:8], 0.2), atol=1e-4, rtol=1e-4)
    assert float(output.watch["positive_similarity"]) == pytest.approx(float((query * key).sum(1).mean()), abs=1e-4)
    negative = np.mean([float(a @ b) for a in query for b in queue[:8]])
    assert float(output.watch["negative_similarity"]) == pytest.approx(negative, abs=1e-4)
    moco.after_step(0.0)
    torch.testing.assert_close(moco.queues[moco.roles[1 - q]].keys[8:], key, atol=1e-5, rtol=1e-4)


def test_similarities_by_loops():
    query, key, others = units(6), units(6, seed=1), units(9, seed=2)
    watch = similarities(query, key, others)
    assert float(watch["alignment"]) == pytest.approx(float((query - key).square().sum(1).mean()), rel=1e-5)
    pairs = [(a, b) for i, a in enumerate(query) for j, b in enumerate(query) if i != j]
    potential = [math.exp(-2 * float((a - b).square().sum())) for a, b in pairs]
    assert float(watch["uniformity"]) == pytest.approx(math.log(np.mean(potential)), rel=1e-4)
    assert float(watch["embedding_std"]) == pytest.approx(float(query.numpy().std(0, ddof=1).mean()), rel=1e-5)
    same = similarities(query[:1].expand(6, -1), query[:1].expand(6, -1), others)
    assert float(same["embedding_std"]) == pytest.approx(0, abs=1e-6) and abs(float(same["uniformity"])) < 1e-6


def test_byol_is_symmetric():
    torch.manual_seed(0)
    recipe = resolve(None, {**SMALL, "method": "byol", "hidden": 32, "queue": None})
    byol = BYOL(recipe, Data(("scene", "scene"), heads_shared=True)).eval()
    a, b = torch.randn(2, 8, 3, 32, 32)
    batches = [Batch(pair, torch.zeros(8, 1), torch.arange(8)) for pair in ((a, b), (b, a))]
    losses = [byol(batch, byol.targets(batch, 0), 0).loss for batch in batches]
    torch.testing.assert_close(*losses)


@pytest.mark.parametrize("single", [True, False])
def test_supervised_loss_by_loops(single):
    logits, labels = units(5, 3), torch.eye(3)[[0, 2, 1, 1, 0]]
    total = 0.0
    for row, wanted in zip(logits.tolist(), labels.tolist(), strict=True):
        if single:
            total -= math.log(math.exp(row[wanted.index(1)]) / sum(map(math.exp, row)))
        else:
            p = [1 / (1 + math.exp(-x)) for x in row]
            total -= sum(math.log(a if w else 1 - a) for a, w in zip(p, wanted, strict=True)) / 3
    assert float(label_loss(logits, labels, single)) == pytest.approx(total / 5, rel=1e-5)


def test_supervised_needs_labels():
    recipe = resolve(None, {**SMALL, "method": "supervised", "queue": None, "dim": None})
    with pytest.raises(UsageError, match="no labels"):
        Supervised(recipe, Data(("scene", "scene"), classes=0))


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        ({"tempreature": 1}, "temperature"),
        ({"queue": 100}, "multiple"),
        ({"queue": 0}, "no other negatives"),
        ({"method": "dino"}, "moco-v2"),
        ({"epochs": 0}, "epochs"),
        ({"heads": "two"}, "per-role"),
    ],
)
def test_wrong_recipes_say_so(flags, word):
    with pytest.raises(UsageError, match=word):
        resolve(None, flags)


def test_larc_by_a_loop():
    """Every tensor scaled, the norms added, momentum after; a tensor of zeros or without a gradient is plain SGD."""
    torch.manual_seed(0)
    weights = [torch.randn(4, 3).double(), torch.randn(5).double(), torch.zeros(2).double()]
    ours = [nn.Parameter(w.clone()) for w in weights]
    velocities = [torch.zeros_like(w) for w in weights]
    optimiser = LARC([{"params": ours[:2]}, {"params": ours[2:]}], lr=0.7, momentum=0.9, weight_decay=0.1, trust=0.02)
    for step in range(4):
        gradients = [torch.randn_like(w) * (0 if step == 2 and w.ndim == 1 else 1) for w in weights]
        for p, g in zip(ours, gradients):
            p.grad = g.clone()
        optimiser.step()
        for i, g in enumerate(gradients):
            w, norm_w, norm_g = weights[i], weights[i].norm(), g.norm()
            if norm_w > 0 and norm_g > 0:
                g = (g + 0.1 * w) * 0.02 * norm_w / (norm_g + 0.1 * norm_w + 1e-8)
            velocities[i] = 0.9 * velocities[i] + g
            weights[i] = w - 0.7 * velocities[i]
        for p, w in zip(ours, weights):
            torch.testing.assert_close(p.data, w, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(("name", "of"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("larc", LARC)])
def test_optimisers_by_name(name, of):
    flags = {"betas": (0.8, 0.95)} if name != "larc" else {"momentum": 0.8}
    recipe = resolve(None, {"optimiser": name, "weight_decay": 0.05, **flags})
    made = optimiser_of(recipe, [{"params": [nn.Parameter(torch.ones(2))]}], 0.3, fused=False)
    (group,) = made.param_groups
    assert type(made) is of and group["lr"] == 0.3 and group["weight_decay"] == 0.05
    assert group.get("betas", (0.8, 0.95)) == (0.8, 0.95) and group.get("momentum", 0.8) == 0.8
    idle = {"momentum": 0.9} if name != "larc" else {"betas": (0.9, 0.99)}
    with pytest.raises(UsageError, match="cannot act here"):
        resolve(None, {"optimiser": name, **idle})


def test_a_schedule_may_begin_and_end_elsewhere():
    rates = [cosine_rate(step, 30, 10, 4.8, start=0.3, final=0.0048) for step in range(30)]
    np.testing.assert_allclose(rates[:10], 0.3 + (4.8 - 0.3) * np.arange(1, 11) / 10)
    by_hand = 0.0048 + (4.8 - 0.0048) * (1 + np.cos(np.pi * np.arange(20) / 20)) / 2
    np.testing.assert_allclose(rates[10:], by_hand)
    with pytest.raises(UsageError, match=r"warmup_lr \(0.1\) cannot act here: there are no warmup_epochs"):
        resolve(None, {"warmup_lr": 0.1})
