"""ViTDet against loops over patches and windows, Cascade R-CNN's stages against a plain loop."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from objcrop.errors import UsageError
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.transfer.cascade_heads import OVERLAPS, WEIGHTS
from objcrop.ssl.transfer.origin import Origin
from objcrop.ssl.transfer.vitdet import RelativePositions, ViTDetBackbone, layer_scale, vitdet_detector

SIZES = [(64, 96), (48, 70)]


def origin(arch="timm/test_vit", size=160):
    torch.manual_seed(0)
    return Origin(backbone(arch, size)[0], arch, size)


def moved(module, seed=1):
    """Give weights that begin at zero or one others."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.1 * torch.randn(p.shape, generator=draw)
    return module.eval()


@pytest.mark.parametrize("size", [(3, 4), (5, 2)])
def test_relative_positions_against_loops(size):
    h, w = size
    positions = moved(RelativePositions(5, 6))
    queries = torch.randn(2, 3, h * w, 6)
    bias = positions(queries, size).detach().numpy()

    def table(rows, side):
        if side == 5:
            return rows.detach().numpy()
        return F.interpolate(rows.T[None], 2 * side - 1, mode="linear")[0].T.detach().numpy()

    down, across, q = table(positions.down, h), table(positions.across, w), queries.numpy()
    for y, x, j, k in np.ndindex(h, w, h, w):
        wanted = q[:, :, y * w + x] @ down[y - j + h - 1] + q[:, :, y * w + x] @ across[x - k + w - 1]
        np.testing.assert_allclose(bias[:, :, y * w + x, j * w + k], wanted, atol=1e-5)


def test_attention_over_the_whole_image_is_timm_s_but_for_positions():
    ours = ViTDetBackbone(origin(), 8, 160).eval()
    x = torch.randn(2, 5, 7, 64)
    for i, block in enumerate(ours.body.blocks):
        out = ours._block(block, ours.positions[i], x, None)
        torch.testing.assert_close(out.flatten(1, 2), block(x.flatten(1, 2)), atol=1e-5, rtol=1e-4)


def test_attention_in_windows_against_loops():
    """Windows that reach over the edge see zeros there."""
    ours = moved(ViTDetBackbone(origin(), 8, 160))
    block, positions, window = ours.body.blocks[0], ours.positions[0], 4
    x = torch.randn(2, 6, 9, 64)
    normed, seen, attention = block.norm1(x), torch.zeros_like(x), block.attn
    for n in range(2):
        for top in range(0, 6, window):
            for left in range(0, 9, window):
                tile = torch.zeros(window, window, 64)
                part = normed[n, top : top + window, left : left + window]
                tile[: part.shape[0], : part.shape[1]] = part
                q, k, v = attention.qkv(tile.flatten(0, 1)).view(16, 3, attention.num_heads, -1).permute(1, 2, 0, 3)
                weights = (q @ k.transpose(1, 2) * q.shape[-1] ** -0.5 + positions(q[None], (4, 4))[0]).softmax(-1)
                out = attention.proj((weights @ v).transpose(0, 1).flatten(1)).view(window, window, 64)
                seen[n, top : top + window, left : left + window] = out[: part.shape[0], : part.shape[1]]
    wanted = x + seen
    wanted = wanted + block.mlp(block.norm2(wanted))
    torch.testing.assert_close(ours._block(block, positions, x, window), wanted, atol=1e-4, rtol=1e-4)


