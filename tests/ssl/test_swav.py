"""SwAV: codes against loops, closed forms and lightly; whole steps in float64 against lightly's loss and heads."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn.functional import normalize
from whole_steps import N, batch_of, drawn_views, run_in_float64, same

from objcrop.dali_pipes.crop_policy import CropPolicy, ViewSpec
from objcrop.errors import UsageError
from objcrop.ssl.evaluation.frozen_features import frozen_backbone
from objcrop.ssl.methods.method import Batch, Data
from objcrop.ssl.methods.sinkhorn import sinkhorn
from objcrop.ssl.methods.swav import SwAV, swapped_prediction
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain

TINY = dict(method="swav", arch="timm/test_resnet", size=32, dim=6, hidden=10, prototypes=12)


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def cosines(rows, clusters, seed=0):
    return normalize(drawn(rows, 5, seed=seed), dim=1) @ normalize(drawn(clusters, 5, seed=seed + 1), dim=1).T


def test_codes_by_loops():
    scores = cosines(7, 4)
    q = [[math.exp(float(s) / 0.05) for s in row] for row in scores]
    for _ in range(3):
        for k in range(4):
            of_prototype = sum(row[k] for row in q)
            for row in q:
                row[k] /= of_prototype * 4
        for row in q:
            of_row = sum(row)
            row[:] = [value / of_row for value in row]
    np.testing.assert_allclose(sinkhorn(scores, 0.05).numpy(), q, rtol=1e-12)


@pytest.mark.parametrize("epsilon", [0.03, 0.05, 1.0])
def test_codes_agree_with_lightly(epsilon):
    from lightly.loss.swav_loss import sinkhorn as theirs

    scores = cosines(30, 9)
    torch.testing.assert_close(sinkhorn(scores, epsilon), theirs(scores, 3, epsilon), rtol=1e-12, atol=1e-14)


def test_codes_sum_to_one_and_use_the_prototypes_alike():
    scores = cosines(40, 8)
    codes, many = sinkhorn(scores, 0.05), sinkhorn(scores, 0.05, iterations=500)
    torch.testing.assert_close(codes.sum(1), torch.ones(40, dtype=torch.float64), rtol=1e-14, atol=0)
    torch.testing.assert_close(many.sum(0), torch.full((8,), 40 / 8, dtype=torch.float64), rtol=1e-9, atol=0)
    torch.testing.assert_close(sinkhorn(scores + 0.7, 0.05), codes, rtol=1e-12, atol=1e-14)
    shuffled = torch.tensor([3, *range(3), *range(4, 40)])
    torch.testing.assert_close(sinkhorn(scores[shuffled], 0.05), codes[shuffled], rtol=1e-12, atol=1e-14)


def test_sharp_codes_are_the_best_assignment():
    for seed in range(5):
        scores = cosines(6, 6, seed)
        codes = sinkhorn(scores, 0.002, iterations=3000)
        rows, prototypes = linear_sum_assignment(-scores.numpy())
        expected = torch.zeros(6, 6, dtype=torch.float64)
        expected[rows, prototypes] = 1
        torch.testing.assert_close(codes, expected, rtol=0, atol=0.02)


def test_codes_are_finite_where_exp_is_not():
    scores = cosines(6, 6)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        codes = sinkhorn(scores.to(dtype), 0.001)
        assert codes.dtype == torch.float32 and torch.isfinite(codes).all()
        torch.testing.assert_close(codes.sum(1), torch.ones(6))


def test_the_loss_by_loops():
    scores, codes = drawn(4, 3, 5), torch.softmax(drawn(2, 3, 5, seed=1), 2)
    total = 0.0
    for i, v, row in itertools.product(range(2), range(4), range(3)):
        if v != i:
            e = [math.exp(float(s) / 0.1) for s in scores[v, row]]
            total -= sum(float(q) * math.log(x / sum(e)) for q, x in zip(codes[i, row], e)) / (2 * 3 * 3)
    assert float(swapped_prediction(scores, codes, 0.1)) == pytest.approx(total, rel=1e-12)


# ---- whole steps

FROZEN, QUEUE = 2, 2 * N  # of two steps an epoch; the queue is filled by steps 2 and 3 and used from step 4 on


def run_of(local, groups):
    flags = dict(TINY, steps=6, local_views=local, bn_groups=groups, queue=QUEUE, queue_epoch=1, base_lr=30.0)
    flags |= dict(final_lr=1.0, weight_decay=1e-2, freeze_prototypes=FROZEN)
    return run_in_float64(("scene",) * (2 + local), samples=2 * N, **flags)


class Twin(nn.Module):
    """lightly's head and prototypes, without their bias, on the same backbone; BatchNorm is torch's own."""

    def __init__(self, module):
        from lightly.models.modules import SwaVProjectionHead, SwaVPrototypes

        super().__init__()
        self.backbone = backbone(TINY["arch"], 32)[0]
        self.head = SwaVProjectionHead(96, 10, 6)
        self.prototypes = SwaVPrototypes(6, 12, n_steps_frozen_prototypes=FROZEN)
        self.double()
        self.backbone.load_state_dict(module.encoder.backbone.state_dict())
        ours = module.encoder.heads.heads["all"].state_dict()
        self.head.load_state_dict({f"layers.{name}": value for name, value in ours.items()})
        with torch.no_grad():
            self.prototypes.heads[0].weight.copy_(module.prototypes.weight)
            self.prototypes.heads[0].bias.zero_()

    def forward(self, crops):
        """Embeddings of one device's crops, each (rows, dim)."""
        sizes = [list(group) for _, group in itertools.groupby(crops, lambda crop: crop.shape[-1])]
        features = torch.cat([self.backbone(torch.cat(group)) for group in sizes])
        return normalize(self.head(features), dim=1).chunk(len(crops))

    def by_our_names(self, of=lambda p: p.detach().clone()):
        found = {f"encoder.backbone.{n}": of(p) for n, p in self.backbone.named_parameters()}
        found |= {f"encoder.heads.heads.all.{n[7:]}": of(p) for n, p in self.head.named_parameters()}
        return found | {"prototypes.weight": of(self.prototypes.heads[0].weight)}


