"""SoCo: boxes chosen, jittered and cut by loops, levels and their correspondence as published, whole steps."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import grid_sample, interpolate, normalize
from torchvision.ops import roi_align
from whole_steps import (
    STEPS,
    N,
    batch_of,
    companies,
    cosine_rate,
    drawn_views,
    follow,
    in_passes,
    lars,
    parameters,
    run_in_float64,
    running,
    same,
    unit,
)

from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.philox import uniforms
from objcrop.dali_pipes.view_boxes import ViewBoxes
from objcrop.errors import UsageError
from objcrop.ssl.export import export
from objcrop.ssl.methods.byol import byol_loss
from objcrop.ssl.methods.soco import level_of, pair_loss, pool_regions
from objcrop.ssl.methods.soco_boxes import cut_out, draws, jittered, shared_boxes
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.fpn import Pyramid
from objcrop.ssl.networks.heads import byol_head, region_head
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import pretrain

K = 3


def some_boxes(n, side, seed, most=6, dtype=torch.float64):
    """Boxes of a view of n images, 0 to `most` an image, not all of which show."""
    rng = np.random.default_rng(seed)
    found = [(i, b) for i in range(n) for b in range(i % (most + 1)) if rng.random() < 0.8]
    low = rng.uniform(0, 0.6, (len(found), 2))
    corners = np.concatenate([low, low + rng.uniform(0.1, 0.4, low.shape)], 1) * side
    sample, box = (torch.tensor([pair[k] for pair in found], dtype=torch.int64) for k in (0, 1))
    return ViewBoxes(torch.tensor(corners, dtype=dtype).view(-1, 4), sample, box, torch.ones(len(found)))


def by_image(boxes, side):
    """Each image's boxes by number, shares of the view's side."""
    found = {}
    for corners, sample, box in zip(boxes.corners, boxes.sample.tolist(), boxes.box.tolist()):
        found.setdefault(sample, {})[box] = corners / side
    return found


def chosen_by_loops(first, second, sides, choice):
    """[(number, first, second) of each of K] of each image; a box that was taken is out of the hat."""
    ours, theirs = by_image(first, sides[0]), by_image(second, sides[1])
    out, whole = [], torch.tensor([0, 0, 1, 1], dtype=first.corners.dtype)
    for i, row in enumerate(choice.tolist()):
        common = sorted(set(ours.get(i, {})) & set(theirs.get(i, {})))
        hat, taken = list(common), []
        for u in row:
            taken.append(hat.pop(int(u * len(hat))) if hat else common[int(u * len(common))] if common else -1)
        out.append([(b, ours[i][b] if b >= 0 else whole, theirs[i][b] if b >= 0 else whole) for b in taken])
    return out


@pytest.mark.parametrize("k", [1, 4])
@pytest.mark.parametrize("most", [0, 6])
def test_boxes_are_chosen_as_by_hand(k, most):
    for seed in range(12):
        first, second = some_boxes(20, 64, 2 * seed, most), some_boxes(20, 32, 2 * seed + 1, most)
        choice = torch.tensor(np.random.default_rng(seed).random((20, k)))
        found = shared_boxes(first, second, (64, 32), choice)
        for i, expected in enumerate(chosen_by_loops(first, second, (64, 32), choice)):
            assert found.box[i].tolist() == [number for number, _, _ in expected]
            torch.testing.assert_close(found.first[i], torch.stack([a for _, a, _ in expected]))
            torch.testing.assert_close(found.second[i], torch.stack([b for _, _, b in expected]))
    none = ViewBoxes(*(part[:0] for part in first.tensors()))
    for pair in ((none, second), (first, none), (none, none)):
        found = shared_boxes(*pair, (64, 32), choice)
        assert (found.box == -1).all() and (found.first == torch.tensor([0, 0, 1, 1])).all()


def test_every_choice_is_as_likely_as_any_other():
    sample = np.arange(9000)
    boxes = ViewBoxes(
        torch.zeros(6 * 9000, 4),
        torch.from_numpy(sample.repeat(6)),
        torch.arange(6).repeat(9000),
        torch.ones(6 * 9000),
    )
    choice = draws(3, 7, sample, 1, 4, torch.device("cpu")).choice[:, 0]
    found = shared_boxes(boxes, boxes, (8, 8), choice).box
    assert all(len(set(row)) == 4 for row in found[:50].tolist())
    for slot in range(4):  # 1,500 each, six standard deviations wide
        counts = torch.bincount(found[:, slot], minlength=6)
        assert int((counts - 1500).abs().max()) < 6 * math.sqrt(9000 * 5 / 36)


def test_draws_are_of_seed_step_and_sample():
    sample, cpu = np.array([5, 3, 9]), torch.device("cpu")
    drawn = draws(1, 2, sample, 2, 4, cpu)
    again = draws(1, 2, sample[::-1].copy(), 2, 4, cpu)
    other = [draws(8, 2, sample, 2, 4, cpu), draws(1, 3, sample, 2, 4, cpu)]
    for part, (mine, theirs) in enumerate(zip(drawn, again)):
        assert torch.equal(mine, theirs.flip(0)) and mine.unique().numel() == mine.numel()
        assert not any(torch.isin(mine, each[part]).any() for each in other)
    assert drawn.jitter.shape == (3, 2, 4, 5) and drawn.cut.shape == (3, 2, 4, 4)
    assert float(drawn.jitter[1, 1, 2, 3]) == uniforms(1, 2, 3, 2, "box_jitter", 20)[2 * 5 + 3]


def test_jitter_by_a_loop():
    rng = np.random.default_rng(0)
    low = rng.uniform(0, 0.7, (6, 4, 2))
    boxes = torch.tensor(np.concatenate([low, low + rng.uniform(0.1, 0.3, low.shape)], 2))
    draw = torch.tensor(rng.random((6, 4, 5)))
    found, moved = jittered(boxes, draw, 0.1), 0
    for i in range(6):
        for k in range(4):
            x0, y0, x1, y1 = boxes[i, k].tolist()
            whether, dx, dy, dw, dh = draw[i, k].tolist()
            if whether < 0.5:
                w, h = x1 - x0, y1 - y0
                x0, y0 = x0 + (0.2 * dx - 0.1) * w, y0 + (0.2 * dy - 0.1) * h
                x1, y1 = x0 + (0.9 + 0.2 * dw) * w, y0 + (0.9 + 0.2 * dh) * h
                moved += 1
            expected = [min(max(c, 0), 1) for c in (x0, y0, x1, y1)]
            np.testing.assert_allclose(found[i, k].numpy(), expected, atol=1e-12)
    assert 0 < moved < 24 and torch.equal(jittered(boxes, draw, 0.0), boxes)


@pytest.mark.parametrize("chance", [0.0, 0.5, 1.0])
def test_cutout_by_loops(chance):
    rng = np.random.default_rng(1)
    low = rng.uniform(0, 0.6, (5, 3, 2))
    boxes = torch.tensor(np.concatenate([low, low + rng.uniform(0.1, 0.4, low.shape)], 2))
    draw = torch.tensor(rng.random((5, 3, 4)))
    views = (torch.rand(5, 3, 40, 40, dtype=torch.float64) + 1).contiguous(memory_format=torch.channels_last)
    expected = views.clone()
    for i in range(5):
        for k in range(3):
            x0, y0, x1, y1 = (boxes[i, k] * 40).tolist()
            whether, share, x, y = draw[i, k].tolist()
            if whether < chance:
                side = round(math.sqrt((x1 - x0) * (y1 - y0) * (0.1 + 0.2 * share)))
                left, top = (round(a + (b - a) * u - side / 2) for a, b, u in ((x0, x1, x), (y0, y1, y)))
                expected[i, :, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
    found = cut_out(views, boxes, draw, chance)
    assert torch.equal(found, expected) and found.is_contiguous(memory_format=torch.channels_last)
    assert bool((found == 0).any()) == (chance > 0) and views.min() >= 1


@pytest.mark.parametrize("side", [224, 112])
def test_levels_are_those_of_hologerry_soco(side):
    rng = np.random.default_rng(2)
    sides = [(48, 48), (48.5, 48), (96, 96), (97, 96), (24, 96), (side, side), *rng.uniform(1, side, (50, 2)).tolist()]
    boxes = torch.tensor([[0, 0, min(w, side) / side, min(h, side) / side] for w, h in sides], dtype=torch.float64)
    found = level_of(boxes, side, 224).tolist()
    for (w, h), level in zip(sides, found):
        root = math.sqrt(min(w, side) * min(h, side))
        assert level == next(i for i, most in enumerate((48, 96, 192, 224.001)) if root <= most + 1e-9)
    assert set(found) == ({0, 1, 2, 3} if side == 224 else {0, 1, 2})
    assert level_of(boxes, side // 2, 112).tolist() == found  # in proportion at another size


def test_the_pair_loss_is_that_of_the_published_correspondence():
    """A matrix over (level, box) of both views: 1 where both slots hold one box; all others hold marks of their own."""
    generator = torch.Generator().manual_seed(0)
    levels, n, k = 4, 5, 3
    of_a, of_b = (unit_rows(torch.randn(n, levels, k, 6, dtype=torch.float64, generator=generator)) for _ in "ab")
    level_a, level_b = (torch.randint(levels, (n, k), generator=generator) for _ in "ab")
    box = torch.randint(2, (n, k), generator=generator)
    total = 0.0
    for i in range(n):
        slots = [[[mark] * k for _ in range(levels)] for mark in (-1, -2)]
        for j in range(k):
            slots[0][level_a[i, j]][j] = slots[1][level_b[i, j]][j] = int(box[i, j])
        met, cosines = 0, 0.0
        for la in range(levels):
            for ka in range(k):
                for lb in range(levels):
                    for kb in range(k):
                        if slots[0][la][ka] == slots[1][lb][kb]:
                            met, cosines = met + 1, cosines + float((of_a[i, la, ka] * of_b[i, lb, kb]).sum())
        total += -2 * cosines / met / n
    own_a, own_b = (
        torch.stack([torch.stack([of[i, level[i, j], j] for j in range(k)]) for i in range(n)])
        for of, level in ((of_a, level_a), (of_b, level_b))
    )
    assert float(pair_loss(own_a, own_b, box)) == pytest.approx(total, abs=1e-12)


def unit_rows(x):
    return normalize(x, dim=-1)


def test_with_one_box_it_is_byols_loss():
    a, b = torch.randn(2, 7, 5, dtype=torch.float64)
    ours = pair_loss(unit_rows(a)[:, None], unit_rows(b)[:, None], torch.full((7, 1), -1))
    torch.testing.assert_close(ours, byol_loss(a, b) - 2, rtol=1e-12, atol=1e-12)


def roi_by_points(level, n, box):
    """RoIAlign of one box by its definition: means of points spread evenly in each of 7 × 7 cells, bilinear."""
    side = level.shape[-1]
    x0, y0, x1, y1 = (box * side - 0.5).tolist()
    axes = []
    for low, high in ((y0, y1), (x0, x1)):
        cell = (high - low) / 7
        count = math.ceil(cell)
        at = torch.tensor(
            [low + (c + (j + 0.5) / count) * cell for c in range(7) for j in range(count)], dtype=level.dtype
        )
        axes.append((at.clamp(0, side - 1), count))
    (y, in_y), (x, in_x) = axes
    grid = torch.stack(torch.broadcast_tensors(x[None, :], y[:, None]), -1)
    found = grid_sample(level[n : n + 1], grid[None] / (side - 1) * 2 - 1, align_corners=True)[0]
    return found.unflatten(1, (7, in_y)).unflatten(3, (7, in_x)).mean((2, 4))


def test_regions_are_pooled_by_their_definition():
    rng = np.random.default_rng(3)
    low = rng.uniform(0, 0.6, (3, 4, 2))
    boxes = torch.tensor(np.concatenate([low, low + rng.uniform(0.05, 0.4, low.shape)], 2))
    level = torch.randn(3, 2, 30, 30, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = pool_regions(level, boxes)
    for i in range(3):
        for k in range(4):
            torch.testing.assert_close(found[4 * i + k], roi_by_points(level, i, boxes[i, k]), rtol=1e-10, atol=1e-10)
    constant = pool_regions(torch.arange(6.0).view(3, 2, 1, 1).expand(-1, -1, 9, 9), boxes)
    torch.testing.assert_close(constant, torch.arange(6.0).view(3, 1, 2, 1, 1).expand(-1, 4, -1, 7, 7).flatten(0, 1))


def test_the_pyramid_by_its_layers():
    torch.manual_seed(0)
    made = Pyramid((4, 6, 8), 5)
    maps = [torch.randn(2, c, s, s) for c, s in ((4, 13), (6, 7), (8, 4))]
    found = made(maps)
    (fine, middle, top), out = made.levels.inner_blocks, made.levels.layer_blocks
    for layer in (*fine, *middle, *top, *(part for each in out for part in each)):
        assert isinstance(layer, nn.BatchNorm2d) or layer.bias is None
    p = [fine[1](fine[0](maps[0])), middle[1](middle[0](maps[1])), top[1](top[0](maps[2]))]
    p[1] = p[1] + p[2][..., [0, 0, 1, 1, 2, 2, 3], :][..., [0, 0, 1, 1, 2, 2, 3]]  # the nearest
    p[0] = p[0] + interpolate(p[1], size=(13, 13), mode="nearest")
    for ours, block, each in zip(found, out, p):
        torch.testing.assert_close(ours, block[1](nn.functional.conv2d(each, block[0].weight, padding=1)))
    convolution = made.levels.layer_blocks[0][0].weight
    assert float(convolution.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 5)), rel=0.2)


def test_the_policy_shows_the_whole_image_and_two_crops(photos):
    catalog, boxes = photos
    how = dict(crops="soco", scale=(0.5, 1.0), size=64, batch_size=8, threads=2)
    with load_views(catalog, boxes=boxes, view_boxes=True, **how) as loader:
        batch = next(iter(loader))
        assert loader.planner.sizes == (64, 64, 32)
    sizes = catalog.sizes[batch.plan.row]
    np.testing.assert_array_equal(batch.plan.windows[:, 0], np.concatenate([np.zeros_like(sizes), sizes], 1))
    low, high = batch.plan.windows[..., :2].astype(float), batch.plan.windows[..., 2:].astype(float)
    share = (high - low).prod(-1) / sizes[:, None].prod(-1)
    assert (share[:, 1:] > 0.45).all() and (share[:, 1:] < 1).any() and (share[:, 0] == 1).all()
    assert (batch.plan.sigma[:, 0] > 0).all() and not batch.plan.solarise[:, 0].any()  # no turn
    assert [view.shape for view in batch.views] == [(8, 3, 64, 64), (8, 3, 64, 64), (8, 3, 32, 32)]
    with pytest.raises(UsageError, match=r"augment .* cannot act here: every view of crops 'soco' has an augmentation"):
        load_views(catalog, augment="none", **how)


SMALL = dict(method="soco", crops="soco", size=64, pyramid_width=6, region_width=12, shared_boxes=K)


def parts(module):
    encoder = module.encoder
    return {
        "backbone": encoder.backbone,
        "pyramid": encoder.pyramid,
        "head": encoder.region_head,
        "projector": encoder.heads.heads["all"],
        "predictor": module.predictor,
    }


def plain(module):
    """The same layers with the same weights, BatchNorm torch's own."""
    network, _ = backbone("timm/test_resnet", 64)
    twin = nn.ModuleDict({"backbone": network, "pyramid": Pyramid((32, 48, 192, 96), 6), "head": region_head(6, 12, 7)})
    twin["projector"], twin["predictor"] = byol_head(12, 10, 6), byol_head(6, 10, 6)
    for part, module_of in parts(module).items():
        twin[part].double().load_state_dict(module_of.state_dict())
    return twin.train()