def test_the_pyramid_halves_its_sides_and_every_weight_learns():
    ours = ViTDetBackbone(origin(), 8, 160).train()
    maps = ours(torch.randn(2, 3, 96, 160))
    assert list(maps) == ["0", "1", "2", "3", "pool"]
    assert [tuple(m.shape) for m in maps.values()] == [(2, 8, -(-96 // s), -(-160 // s)) for s in (4, 8, 16, 32, 64)]
    sum(m.square().sum() for m in maps.values()).backward()
    assert all(p.grad is not None for p in ours.parameters() if p.requires_grad)
    assert ours.whole == {0, 2, 3, 5}  # of ViT-B, 2, 5, 8 and 11
    assert {(quarter + 1) * 12 // 4 - 1 for quarter in range(4)} == {2, 5, 8, 11}


def test_rates_fall_from_the_last_block_to_the_first():
    """Detectron2's get_vit_lr_decay_rate at .7."""
    names = {"backbone.body.blocks.11.mlp.fc1.weight": 0.7, "backbone.body.blocks.0.attn.qkv.bias": 0.7**12,
             "backbone.body.pos_embed": 0.7**13, "backbone.body.patch_embed.proj.weight": 0.7**13,
             "backbone.pyramid.0.0.weight": 1, "roi_heads.box_predictor.cls_score.bias": 1}  # fmt: skip
    assert {name: layer_scale(name, 12) for name in names} == pytest.approx(names)


def detector(cascade):
    return vitdet_detector(origin(), 3, cascade=cascade, anchor=16, regions=64, width=8, longest=96)


def targets():
    boxes = torch.tensor([[8.0, 16, 36, 44], [50, 5, 90, 40], [3, 3, 15, 20]])
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": torch.zeros(0, 48, 70).byte()}
    return [{"boxes": boxes, "labels": torch.tensor([1, 3, 2]), "masks": torch.ones(3, 64, 96).byte()}, none]


def encoded(boxes, truth, weights):
    (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes.unbind(1), truth.unbind(1)
    w, h = x1 - x0, y1 - y0
    offsets = ((u0 + u1 - x0 - x1) / 2 / w, (v0 + v1 - y0 - y1) / 2 / h, ((u1 - u0) / w).log(), ((v1 - v0) / h).log())
    return torch.stack(offsets, 1) * torch.tensor(weights)


def applied(boxes, offsets, weights, shape):
    (dx, dy, dw, dh), (x0, y0, x1, y1) = (offsets / torch.tensor(weights)).unbind(1), boxes.unbind(1)
    w, h = x1 - x0, y1 - y0
    cx, cy, w, h = x0 + w / 2 + dx * w, y0 + h / 2 + dy * h, w * dw.exp(), h * dh.exp()
    moved = torch.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)
    return moved.clamp(min=0).minimum(torch.tensor([shape[1], shape[0]] * 2))


def test_stages_of_a_cascade_against_a_plain_loop():
    heads = detector(True).roi_heads
    with torch.no_grad():
        for predictor in heads.box_predictor:
            predictor.bbox_pred.weight.mul_(100)
            predictor.cls_score.weight.mul_(20)
    maps = {str(i): torch.randn(2, 8, 16 >> i, 24 >> i) for i in range(4)}
    proposals = [targets()[0]["boxes"] + torch.tensor([2.0, -1, 3, 4]), torch.tensor([[5.0, 5, 50, 40]])]
    truth, boxes = targets(), [torch.cat([proposals[0], targets()[0]["boxes"]]), proposals[1]]
    _, losses = heads(maps, proposals, SIZES, truth)
    for stage in range(3):
        labels, wanted = [], []
        for box in boxes[0]:
            shared = torch.minimum(box[2:], truth[0]["boxes"][:, 2:]) - torch.maximum(box[:2], truth[0]["boxes"][:, :2])
            shared = shared.clamp(min=0).prod(1)
            areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (box, truth[0]["boxes"])]
            overlap = shared / (areas[0] + areas[1] - shared)
            best = int(overlap.argmax())
            labels.append(int(truth[0]["labels"][best]) if overlap[best] >= OVERLAPS[stage] else 0)
            wanted.append(truth[0]["boxes"][best])
        labels = torch.tensor([*labels, 0])
        features = heads.box_head[stage](heads.box_roi_pool(list(maps.values()), boxes))
        logits, offsets = heads.box_predictor[stage](features)
        loss = F.cross_entropy(logits, labels)
        assert losses[f"classifier{stage}"].item() == pytest.approx(loss.item(), rel=1e-4)
        differ = (offsets[:6] - encoded(boxes[0], torch.stack(wanted), WEIGHTS[stage])).abs().sum(1)
        box = (differ * (labels[:6] > 0)).sum() / 7
        assert losses[f"box{stage}"].item() == pytest.approx(box.item(), rel=1e-4)
        parts = offsets.detach().split([6, 1])
        boxes = [applied(b, o, WEIGHTS[stage], size) for b, o, size in zip(boxes, parts, SIZES)]
    regions = torch.randn(2, 8, 16, 24, requires_grad=True)
    given = {**maps, "0": regions}
    (_, losses), before = heads(given, proposals, SIZES, truth), None
    losses["classifier0"].backward()
    before = regions.grad.clone()
    regions.grad = None
    pooled = heads.box_roi_pool(
        [regions, *list(maps.values())[1:]], [torch.cat([proposals[0], truth[0]["boxes"]]), proposals[1]]
    )
    logits, _ = heads.box_predictor[0](heads.box_head[0](pooled))
    F.cross_entropy(logits, torch.tensor([1, 3, 2, 1, 3, 2, 0])).backward()
    torch.testing.assert_close(before, regions.grad / 3, atol=1e-6, rtol=1e-3)


def test_a_cascade_tests_by_the_mean_of_its_scores():
    heads = detector(True).roi_heads.eval()
    with torch.no_grad():
        for predictor in heads.box_predictor:
            predictor.bbox_pred.weight.mul_(100)
            predictor.cls_score.weight.mul_(20)
    maps = {str(i): torch.randn(2, 8, 16 >> i, 24 >> i) for i in range(4)}
    boxes = [torch.tensor([[2.0, 3, 30, 40], [40, 10, 90, 60]]), torch.tensor([[5.0, 5, 50, 40]])]
    with torch.no_grad():
        found, _ = heads(maps, boxes, SIZES)
        scores = []
        for stage in range(3):
            logits, offsets = heads.box_predictor[stage](
                heads.box_head[stage](heads.box_roi_pool(list(maps.values()), boxes))
            )
            scores.append(logits.softmax(1))
            boxes = [applied(b, o, WEIGHTS[stage], s) for b, o, s in zip(boxes, offsets.split([2, 1]), SIZES)]
    mean = torch.stack(scores).mean(0).split([2, 1])
    for image, score, box in zip(found, mean, boxes):
        assert len(image["boxes"])
        for b, s, label in zip(image["boxes"], image["scores"], image["labels"]):
            near = (box - b).abs().sum(1).argmin()
            torch.testing.assert_close(box[near], b, atol=1e-3, rtol=1e-4)
            assert s.item() == pytest.approx(score[near, label].item(), rel=1e-4)


@pytest.mark.parametrize("cascade", [False, True])
def test_without_objects_every_loss_is_finite_and_every_weight_has_a_gradient(cascade):
    ours, (_, none) = detector(cascade).train(), targets()
    losses = ours.losses(torch.randn(2, 3, 64, 96), [SIZES[1]] * 2, [none] * 2)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters() if p.requires_grad)


def test_networks_that_are_no_plain_transformer_are_said():
    with pytest.raises(UsageError, match="arch is 'resnet18', but vitdet takes a plain Vision Transformer"):
        vitdet_detector(origin("resnet18", 224), 3, cascade=False, anchor=32, regions=64, width=8, longest=96)