def gradient(p):
    return torch.zeros_like(p) if p.grad is None else p.grad.clone()


def larc(twin, velocity, rate, decay):
    """main_swav.py's: every tensor that has a gradient, the norms added; then SGD with momentum."""
    with torch.no_grad():
        for name, p in twin.named_parameters():
            if p.grad is None or name == "prototypes.heads.0.bias":
                continue
            g, w = p.grad.square().sum().sqrt(), p.square().sum().sqrt()
            update = (p.grad + decay * p) * 0.001 * w / (g + decay * w + 1e-8) if g > 0 and w > 0 else p.grad
            velocity[name] = 0.9 * velocity.get(name, 0) + update
            p -= rate * velocity[name]


@pytest.mark.parametrize(("local", "groups"), [(0, 1), (3, 1), (3, 3)])
def test_whole_steps_are_those_of_lightlys_loss_and_heads(local, groups):
    """Frozen prototypes, then trained ones; no queue, one that fills, one that is used and wraps."""
    from lightly.loss import SwaVLoss

    run = run_of(local, groups)
    module = run.method
    twin, loss_of = Twin(module), SwaVLoss()
    queues, velocity = [torch.zeros(0, 6, dtype=torch.float64)] * 2, {}
    for step in range(run.total):
        crops = drawn_views(step, *(32, 32), *(16,) * local)
        watched = run.take_step(batch_of(crops))
        # ---- the twin
        twin.prototypes.normalize()
        norms = [m for m in twin.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        before = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
        seen, z = [], [[None] * N for _ in crops]
        for device in range(groups):
            for m, (mean, var) in zip(norms, before):
                m.running_mean, m.running_var = mean.clone(), var.clone()
            for of_crop, embeddings in zip(z, twin([crop[device::groups] for crop in crops])):
                of_crop[device::groups] = embeddings
            seen.append([(m.running_mean, m.running_var) for m in norms])
        for m, each in zip(norms, zip(*seen)):  # their mean over the devices
            m.running_mean, m.running_var = (sum(part) / groups for part in zip(*each))
        z = [torch.stack(of_crop) for of_crop in z]
        scores = [twin.prototypes(each, step) for each in z]
        uses = step >= 4
        assert not uses or len(queues[0]) == QUEUE
        of_queue = [twin.prototypes(queue, step) for queue in queues] if uses else None
        loss = loss_of(scores[:2], scores[2:], of_queue)
        if step >= 2:
            queues = [torch.cat([queue, each.detach()])[-QUEUE:] for queue, each in zip(queues, z)]
        twin.zero_grad(set_to_none=True)
        loss.backward()
        rate = 1.0 + 0.5 * (30.0 - 1.0) * (1 + math.cos(math.pi * step / run.total))
        larc(twin, velocity, rate * N / 256, 1e-2)
        # ---- side by side
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10, abs=1e-10)
        ours = dict(module.named_parameters())
        assert (ours["prototypes.weight"].grad is None) == (step < FROZEN)
        same({n: gradient(p) for n, p in ours.items()}, twin.by_our_names(gradient), f"gradient {step}")
        same({n: p.detach() for n, p in ours.items()}, twin.by_our_names(), f"weight {step}")
        running = {n: b for n, b in twin.backbone.named_buffers() if "running" in n}
        same({n: dict(module.encoder.backbone.named_buffers())[n] for n in running}, running, f"statistics {step}")
        for ours, theirs in zip(module.queues, queues):
            held = ours.keys[ours.filled]
            assert len(held) == len(theirs)
            for row in theirs:
                assert not len(held) or (held - row).abs().amax(1).min() < 1e-10
    assert torch.allclose(module.prototypes.weight.norm(dim=1), torch.ones(12, dtype=torch.float64), atol=0.1)


