"""DenseCL: cells matched by loops, whole steps, and logits in chunks that are the same loss in less memory."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
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
    of_role,
    parameters,
    run_in_float64,
    running,
    same,
    sgd,
    unit,
)

from objcrop.errors import UsageError
from objcrop.ssl.export import export
from objcrop.ssl.methods import info_nce as info_nce_file
from objcrop.ssl.methods.densecl import nearest_cells
from objcrop.ssl.methods.info_nce import info_nce, info_nce_in_chunks
from objcrop.ssl.methods.method import Batch
from objcrop.ssl.methods.moco import query_view
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import dense_head, densecl_head
from objcrop.ssl.networks.shuffle_bn import permutation
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain

SIDE = 64  # a map of 2 × 2 cells


def units(*shape, seed=0, dtype=torch.float64):
    return normalize(torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_cells_match_by_three_loops():
    query, key = units(3, 5, 7), units(3, 4, 7, seed=1)
    found = nearest_cells(query, key)
    for n in range(3):
        for i in range(5):
            cosines = [float(sum(a * b for a, b in zip(query[n, i], key[n, j]))) for j in range(4)]
            assert int(found[n, i]) == cosines.index(max(cosines))
    assert nearest_cells(query, key[:, :1].expand(-1, 4, -1)).max() == 0  # of equals the first


def test_cells_and_losses_agree_with_lightly():
    from lightly.loss import NTXentLoss
    from lightly.models.utils import select_most_similar

    query, key, cells, banked = units(4, 9, 6), units(4, 9, 6, seed=1), units(4, 9, 8, seed=2), units(4, 9, 8, seed=3)
    nearest = nearest_cells(query, key)
    matched = cells.gather(1, nearest[..., None].expand(-1, -1, 8))
    assert torch.equal(matched, select_most_similar(query, key, cells))
    queue = units(16, 8, seed=4)
    theirs = NTXentLoss(temperature=0.2, memory_bank_size=(16, 8))
    theirs.memory_bank.bank, theirs.memory_bank.bank_ptr = queue.clone(), torch.zeros(1, dtype=torch.int64)
    rows = banked.flatten(0, 1), matched.flatten(0, 1)
    with torch.no_grad():
        torch.testing.assert_close(info_nce_in_chunks(*rows, queue, 0.2), theirs(*rows), atol=1e-12, rtol=1e-12)


def test_cells_are_matched_in_float32_under_bf16():
    key = normalize(torch.tensor([[[1.0, 0.0], [1.0, 1e-3]]]), dim=2)  # one and the same in bf16
    query = normalize(torch.tensor([[[1.0, 1e-3], [1.0, 0.0]]]), dim=2)
    query[..., 1] *= 50
    with torch.autocast("cpu", torch.bfloat16):
        assert (query @ key.mT).dtype == torch.bfloat16
        assert nearest_cells(query, key).tolist() == [[1, 0]]


@pytest.mark.parametrize("filled", [None, 0, 7], ids="{} filled".format)
@pytest.mark.parametrize("rows", [1, 3, 8, 100], ids="{} rows".format)
def test_chunks_are_the_same_loss_and_gradient(rows, filled, monkeypatch):
    query, key, negatives = units(8, 5), units(8, 5, seed=1), units(11, 5, seed=2)
    valid = None if filled is None else torch.arange(11) < filled
    monkeypatch.setattr(info_nce_file, "LOGITS", rows * 11 + 3)
    results = []
    for loss_of in (info_nce, info_nce_in_chunks):
        given = query.clone().requires_grad_()
        loss = loss_of(given, key, negatives, 0.2, valid)
        (3 * loss).backward()
        results.append((loss.detach(), given.grad))
    for ours, theirs in zip(*results):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    assert float(results[1][0]) > 0.1 or filled == 0


class Largest(TorchDispatchMode):
    """Sees the most elements that a tensor made in it has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.most = max(self.most, made.numel())
        return made


def test_memory_of_the_logits_is_bounded(monkeypatch):
    monkeypatch.setattr(info_nce_file, "LOGITS", 4000)
    query, key, negatives = units(500, 4), units(500, 4, seed=1), units(1000, 4, seed=2)
    for loss_of, most in ((info_nce, 500 * 1001), (info_nce_in_chunks, 1000 * 4)):
        with Largest() as largest:
            loss_of(query.clone().requires_grad_(), key, negatives, 0.2).backward()
        assert largest.most == most


def parts(encoder):
    return {"backbone": encoder.backbone, "heads": encoder.heads.heads, "dense": encoder.dense_heads.heads}


def plain(module):
    """The same layers with the same weights, BatchNorm torch's own."""
    network, _ = backbone("timm/test_resnet", SIDE)
    names = list(module.encoder.heads.heads)
    heads = {name: nn.Sequential(nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 6)) for name in names}
    dense = {name: nn.Sequential(nn.Conv2d(96, 10, 1), nn.ReLU(), nn.Conv2d(10, 6, 1)) for name in names}
    twin = nn.ModuleDict({"backbone": network, "heads": nn.ModuleDict(heads), "dense": nn.ModuleDict(dense)})
    for part, module_of in parts(module.encoder).items():
        twin[part].double().load_state_dict(module_of.state_dict())
    return twin.train()