def levels_of(net, views):
    """P2 to P5 by their layers, of the stages of timm's ResNet."""
    network, blocks = net["backbone"], net["pyramid"].levels
    x, inner = network.maxpool(network.act1(network.bn1(network.conv1(views)))), []
    for stage, block in enumerate(blocks.inner_blocks, 1):
        x = network.get_submodule(f"layer{stage}")(x)
        inner.append(block[0](x))
    inner[3] = blocks.inner_blocks[3][1](inner[3])
    for i in (2, 1, 0):
        inner[i] = blocks.inner_blocks[i][1](inner[i]) + interpolate(inner[i + 1], size=inner[i].shape[2:])
    return [block[1](block[0](each)) for block, each in zip(blocks.layer_blocks, inner)]


def vectors(net, levels, boxes, predict):
    """A vector of each level (rows × K, dim) for boxes [[(4,)] of K] of rows."""
    made = []
    for level in levels:
        regions = [torch.stack(of_row) * level.shape[-1] for of_row in boxes]
        z = net["projector"](net["head"](roi_align(level, regions, 7, aligned=True)))
        made.append(net["predictor"](z) if predict else z)
    return made


def own_level(box, side):
    root = math.sqrt(float((box[2] - box[0]) * (box[3] - box[1]))) * side
    return next(i for i, most in enumerate((48, 96, 192, 1e9)) if root <= most * 64 / 224)