# ---- what is refused, and training


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (dict(queue=20), "queue is 20, but it must be a multiple of the batch_size 8: take 16"),
        (dict(accumulate=2), r"accumulate \(2\) cannot act here: the method takes a step as a whole"),
        (dict(queue=0, queue_epoch=3), r"queue_epoch \(3\) cannot act here: there is no queue"),
        (dict(ema=0.9), "it is an option of method"),
        (dict(crops="scene"), "make 1 large and 2 local views, but swav takes 2 large ones and then local ones"),
        (dict(crops="scene", local_views=0), "make 1 view, but swav takes 2 to 16"),
        (dict(arch="timm/vit_tiny_patch16_224", size=224), "does not take views of 16 px"),
        (dict(bn_groups=3), "bn_groups is 3"),
    ],
    ids=str,
)
def test_wrong_use_is_a_sentence(photos, tmp_path, flags, word):
    with pytest.raises(UsageError, match=word) as said:
        pretrain(None, photos[0], None, tmp_path / "run", **learning(steps=1, **flags))
    assert "\n" not in str(said.value)


def test_views_that_are_all_local_are_refused(photos, tmp_path):
    local = CropPolicy("mine", (ViewSpec("scene", "image", scale=(0.05, 0.14), local=True),) * 3)
    with pytest.raises(UsageError, match="make 0 large and 3 local views, but swav takes 2 large"):
        pretrain(None, photos[0], None, tmp_path / "run", **learning(steps=1, crops=local, local_views=0, scale=None))


def learning(**flags):
    given = dict(TINY, batch_size=8, queue=64, queue_epoch=0, freeze_prototypes=3, augment="flip", threads=2)
    given |= dict(local_views=2, dim=32, hidden=64, prototypes=20, base_lr=20.0, scale=(0.5, 1.0), log_every_steps=1)
    given |= {} if flags.get("local_views") == 0 else dict(local_size=16, local_scale=(0.2, 0.5))
    return {**given, **flags}


def test_the_loss_falls_and_nothing_collapses(photos, tmp_path):
    """Predictions become better than even ones, whose loss is the logarithm of the number of prototypes."""
    last = pretrain(None, photos[0], None, tmp_path / "run", **learning(steps=60))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    loss = [line["loss"] for line in lines]
    assert np.mean(loss[-6:]) < np.mean(loss[:6]) - 0.3 and np.mean(loss[-6:]) < math.log(20) - 0.1
    assert lines[-1]["embedding_std"] > 0.3 / np.sqrt(32)
    network, size = frozen_backbone(last)
    assert size == 32 and network.eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 96)


@pytest.mark.parametrize("groups", [1, 2])
def test_compiled_in_one_graph_a_size_and_in_bf16_it_is_nearly_the_same(groups):
    torch.manual_seed(0)
    recipe = resolve(None, dict(TINY, batch_size=8, local_views=2, bn_groups=groups, queue=0))
    plain = SwAV(recipe, Data(("scene",) * 4, samples=16))
    compiled, narrow = copy.deepcopy(plain), copy.deepcopy(plain)
    compiled.encoder.backbone.compile(backend="eager", fullgraph=True)
    views = [torch.randn(8, 3, side, side).to(memory_format=torch.channels_last) for side in (32, 32, 16, 16)]
    losses, batch = [], Batch(tuple(views), torch.zeros(8, 0), torch.arange(8))
    for method, bf16 in ((plain, False), (compiled, False), (narrow, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = method(batch, method.targets(batch, 0), 0)
        output.loss.backward()
        losses.append(float(output.loss.detach()))
        assert output.loss.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[2] == pytest.approx(losses[0], rel=0.2)
