"""CMC: Lab by other means, the loss and the banks by loops, whole steps in float64 against a twin of its formulas."""

import copy
import math

import cv2
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from whole_steps import (
    N,
    batch_of,
    companies,
    cosine_rate,
    drawn_views,
    in_passes,
    parameters,
    run_in_float64,
    running,
    same,
    sgd,
    unit,
)

from objcrop.dali_pipes.augment import Augment
from objcrop.dali_pipes.philox_torch import integers
from objcrop.errors import UsageError
from objcrop.ssl.evaluation.frozen_features import frozen_backbone
from objcrop.ssl.export import FORMATS, export
from objcrop.ssl.methods.cmc import CMC, nce_loss
from objcrop.ssl.methods.info_nce import info_nce
from objcrop.ssl.methods.method import Batch, Data
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.lab import lab, lab_views
from objcrop.ssl.networks.memory_bank import MemoryBank
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain

TINY = dict(method="cmc", arch="lab/resnet18", size=16)
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def lab_by_matrix(rgb):
    """CIE 15 and IEC 61966-2-1 of (…, 3) from 0 to 1, in NumPy."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, np.power((rgb + 0.055) / 1.055, 2.4))
    to_xyz = np.array([[0.412453, 0.35758, 0.180423], [0.212671, 0.71516, 0.072169], [0.019334, 0.119193, 0.950227]])
    t = linear @ to_xyz.T / [0.95047, 1, 1.08883]
    f = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.stack([116 * f[..., 1] - 16, 500 * (f[..., 0] - f[..., 1]), 200 * (f[..., 1] - f[..., 2])], axis=-1)


def views_of(pictures):
    """Pictures (N, H, W, 3) from 0 to 1 as a loader hands them out."""
    return torch.from_numpy((pictures - MEAN) / STD).permute(0, 3, 1, 2)


def test_lab_is_that_of_others():
    pictures = np.random.default_rng(0).random((3, 20, 20, 3))
    pictures[0] *= 0.05  # where gamma and Lab are straight lines
    ours = lab(torch.from_numpy(pictures).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    np.testing.assert_allclose(ours, lab_by_matrix(pictures), rtol=1e-10, atol=1e-10)
    theirs = np.stack([cv2.cvtColor(picture, cv2.COLOR_RGB2Lab) for picture in pictures.astype(np.float32)])
    assert np.abs(ours - theirs).max() < 1 and np.abs(ours - theirs).mean() < 0.1  # of ±100, by tables
    known = {
        (1, 1, 1): (100, 0, 0),
        (0, 0, 0): (0, 0, 0),
        (1, 0, 0): (53.24, 80.09, 67.20),
        (0, 0, 1): (32.3, 79.2, -107.9),
    }
    greys = lab(torch.linspace(0, 1, 50, dtype=torch.float64).expand(1, 3, 1, 50))
    assert greys[:, 1:].abs().max() < 0.02 and (greys[0, 0, 0].diff() > 0).all()
    for rgb, expected in known.items():
        found = lab(torch.tensor(rgb, dtype=torch.float64).view(1, 3, 1, 1)).flatten().numpy()
        np.testing.assert_allclose(found, expected, atol=0.05)


def test_views_become_lab_of_minus_one_to_one():
    pictures = np.random.default_rng(1).random((2, 8, 8, 3))
    made = lab_views(views_of(pictures)).permute(0, 2, 3, 1).numpy()
    expected = (lab_by_matrix(pictures) - [50, 6.025, -6.6895]) / [50, 92.208, 101.1675]
    np.testing.assert_allclose(made, expected, rtol=1e-9, atol=1e-9)
    corners = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1]), -1).reshape(1, 8, 1, 3).astype(float)
    found = lab_views(views_of(corners))
    assert found.amax((0, 2, 3)).numpy() == pytest.approx(1, abs=0.01)
    assert found.amin((0, 2, 3)).numpy() == pytest.approx(-1, abs=0.01)
    narrow = lab_views(views_of(corners * 1.02 - 0.01).bfloat16())  # a bit outside, as bicubic resizing leaves it
    assert narrow.dtype == torch.float32 and torch.isfinite(narrow).all()


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_both_networks_are_half_as_wide_but_for_the_stem(name):
    """CMC's models/resnet.py: a stem of 64, then 32, 64, 128 and 256 planes."""
    network, width = backbone(f"lab/{name}", 224)
    expansion = {"resnet18": 1, "resnet50": 4}[name]
    assert width == 2 * 256 * expansion
    for part, channels in ((network.l, 1), (network.ab, 2)):
        assert (
            part.conv1.weight.shape == (64, channels, 7, 7) and len(part.layer3) == {"resnet18": 2, "resnet50": 6}[name]
        )
        assert [part.get_submodule(f"layer{i}.0").conv1.out_channels for i in (1, 2, 3, 4)] == [32, 64, 128, 256]
        assert part.layer1[0].conv1.in_channels == 64 and part.layer2[0].downsample[0].stride == (2, 2)
        spread = float(part.layer4[0].conv2.weight.std())
        assert spread == pytest.approx(math.sqrt(2 / (9 * 256)), rel=0.02)
    pictures = np.random.default_rng(2).random((2, 64, 64, 3))
    network.eval().double()
    seen = lab_views(views_of(pictures))
    apart = torch.cat([network.l(seen[:, :1]), network.ab(seen[:, 1:])], dim=1)
    torch.testing.assert_close(network(views_of(pictures)), apart)