def encoded(net, views, role, groups):
    """For each row, in the order of `groups`: embedding (dim,), cells [(dim,)], map [(C,)], none normalised."""

    def one_pass(rows):
        last = net["backbone"].forward_features(views[rows])
        dense = of_role(net["dense"], role)(last)
        return of_role(net["heads"], role)(last.mean((2, 3))), dense, last

    passes = in_passes(net["backbone"], [lambda rows=rows: one_pass(rows) for rows in groups])
    out = [None] * len(views)
    for rows, (embeddings, dense, last) in zip(groups, passes):
        for i, row in enumerate(rows):
            places = [(y, x) for y in range(last.shape[2]) for x in range(last.shape[3])]
            cells = [dense[i, :, y, x] for y, x in places]
            out[row] = embeddings[i], cells, [last[i, :, y, x] for y, x in places]
    return out


def info_nce_of(query, key, negatives):
    positive = torch.exp((query * key).sum() / 0.2)
    others = torch.exp(torch.stack([(query * other).sum() for other in negatives]) / 0.2).sum() if negatives else 0
    return -torch.log(positive / (positive + others))


@pytest.mark.parametrize(("groups", "heads"), [(1, "per-role"), (3, "per-role"), (3, "shared")])
def test_whole_steps(groups, heads):
    """Equations 1 to 3; two queues that wrap; the shuffled batch of keys, cells and maps."""
    flags = dict(queue=2 * N, bn_groups=groups, base_lr=2.0, ema=0.9, weight_decay=1e-2, dense_weight=0.7)
    run = run_in_float64(method="densecl", crops="obj-scene", heads=heads, size=SIDE, **flags)
    recipe, module = run.recipe, run.method
    fast = plain(module)
    slow = copy.deepcopy(fast)
    slots = {name: [] for name in fast["heads"]}
    dense_slots = {name: [] for name in fast["heads"]}
    velocity = {}
    for step in range(STEPS):
        views = drawn_views(step, SIDE, SIDE)
        watched = run.take_step(batch_of(views))
        # ---- the twin
        q = query_view(recipe.seed, step)
        order = permutation(N, recipe.seed, step).tolist()
        shuffled = [order[d * N // groups : (d + 1) * N // groups] for d in range(groups)]
        with torch.no_grad():
            keys = encoded(slow, views[1 - q], ROLES[1 - q], shuffled)
        queries = encoded(fast, views[q], ROLES[q], companies(groups))
        name = ROLES[1 - q] if ROLES[1 - q] in slots else "all"
        loss, cosines = torch.zeros((), dtype=torch.float64), []
        for (query, cells, last), (key, key_cells, key_last) in zip(queries, keys):
            loss = loss + 0.3 * info_nce_of(unit(query), unit(key), slots[name]) / N
            for cell, features in zip(cells, last):
                near = [float((unit(features) * unit(other)).sum().detach()) for other in key_last]
                key_cell = unit(key_cells[near.index(max(near))])
                loss = loss + 0.7 * info_nce_of(unit(cell), key_cell, dense_slots[name]) / (N * len(cells))
                cosines.append(float((unit(cell) * key_cell).sum().detach()))
        fast.zero_grad(set_to_none=True)
        loss.backward()
        sgd(fast, velocity, cosine_rate(step, recipe), 1e-2)
        follow(slow, fast, 0.9)
        slots[name] = [*slots[name], *(unit(key) for key, _, _ in keys)][-recipe.queue :]
        pooled = [unit(sum(cells) / len(cells)) for _, cells, _ in keys]
        dense_slots[name] = [*dense_slots[name], *pooled][-recipe.queue :]
        # ---- side by side
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10, abs=1e-10)
        assert float(watched["dense_positive_similarity"]) == pytest.approx(float(np.mean(cosines)), abs=1e-10)
        ours, momentum = parts(module.encoder), parts(module.momentum_encoder)
        same(parameters(ours, grad=True), parameters(fast, grad=True), f"gradient {step}")
        same(parameters(ours), parameters(fast), f"weight {step}")
        same(parameters(momentum), parameters(slow), f"momentum encoder {step}")
        same(running(ours), running(fast), f"running statistics {step}")
        same(running(momentum), running(slow), f"momentum statistics {step}")
        for ours, theirs in ((module.queues, slots), (module.dense_queues, dense_slots)):
            for which, held in theirs.items():
                queue = ours[which]
                assert int(queue.filled.sum()) == len(held)
                if held:
                    kept = queue.keys.roll(-int(queue.place), 0)[-len(held) :]  # from the oldest on
                    torch.testing.assert_close(kept, torch.stack(held), rtol=1e-10, atol=1e-10)
    assert sum(len(held) for held in dense_slots.values()) > N


def test_without_the_dense_loss_a_step_is_moco_v2s():
    flags = dict(crops="obj-scene", size=SIDE, queue=2 * N, bn_groups=3, base_lr=2.0, ema=0.9)
    moco, dense = run_in_float64(method="moco-v2", **flags), run_in_float64(method="densecl", dense_weight=0.0, **flags)
    for name in ("encoder", "momentum_encoder"):
        known = getattr(moco.method, name).state_dict()
        missing = getattr(dense.method, name).load_state_dict(known, strict=False)
        assert not missing.unexpected_keys and all("dense_heads" in key for key in missing.missing_keys)
    for step in range(4):
        losses = [run.take_step(batch_of(drawn_views(step, SIDE, SIDE)))["loss"] for run in (moco, dense)]
        torch.testing.assert_close(*losses, rtol=1e-12, atol=1e-12)
        for part in ("encoder", "momentum_encoder"):
            ours = getattr(dense.method, part).state_dict()
            for name, value in getattr(moco.method, part).state_dict().items():
                torch.testing.assert_close(ours[name], value, rtol=1e-12, atol=1e-12)
    for name, queue in moco.method.queues.items():
        other = dense.method.queues[name]
        torch.testing.assert_close(other.keys[other.filled], queue.keys[queue.filled], rtol=1e-12, atol=1e-12)


def test_the_order_of_a_key_maps_cells_plays_no_part():
    run = run_in_float64(method="densecl", crops="obj-scene", size=96, queue=N, bn_groups=1)
    views = torch.randn(2, 8, 3, 96, 96, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    batch, module = Batch(tuple(views), torch.zeros(8, 0), torch.arange(8)), run.method
    for queue in module.dense_queues.values():
        queue.filled.fill_(True)
    keys, cells, last = module.targets(batch, 0)
    assert cells.shape == (8, 9, 6) and last.shape == (8, 9, 96)
    torch.testing.assert_close(last.square().sum(2), torch.ones(8, 9, dtype=torch.float64))
    torch.testing.assert_close(cells.square().sum(2), torch.ones(8, 9, dtype=torch.float64))
    order = torch.stack([torch.randperm(9, generator=torch.Generator().manual_seed(n)) for n in range(8)])
    moved = [x.gather(1, order[..., None].expand_as(x)) for x in (cells, last)]
    with torch.no_grad():
        loss = module(batch, (keys, cells, last), 0).loss
        torch.testing.assert_close(module(batch, (keys, *moved), 0).loss, loss, rtol=1e-12, atol=1e-12)
        assert abs(float(module(batch, (keys, moved[0], last), 0).loss - loss)) > 1e-6  # cells without their maps


def test_heads_begin_as_published():
    """WXinlong/DenseCL: Kaiming's normal over a layer's inputs for linear layers, torch's own for convolutions."""
    torch.manual_seed(0)
    head, dense = densecl_head(400, 300, 200), dense_head(400, 300, 200)
    for layer, convolution, inputs in ((head[0], dense[0], 400), (head[2], dense[2], 300)):
        assert float(layer.weight.detach().std()) == pytest.approx((2 / inputs) ** 0.5, rel=0.02)
        assert not layer.bias.any() and convolution.bias.any()
        assert float(convolution.weight.detach().std()) == pytest.approx((1 / (3 * inputs)) ** 0.5, rel=0.02)
        assert convolution.kernel_size == (1, 1)


SMALL = dict(method="densecl", arch="timm/test_resnet", size=64, batch_size=8, queue=8, dim=32, threads=2)


@pytest.mark.parametrize("flags", [{}, dict(bn_groups=4, accumulate=2), dict(precision="bf16")], ids=str)
def test_the_loss_falls_and_nothing_collapses(photos, tmp_path, flags):
    given = dict(augment="none", base_lr=0.1, ema=0.95, bn_groups=1, log_every_steps=1, online_probe=False, **SMALL)
    run = pretrain(resolve(None, {**given, "steps": 30, **flags}), photos[0], None, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    loss = [line["loss"] for line in lines]
    assert len(loss) == 30 and np.mean(loss[-6:]) < np.mean(loss[1:7]) - 0.05
    assert lines[-1]["embedding_std"] > 0.3 / np.sqrt(32) and "dense_positive_similarity" in lines[-1]
    export(run, tmp_path / "weights.pth", "timm")
    network, _ = backbone("timm/test_resnet", 64, str(tmp_path / "weights.pth"))
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 96)


def test_what_it_cannot_do_is_said():
    for flags, words in (
        (dict(queue=12), "queue is 12, but it must be a multiple of the batch_size 8"),
        (dict(dense_weight=1.5), "dense_weight is 1.5, but it must be a number from 0 to 1"),
    ):
        with pytest.raises(UsageError, match=words):
            resolve(None, {**SMALL, **flags})
