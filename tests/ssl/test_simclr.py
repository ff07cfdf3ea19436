"""SimCLR: its loss against loops, closed forms and lightly; whole steps in float64 against lightly's loss."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from lightly.loss import NTXentLoss
from torch import nn
from torch.nn.functional import normalize
from whole_steps import (
    batch_of,
    companies,
    cosine_rate,
    drawn_views,
    in_passes,
    parameters,
    run_in_float64,
    running,
    same,
)

from objcrop.catalog import Catalog
from objcrop.dali_pipes.augment import RECIPES
from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.methods.simclr import nt_xent
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain

ON_DISK = dict(
    method="simclr", arch="timm/test_resnet", size=32, batch_size=8, dim=16, hidden=32, loader="torch", workers=0
)
ON_DISK |= dict(log_every_steps=1)


def units(seed, n=7, dim=5):
    return normalize(torch.randn(n, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_nt_xent_by_loops():
    one, other = units(0), units(1)
    z = [*one.tolist(), *other.tolist()]
    total = 0.0
    for i, a in enumerate(z):
        others = [math.exp(np.dot(a, b) / 0.1) for j, b in enumerate(z) if j != i]
        total -= math.log(math.exp(np.dot(a, z[(i + 7) % 14]) / 0.1) / sum(others))
    assert float(nt_xent(one, other, 0.1)) == pytest.approx(total / 14, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.05, 0.1, 0.5])
def test_nt_xent_agrees_with_lightly(temperature):
    one, other = (units(seed, 20, 9).requires_grad_() for seed in (0, 1))
    ours = nt_xent(one, other, temperature)
    theirs = NTXentLoss(temperature)(one, other)
    assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)
    # Lightly makes rows of length 1 itself, so a gradient along a row is no matter.
    for a, b, z in zip(
        torch.autograd.grad(ours, (one, other)), torch.autograd.grad(theirs, (one, other)), (one, other)
    ):
        across = a - (a * z).sum(1, keepdim=True) * z
        torch.testing.assert_close(across, b, rtol=1e-10, atol=1e-12)


def test_what_the_loss_does_not_notice():
    one, other = units(0), units(1)
    loss = nt_xent(one, other, 0.2)
    turned = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    order = torch.randperm(7, generator=torch.Generator().manual_seed(4))
    for a, b in ((other, one), (one @ turned, other @ turned), (one[order], other[order])):
        torch.testing.assert_close(nt_xent(a, b, 0.2), loss, rtol=1e-12, atol=1e-14)


def test_closed_forms():
    same_everywhere = units(0, 1).expand(6, -1)
    assert float(nt_xent(same_everywhere, same_everywhere, 0.1)) == pytest.approx(math.log(11), rel=1e-12)
    apart = torch.eye(6, dtype=torch.float64)
    expected = math.log(1 + 10 * math.exp(-1 / 0.1))
    assert float(nt_xent(apart, apart, 0.1)) == pytest.approx(expected, rel=1e-9)


class Twin(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.backbone, _ = backbone("timm/test_resnet", 32)
        first, last = nn.Linear(96, 10, bias=False), nn.Linear(10, 6, bias=False)
        self.head = nn.Sequential(first, nn.BatchNorm1d(10), nn.ReLU(), last, nn.BatchNorm1d(6))
        self.double().train()
        self.backbone.load_state_dict(module.encoder.backbone.state_dict())
        self.head.load_state_dict(module.encoder.heads.heads["all"].state_dict())
        self.head[4].bias.requires_grad_(False)  # no shift

    def forward(self, views):
        return self.head(self.backbone(views))


def lars(net, velocity, rate, decay):
    """You et al. 2017 as Chen et al. 2020 have it: norms and biases without decay and trust."""
    with torch.no_grad():
        for name, p in net.named_parameters():
            if p.requires_grad:
                update = p.grad
                if p.ndim > 1:
                    update = update + decay * p
                    update = 0.001 * p.norm() / update.norm() * update
                velocity[name] = 0.9 * velocity.get(name, 0) + update
                p -= rate * velocity[name]


@pytest.mark.parametrize("groups", [1, 3], ids="{} devices".format)
def test_whole_steps(groups):
    """Both views of a device's images in one pass, lightly's loss of all devices' embeddings, LARS."""
    flags = dict(size=32, bn_groups=groups, base_lr=5.0, weight_decay=1e-3, warmup_epochs=0, temperature=0.5)
    run = run_in_float64(method="simclr", **flags)
    module = run.method
    twin, velocity = Twin(module), {}
    theirs, ours = {"backbone": twin.backbone, "head": twin.head}, module.encoder
    own = {"backbone": ours.backbone, "head": ours.heads.heads["all"]}
    for step in range(5):
        views = drawn_views(step, 32, 32)
        watched = run.take_step(batch_of(views))
        both = [torch.cat([view[rows] for view in views]) for rows in companies(groups)]
        made = in_passes(twin, [partial(twin, x) for x in both])
        halves = zip(*(part.chunk(2) for part in made))
        loss = NTXentLoss(0.5)(*(torch.cat(half) for half in halves))
        twin.zero_grad(set_to_none=True)
        loss.backward()
        lars(twin, velocity, cosine_rate(step, run.recipe), 1e-3)
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10)
        trained = {n for n, p in module.named_parameters() if not p.requires_grad}
        assert trained == {"encoder.heads.heads.all.4.bias"}
        gradients = [
            {f"{part}.{n}": p.grad for part, m in parts.items() for n, p in m.named_parameters() if p.requires_grad}
            for parts in (own, theirs)
        ]
        same(*gradients, f"gradient {step}")
        same(parameters(own), parameters(theirs), f"weight {step}")
        same(running(own), running(theirs), f"running statistics {step}")