@pytest.mark.parametrize("groups", [1, 3], ids="{} devices".format)
def test_whole_steps(groups):
    """Three views, two pairs; boxes, jitter and squares drawn anew; LARS; the target's schedule; four steps and one."""
    run = run_in_float64(bn_groups=groups, base_lr=20.0, ema=0.9, weight_decay=1e-3, warmup_epochs=0, **SMALL)
    recipe, module = run.recipe, run.method
    module.momentum_encoder.load_state_dict(module.encoder.state_dict())
    online = plain(module)
    target = copy.deepcopy(online)
    del target["predictor"]
    velocity, moved = {}, 0
    for step in range(STEPS):
        views = drawn_views(step, 64, 64, 32)
        boxes = [some_boxes(N, view.shape[-1], 100 * step + v) for v, view in enumerate(views)]
        watched = run.take_step(batch_of(views, boxes=tuple(boxes)))
        # ---- the twin
        drawn = draws(recipe.seed, step, np.arange(N), 2, K, torch.device("cpu"))
        sets, cut = [], [views[0]]
        for p in (0, 1):
            chosen = chosen_by_loops(boxes[0], boxes[p + 1], (64, views[p + 1].shape[-1]), drawn.choice[:, p])
            first, second = (torch.stack([torch.stack([b[j] for b in row]) for row in chosen]) for j in (1, 2))
            first = jittered(first, drawn.jitter[:, p], 0.1)
            cut.append(cut_out(views[p + 1], second, drawn.cut[:, p], 0.5))
            sets.append(([[b[0] for b in row] for row in chosen], first, second))
            moved += int((cut[-1] != views[p + 1]).any())

        def seen(net, rows, predict, cut=cut, sets=sets):
            """For the first view and both sets, then for each other view: a vector of each level for each box."""
            levels = levels_of(net, cut[0][rows])
            made = [vectors(net, levels, [list(first[row]) for row in rows], predict) for _, first, _ in sets]
            for p, (_, _, second) in enumerate(sets):
                of_view = levels_of(net, cut[p + 1][rows])
                made.append(vectors(net, of_view, [list(second[row]) for row in rows], predict))
            return made

        with torch.no_grad():
            passes = [lambda rows=rows: seen(target, rows, False) for rows in companies(groups)]
            to = in_passes(target, passes)
        passes = [lambda rows=rows: seen(online, rows, True) for rows in companies(groups)]
        predicted = in_passes(online, passes)
        loss = torch.zeros((), dtype=torch.float64)
        for rows, ours, theirs in zip(companies(groups), predicted, to):
            for p, (numbers, first, second) in enumerate(sets):
                sides = (64, views[p + 1].shape[-1])
                for a, b, of_a, of_b in ((p, 2 + p, first, second), (2 + p, p, second, first)):
                    side_a, side_b = sides if a == p else sides[::-1]
                    for i, row in enumerate(rows):
                        met, total = 0, 0.0
                        for ka in range(K):
                            for kb in range(K):
                                if numbers[row][ka] == numbers[row][kb]:
                                    x = ours[a][own_level(of_a[row, ka], side_a)][i * K + ka]
                                    y = theirs[b][own_level(of_b[row, kb], side_b)][i * K + kb]
                                    met, total = met + 1, total + (unit(x) * unit(y)).sum()
                        loss = loss - 2 * total / met / N
        online.zero_grad(set_to_none=True)
        loss.backward()
        for p in online.parameters():
            p.grad = torch.zeros_like(p) if p.grad is None else p.grad
        lars(online, velocity, cosine_rate(step, recipe), 1e-3)
        follow(target, online, 1 - (1 - 0.9) * (math.cos(math.pi * (step + 1) / STEPS) + 1) / 2)
        # ---- side by side
        assert float(watched["loss"]) == pytest.approx(float(loss.detach()), rel=1e-10, abs=1e-10)
        ours, theirs = parts(module), dict(online.items())
        same(parameters(ours, grad=True), parameters(theirs, grad=True), f"gradient {step}")
        same(parameters(ours), parameters(theirs), f"weight {step}")
        for each in (ours, theirs):
            each.pop("predictor")  # its statistics follow the same batches in another order
        same(running(ours), running(theirs), f"running statistics {step}")
        twin = copy.copy(module)
        twin._modules = {**module._modules, "encoder": module.momentum_encoder}
        slow = {name: part for name, part in parts(twin).items() if name != "predictor"}
        same(parameters(slow), parameters(dict(target.items())), f"target network {step}")
    assert moved == 2 * STEPS