def test_noise_contrast_by_loops():
    scores, n = drawn(3, 6).exp(), 9
    total = 0.0
    for row in scores.tolist():
        total -= math.log(row[0] / (row[0] + 5 / n + 1e-7))
        total -= sum(math.log((5 / n) / (h + 5 / n + 1e-7)) for h in row[1:])
    assert float(nce_loss(scores, n)) == pytest.approx(total / 3, rel=1e-12)


def test_a_bank_keeps_the_last_of_equal_samples():
    bank = MemoryBank(9, 5)
    assert bank.rows.abs().max() <= math.sqrt(3 / 5) and not torch.allclose(bank.rows.norm(dim=1), torch.ones(9))
    bank.double()
    before, embeddings = bank.rows.clone(), normalize(drawn(6, 5), dim=1)
    index = torch.tensor([3, 7, 3, 0, 7, 7])
    expected = before.clone()
    for row, embedding in zip(index.tolist(), embeddings):
        expected[row] = unit(0.5 * before[row] + 0.5 * embedding)
    bank.update(index, embeddings)
    torch.testing.assert_close(bank.rows, expected, rtol=1e-12, atol=1e-14)
    picked = torch.randint(0, 9, (6, 4), generator=torch.Generator().manual_seed(0))
    by_loops = [[float(bank.rows[k] @ v) for k in row] for row, v in zip(picked, embeddings)]
    np.testing.assert_allclose(bank.similarities(embeddings, picked).numpy(), by_loops, rtol=1e-12)


def method_of(samples=20, **flags):
    torch.manual_seed(0)
    return CMC(resolve(None, {**TINY, "batch_size": N, "negatives": 5, **flags}), Data(("scene",), samples=samples))


def dealt(method, views, samples):
    plan = batch_of(views).plan
    plan.sample = np.asarray(samples)
    order = method.devices.order(N)
    views = tuple(method.devices.deal(view) for view in views)
    return Batch(views, torch.zeros(N, 0), torch.arange(N)[order], plan.take(order))


def test_softmax_is_info_nce():
    """Of one row each; NCE and softmax see the same similarities."""
    method = method_of(loss="softmax", dim=6).double()
    batch = dealt(method, drawn_views(0, 16), np.arange(N) % 20)
    (index,) = method.targets(batch, 3)
    banks = copy.deepcopy(method.banks)
    loss = method(batch, (index,), 3).loss
    features = copy.deepcopy(method.encoder.backbone)(batch.views[0])
    total = 0.0
    for a, b in (("l", "ab"), ("ab", "l")):
        part = features.chunk(2, 1)[a == "ab"]
        found = normalize(method.encoder.heads.heads[a](part), dim=1)
        for v, row in zip(found, index):
            rows = banks[b].rows
            total += float(info_nce(v[None], rows[row[:1]], rows[row[1:]], 0.07).detach()) / N
    assert float(loss.detach()) == pytest.approx(total, rel=1e-10)