def test_the_published_numbers():
    recipe = resolve("simclr", {})
    assert recipe.learning_rate == pytest.approx(4.8) and recipe.weight_decay == 1e-6 and recipe.optimiser == "lars"
    assert (
        recipe.temperature == 0.1 and recipe.dim == 128 and recipe.scale == (0.08, 1.0) and recipe.warmup_epochs == 10
    )
    (view,) = RECIPES[recipe.augment]
    assert (view.brightness, view.contrast, view.saturation, view.hue) == (0.8, 0.8, 0.8, 0.2)
    assert (view.jitter_p, view.grey_p, view.blur_p, view.flip_p) == (0.8, 0.2, 0.5, 0.5)
    assert view.sigma == (0.1, 2.0) and view.interpolation == "bicubic" and view.std == (0.229, 0.224, 0.225)


@pytest.mark.parametrize(
    ("flags", "word"),
    [
        (dict(accumulate=2), "accumulate .2. cannot act here: the method takes a step as a whole"),
        (dict(crops="scene"), "make 1 view, but simclr takes 2: take scene-scene"),
        (dict(local_views=2, local_size=16), "make 4 views, but simclr takes 2"),
        (dict(queue=64), "queue .64. cannot act here"),
        (dict(heads="shared"), "heads .* cannot act here"),
    ],
)
def test_wrong_use(photos, tmp_path, flags, word):
    with pytest.raises(UsageError, match=word) as said:
        pretrain(resolve(None, {**ON_DISK, "steps": 1, **flags}), photos[0], None, tmp_path / "run")
    assert "\n" not in str(said.value)


def test_another_methods_checkpoint_is_refused(photos, tmp_path):
    pretrain(resolve(None, {**ON_DISK, "method": "byol", "steps": 1}), photos[0], None, tmp_path / "run")
    with pytest.raises(ObjcropError, match="was trained with method=byol, not simclr"):
        pretrain(resolve(None, {**ON_DISK, "steps": 2}), photos[0], None, tmp_path / "run", resume=True)


def test_it_learns_and_does_not_collapse(photos, tmp_path):
    catalog, _ = photos
    rows = range(len(catalog))
    facts = (catalog.root, catalog.keys(), catalog.sizes, catalog.orientations)
    labelled = Catalog.build(*facts, classes=["a", "b"], label_rows=rows, label_classes=[row % 2 for row in rows])
    flags = dict(
        steps=60, optimiser="sgd", base_lr=2.0, weight_decay=1e-4, warmup_epochs=0, augment="none", online_probe=True
    )
    pretrain(resolve(None, {**ON_DISK, **flags}), labelled, None, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    loss = [line["loss"] for line in lines]
    assert np.mean(loss[-9:]) < np.mean(loss[:9]) - 0.3
    assert lines[-1]["embedding_std"] > 0.3 / 4 and 0 <= lines[-1]["online_map"] <= 1


def test_bf16_takes_the_loss_in_float32(photos, tmp_path, monkeypatch):
    seen = []

    def loss(one, other, temperature):
        seen.extend([one.dtype, (one @ other.T).dtype])
        return nt_xent(one, other, temperature)

    monkeypatch.setattr("objcrop.ssl.methods.simclr.nt_xent", loss)
    pretrain(resolve(None, {**ON_DISK, "steps": 1, "precision": "bf16"}), photos[0], None, tmp_path / "run")
    assert seen == [torch.float32] * 2