TINY = dict(SMALL, arch="timm/test_resnet", batch_size=8, dim=16, hidden=64, threads=2, shared_boxes=4)


def test_bf16_and_devices(photos, tmp_path):
    # Not smaller: of 3 × 3 convolutions on maps of one cell oneDNN's weight gradient in bf16 is what memory held.
    given = dict(TINY, precision="bf16", bn_groups=2, steps=3, log_every_steps=1, size=128)
    pretrain(resolve(None, given), *photos, tmp_path / "run")
    assert all(-8.01 < line["loss"] < 8.01 for line in read_metrics(tmp_path / "run" / "metrics.jsonl"))


@pytest.mark.slow
def test_the_loss_falls_and_nothing_collapses(photos, tmp_path):
    given = dict(TINY, optimiser="sgd", base_lr=0.3, warmup_epochs=0, pyramid_width=16, region_width=64, steps=30)
    run = pretrain(resolve(None, {**given, "log_every_steps": 1}), *photos, tmp_path / "run")
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    loss = [line["loss"] for line in lines]
    assert len(loss) == 30 and np.mean(loss[-6:]) < np.mean(loss[:6]) - 0.05
    assert lines[-1]["embedding_std"] > 0.3 / np.sqrt(16)
    export(run, tmp_path / "weights.pth", "timm")
    network, _ = backbone("timm/test_resnet", 64, str(tmp_path / "weights.pth"))
    assert network(torch.zeros(1, 3, 64, 64)).shape == (1, 96)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (dict(boxes=None), "method soco looks at boxes; pass --boxes"),
        (dict(accumulate=2, bn_groups=4), "accumulate .* cannot act here: the method takes a step as a whole"),
        (dict(crops="scene"), "crops 'scene' make 1 view, but soco takes 2 to 16"),
        (dict(arch="timm/test_vit"), "arch is 'timm/test_vit', which does not give 4 feature maps"),
        (dict(augment="byol"), "augment .* cannot act here: every view of crops 'soco'"),
        (dict(heads="shared"), "heads .* cannot act here: it is an option of method"),
        (dict(queue=8), "queue .* cannot act here: it is an option of method"),
    ],
)
def test_what_it_cannot_do_is_said(photos, tmp_path, flags, words):
    catalog, boxes = photos
    given = {**TINY, "steps": 1, **flags}
    boxes = given.pop("boxes", boxes)
    with pytest.raises(UsageError, match=words) as said:
        pretrain(resolve(None, given), catalog, boxes, tmp_path / "run")
    assert "\n" not in str(said.value)
