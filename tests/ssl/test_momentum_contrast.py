"""Corners of the methods: queues whose end falls inside a batch, places not filled yet, gradients of all parameters."""

import pytest
import torch
from torch.nn.functional import normalize

from objcrop.ssl.methods.byol import BYOL
from objcrop.ssl.methods.info_nce import info_nce
from objcrop.ssl.methods.method import Batch, Data
from objcrop.ssl.methods.moco import MoCo, query_view
from objcrop.ssl.networks.key_queue import KeyQueue
from objcrop.ssl.training.recipe import resolve

SMALL = dict(arch="resnet18", size=16, batch_size=8, queue=16, dim=8, hidden=32, bn_groups=1)


def step_of(model, views, step):
    """Loss of one step as the trainer takes it."""
    batch = Batch(tuple(views), torch.zeros(len(views[0]), 3), torch.arange(len(views[0])))
    return model(batch, model.targets(batch, step), step).loss


def test_queue_wraps_inside_a_batch():
    queue, seen = KeyQueue(7, 2), []
    for n in (3, 3, 3, 5, 1):
        keys = torch.rand(n, 2)
        queue.push(keys)
        seen += keys.tolist()
        held = sorted(queue.keys[queue.filled].tolist())
        assert held == sorted(seen[-7:])
    assert int(queue.place) == 15 % 7


def test_places_not_filled_are_no_negatives():
    q, k, negatives = (normalize(torch.randn(n, 4, dtype=torch.float64), dim=1) for n in (3, 3, 6))
    valid = torch.tensor([True, False, True, True, False, False])
    torch.testing.assert_close(info_nce(q, k, negatives, 0.2, valid), info_nce(q, k, negatives[valid], 0.2))
    q.requires_grad_()
    info_nce(q, k, negatives, 0.2, torch.zeros(6, dtype=torch.bool)).backward()
    assert torch.equal(q.grad, torch.zeros_like(q))


@pytest.mark.parametrize(("method", "build"), [("moco-v2", MoCo), ("byol", BYOL)])
def test_all_that_trains_has_a_gradient_at_every_step(method, build):
    torch.manual_seed(0)
    queue = SMALL["queue"] if method == "moco-v2" else None
    model = build(resolve(None, {**SMALL, "method": method, "queue": queue}), Data(("object", "scene")))
    views = torch.randn(2, 8, 3, 16, 16)
    still = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    assert still and all(name.startswith("momentum_encoder.") for name in still)
    for step in range(4):
        model.zero_grad(set_to_none=True)
        step_of(model, list(views), step).backward()
        assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(torch.equal(dict(model.named_parameters())[name], p) for name, p in still.items())
    model.after_step(0.5)
    optimised = dict(model.named_parameters())
    for name, before in still.items():
        torch.testing.assert_close(optimised[name], before)  # the encoder has not moved, so its average has not
    with torch.no_grad():
        model.encoder.heads.heads["object"][0].weight.add_(1)
    model.after_step(0.0)
    name = "momentum_encoder.heads.heads.object.0.weight"
    ema = model.recipe.ema
    torch.testing.assert_close(optimised[name], still[name] + (1 - ema), atol=1e-6, rtol=1e-5)


def test_keys_of_a_role_go_to_its_queue():
    moco = MoCo(resolve(None, SMALL), Data(("object", "scene")))
    for step in range(6):
        before = {name: int(queue.place) for name, queue in moco.queues.items()}
        step_of(moco, list(torch.randn(2, 8, 3, 16, 16)), step)
        assert all(int(queue.place) == before[name] for name, queue in moco.queues.items())
        moco.after_step(0.0)
        moved = [name for name, queue in moco.queues.items() if int(queue.place) != before[name]]
        assert moved == [moco.roles[1 - query_view(0, step)]]