def test_negatives_are_a_function_of_seed_step_and_sample():
    method = method_of(samples=1000, negatives=50)
    views = drawn_views(0, 16)
    (index,) = method.targets(dealt(method, views, np.arange(N)), 4)
    assert index.shape == (N, 51) and index.min() >= 0 and index.max() < 1000 and len(index.unique()) > 500
    assert index[:, 0].tolist() == list(range(N))
    (again,) = method.targets(dealt(method, views, np.arange(N)[::-1].copy()), 4)
    assert torch.equal(again, index.flip(0))
    (later,) = method.targets(dealt(method, views, np.arange(N)), 5)
    assert not torch.equal(later[:, 1:], index[:, 1:])
    with pytest.raises(UsageError, match="remembers 1000 samples, but boxes scored anew"):
        method.targets(dealt(method, views, np.arange(N) + 990), 4)


@pytest.mark.parametrize("groups", [1, 3], ids="{} devices".format)
def test_whole_steps(groups):
    """HobbitLong/CMC's NCEAverage and NCECriterion by loops; samples that come twice in a batch; SGD."""
    n, many = 30, 5
    flags = dict(
        TINY, hidden=None, negatives=many, bn_groups=groups, base_lr=1.0, weight_decay=1e-2, local_views=0, steps=4
    )
    run = run_in_float64(("scene",), samples=n, **flags)
    recipe, module = run.recipe, run.method
    twin = nn.ModuleDict({"backbone": backbone("lab/resnet18", 16)[0]})
    twin["heads"] = nn.ModuleDict({side: nn.Linear(256, 6) for side in ("l", "ab")})
    twin.double().train()
    twin["backbone"].load_state_dict(module.encoder.backbone.state_dict())
    twin["heads"].load_state_dict(module.encoder.heads.heads.state_dict())
    banks = {side: [row.clone() for row in module.banks[side].rows] for side in ("l", "ab")}
    z, velocity = {}, {}
    for step in range(run.total):
        views = drawn_views(step, 16)
        batch = batch_of(views)
        batch.plan.sample = (np.arange(N) * 7 + step) % n
        batch.plan.sample[N // 2] = batch.plan.sample[3]
        watched = run.take_step(batch)
        # ---- the twin
        pixels = np.clip(views[0].permute(0, 2, 3, 1).numpy() * STD + MEAN, 0, 1)
        seen = (lab_by_matrix(pixels) - [50, 6.025, -6.6895]) / [50, 92.208, 101.1675]
        seen = torch.from_numpy(seen).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        embeddings = {}
        for side, part in (("l", seen[:, :1]), ("ab", seen[:, 1:])):
            net = twin["backbone"].get_submodule(side)
            rows = companies(groups)
            passes = in_passes(net, [lambda rows=rows, net=net, part=part: net(part[rows]) for rows in rows])
            features = torch.empty(N, 256, dtype=torch.float64)
            features = features.index_copy(0, torch.tensor(rows).flatten(), torch.cat(passes))
            embeddings[side] = [unit(v) for v in twin["heads"][side](features)]
        negatives = integers(recipe.seed, step, torch.from_numpy(batch.plan.sample), "negatives", many, n).tolist()
        loss = torch.zeros((), dtype=torch.float64)
        for a, b in (("l", "ab"), ("ab", "l")):
            outs = []
            for v, own, others in zip(embeddings[a], batch.plan.sample, negatives):
                outs.append([torch.exp((v * banks[b][k]).sum() / 0.07) for k in (own, *others)])
            if step == 0:
                z[a] = sum(float(out.detach()) for row in outs for out in row) / (N * (many + 1)) * n
            for positive, *rest in [[out / z[a] for out in row] for row in outs]:
                loss = loss - torch.log(positive / (positive + many / n + 1e-7)) / N
                for h in rest:
                    loss = loss - torch.log(many / n / (h + many / n + 1e-7)) / N
        for side, bank in banks.items():
            moved = [unit(0.5 * bank[own] + 0.5 * v.detach()) for own, v in zip(batch.plan.sample, embeddings[side])]
            for own, row in zip(batch.plan.sample, moved):
                bank[own] = row
        twin.zero_grad(set_to_none=True)
        loss.backward()
        gradients = parameters(twin, grad=True)
        sgd(twin, velocity, cosine_rate(step, recipe), 1e-2)
        # ---- side by side
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10, abs=1e-10)
        ours = {"backbone": module.encoder.backbone, "heads": module.encoder.heads.heads}
        same(parameters(ours, grad=True), gradients, f"gradient {step}")
        same(parameters(ours), parameters(twin), f"weight {step}")
        same(running(ours), running(twin), f"running statistics {step}")
        for side, bank in banks.items():
            torch.testing.assert_close(module.banks[side].rows, torch.stack(bank), rtol=1e-10, atol=1e-10)
        found = [float(module.banks[side].z) for side in ("ab", "l")]
        assert found == pytest.approx([z["l"], z["ab"]], rel=1e-10)


