"""What a method of one's own is told and may do: the step's rows, groups, gradients left out, buffers kept."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from objcrop.errors import UsageError
from objcrop.option import option
from objcrop.option_value import whole
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.methods.method import Encoder, Method, Output
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.heads import RoleHeads
from objcrop.ssl.networks.shuffle_bn import VirtualDevices
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.recipe import Recipe, resolve
from objcrop.ssl.training.trainer import pretrain


@dataclass(frozen=True)
class BankRecipe(Recipe):
    """Options of a bank."""

    frozen: int = option(2, whole(0, 100), "steps that the head stays as it is")


class Bank(Method):
    """Mean features of every image, kept in a buffer as large as the data; the head waits for its turn."""

    options = BankRecipe
    takes = range(1, 5)
    needs_boxes = True
    seen: list = []  # noqa: RUF012, what each step was told

    def __init__(self, recipe, data):
        super().__init__(recipe, data)
        network, width = backbone(recipe.arch, recipe.size)
        self.devices = VirtualDevices(recipe.batch_size, recipe.virtual_devices)
        self.encoder = Encoder(network, RoleHeads(("all",), True, lambda: nn.Linear(width, 4)), width)
        self.devices.normalise(self.encoder)
        self.register_buffer("bank", torch.zeros(data.samples, 4))
        self.kept = self.encoder.heads.heads["all"].weight.detach().clone()

    def targets(self, batch, step):
        Bank.seen.append(batch)
        return (self.bank[batch.row],)

    def forward(self, batch, targets, step):
        features, made = self.encoder(batch.views[0], "all")
        self.bank[batch.row] = made.detach()
        return Output((made - targets[0] - 1).square().mean(), features.detach(), {})

    def parameter_groups(self):
        heads = list(self.encoder.heads.parameters())
        return [{"params": list(self.encoder.backbone.parameters())}, {"params": heads, "lr_scale": 10.0}]

    def before_step(self, step):
        if step < self.recipe.frozen:
            for p in self.encoder.heads.parameters():
                p.grad = None


FLAGS = dict(method="test_own_method:Bank", arch="timm/test_resnet", size=32, batch_size=8, threads=2, bn_groups=4)
FLAGS |= dict(log_every_steps=1, augment="flip")


def run(photos, output, **flags):
    Bank.seen.clear()
    pretrain(resolve(None, {**FLAGS, **flags}), *photos, output)
    return load_checkpoint(output / "last.pt")


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(__file__.rpartition("/")[0])
    monkeypatch.setitem(__import__("sys").modules, "test_own_method", __import__("sys").modules[__name__])


def test_rows_of_all_kinds_are_dealt_alike(photos, tmp_path):
    run(photos, tmp_path / "run", steps=1, crops="obj-obj+dilate")
    (batch,) = Bank.seen
    _, boxes = photos
    np.testing.assert_array_equal(batch.plan.row, batch.row.numpy())
    assert batch.plan.sample[0] != batch.plan.sample[1] and len(batch.views) == 2
    for v, found in enumerate(batch.boxes):
        assert len(found) and (np.diff(found.sample.numpy()) >= 0).all()
        for sample, number, corners in zip(found.sample.tolist(), found.box.tolist(), found.corners.numpy()):
            x0, y0, x1, y1 = batch.plan.windows[sample, v].astype(float)
            a, b, c, d = (float(side) for side in boxes[int(batch.row[sample])][number])
            left, right = ((min(max(x, x0), x1) - x0) / (x1 - x0) * 32 for x in (a, c))
            top, bottom = ((min(max(y, y0), y1) - y0) / (y1 - y0) * 32 for y in (b, d))
            if batch.plan.flip[sample, v]:
                left, right = 32 - right, 32 - left
            np.testing.assert_allclose(corners, (left, top, right, bottom), atol=1e-3)


def test_groups_frozen_tensors_and_a_bank_as_large_as_the_data(photos, tmp_path):
    first = run(photos, tmp_path / "a", steps=2)["method"]
    kept = run(photos, tmp_path / "b", steps=4)
    assert (
        kept["method"]["bank"].shape == (24, 4) and (kept["method"]["bank"] != 0).any(1).all()
    )  # three steps an epoch
    name = "encoder.heads.heads.all.weight"
    torch.manual_seed(0)
    made = Bank(resolve(None, FLAGS), _data()).kept
    torch.testing.assert_close(first[name], made)  # two steps without a gradient, and without decay
    assert (kept["method"][name] - made).abs().max() > 1e-4
    rates = [group["lr"] for group in kept["optimiser"]["param_groups"]]
    assert rates[1] == pytest.approx(10 * rates[0]) and rates[0] > 0


def _data():
    from objcrop.ssl.methods.method import Data

    return Data(("scene", "scene"), samples=24)


def test_what_it_cannot_do_is_said(photos, tmp_path):
    with pytest.raises(UsageError, match="accumulate is 2, but test_own_method:Bank takes a step's boxes together"):
        run(photos, tmp_path / "x", steps=1, accumulate=2)
    with pytest.raises(UsageError, match="make 6 views, but test_own_method:Bank takes 1 to 4"):
        run(photos, tmp_path / "x", steps=1, local_views=4, local_size=16)
    for name, word in (("Nothing", "cannot be imported"), ("BankRecipe", "no subclass")):
        with pytest.raises(UsageError, match=word) as said:
            resolve(None, {**FLAGS, "method": f"test_own_method:{name}"})
        assert "\n" not in str(said.value)
    with pytest.raises(UsageError, match="looks at boxes; pass --boxes"):
        pretrain(resolve(None, {**FLAGS, "steps": 1}), photos[0], None, tmp_path / "x")
    assert "test_own_method:Bank" not in METHODS