# ---- what is refused, and training


def learning(**flags):
    given = dict(TINY, batch_size=8, negatives=20, threads=2, log_every_steps=1, dim=32)
    given |= dict(optimiser="adam", base_lr=0.01, scale=(0.7, 1.0))
    return {**given, **flags}


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (dict(arch="resnet18"), "arch is 'resnet18', but cmc sees lightness and colour: take lab/NAME"),
        (dict(arch="lab/vit_b_16"), "arch is 'vit_b_16', but it must be"),
        (dict(augment="swav"), "augment is 'swav', but cmc goes back to colours .*: take flip"),
        (dict(augment=Augment(mean=(0, 0, 0))), "goes back to colours"),
        (dict(crops="scene-scene"), "make 2 views, but cmc takes 1"),
        (dict(accumulate=2), r"accumulate \(2\) cannot act here: the method takes a step as a whole"),
        (dict(hidden=64), "it is an option of method"),
        (dict(negatives=0), "negatives is 0"),
    ],
    ids=str,
)
def test_wrong_use_is_a_sentence(photos, tmp_path, flags, word):
    with pytest.raises(UsageError, match=word) as said:
        pretrain(None, photos[0], None, tmp_path / "run", **learning(steps=1, **flags))
    assert "\n" not in str(said.value)


def test_the_loss_falls_and_nothing_collapses(photos, tmp_path):
    last = pretrain(None, photos[0], None, tmp_path / "run", **learning(steps=40))
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    losses = [line["loss"] for line in lines]
    assert np.mean(losses[-6:]) < np.mean(losses[:6]) - 0.1
    assert lines[-1]["embedding_std"] > 0.3 / np.sqrt(32)
    network, size = frozen_backbone(last)
    assert size == 16 and network.eval()(torch.zeros(1, 3, 16, 16)).shape == (1, 512)
    for form in FORMATS:
        with pytest.raises(UsageError, match="two networks of lightness and of colour, which no format holds"):
            export(last, tmp_path / "out", form)


def test_compiled_in_one_graph_and_in_bf16_it_is_nearly_the_same():
    plain = method_of(bn_groups=2)
    compiled, narrow = copy.deepcopy(plain), copy.deepcopy(plain)
    compiled.encoder.backbone.compile(backend="eager", fullgraph=True)
    batch, losses = dealt(plain, [view.float() for view in drawn_views(0, 16)], np.arange(N) % 20), []
    for method, bf16 in ((plain, False), (compiled, False), (narrow, True)):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            output = method(batch, method.targets(batch, 0), 0)
        output.loss.backward()
        losses.append(float(output.loss.detach()))
        assert output.loss.dtype == torch.float32
    assert losses[1] == pytest.approx(losses[0], rel=1e-3) and losses[2] == pytest.approx(losses[0], rel=0.1)
