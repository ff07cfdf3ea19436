"""The detectors against torchvision's own, and what Detectron2 has otherwise against its definition."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.models import resnet18
from torchvision.models.detection import FasterRCNN, MaskRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import MultiScaleRoIAlign

from objcrop.errors import UsageError
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.transfer.origin import Origin
from objcrop.ssl.transfer.paste_masks import pasted
from objcrop.ssl.transfer.proposal_network import Anchors
from objcrop.ssl.transfer.rcnn import DETECTRON2, TORCHVISION
from objcrop.ssl.transfer.rcnn_c4 import c4_detector
from objcrop.ssl.transfer.rcnn_fpn import fpn_detector
from objcrop.ssl.transfer.roi_align import PyramidRoIAlign

SIZES = [(64, 96), (48, 70)]


def origin(arch="resnet18", size=224):
    torch.manual_seed(0)
    return Origin(backbone(arch, size)[0], arch, size)


def batch(masks=True):
    """Two images in one frame, the second smaller, with three objects and with none."""
    draw = torch.Generator().manual_seed(5)
    images = torch.randn(2, 3, 64, 96, generator=draw)
    images[1, :, 48:] = images[1, :, :, 70:] = 0
    boxes = torch.tensor([[8.0, 16, 36, 44], [50, 5, 90, 40], [3, 3, 15, 20]])
    drawn = torch.zeros(3, 64, 96, dtype=torch.uint8)
    for mask, (x0, y0, x1, y1) in zip(drawn, boxes.int().tolist()):
        mask[y0:y1, x0:x1] = torch.rand(y1 - y0, x1 - x0, generator=draw) < 0.8
    none = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "masks": torch.zeros(0, 48, 70).byte()}
    targets = [{"boxes": boxes, "labels": torch.tensor([1, 3, 2]), "masks": drawn}, none]
    return images, targets if masks else [{k: v for k, v in t.items() if k != "masks"} for t in targets]


def torchvision_s(masks):
    torch.manual_seed(1)
    pyramid = _resnet_fpn_extractor(resnet18(norm_layer=nn.BatchNorm2d), 5, norm_layer=nn.BatchNorm2d)
    as_they_come = {"min_size": 64, "max_size": 96, "image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    return (MaskRCNN if masks else FasterRCNN)(
        pyramid,
        4,
        rpn_post_nms_top_n_train=1000,
        box_batch_size_per_image=64,
        box_detections_per_img=12,
        **as_they_come,
    )


@pytest.mark.parametrize("masks", [False, True])
def test_losses_and_detections_are_torchvision_s(masks):
    theirs = torchvision_s(masks)
    ours = fpn_detector(origin(), 3, masks=masks, anchor=32, regions=64, convention=TORCHVISION)
    ours.to(memory_format=torch.contiguous_format).load_state_dict(theirs.state_dict())
    ours.roi_heads.detections_per_img = 12
    images, targets = batch(masks)
    theirs.transform.resize = lambda image, target=None: (image, target)
    torch.manual_seed(2)
    wanted = theirs.train()([image[:, :h, :w] for image, (h, w) in zip(images, SIZES)], copy.deepcopy(targets))
    torch.manual_seed(2)
    losses = ours.train().losses(images, SIZES, targets)
    names = {"classifier": "loss_classifier", "box": "loss_box_reg", "objectness": "loss_objectness",
             "rpn_box": "loss_rpn_box_reg", "mask": "loss_mask"}  # fmt: skip
    assert {names[name] for name in losses} == wanted.keys()
    for name, loss in losses.items():
        assert loss.item() > 0 and loss.item() == pytest.approx(wanted[names[name]].item(), abs=1e-5)
    sum(losses.values()).backward()
    sum(wanted.values()).backward()
    for (name, ours_p), theirs_p in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(ours_p.grad, theirs_p.grad, atol=1e-4, rtol=1e-3, msg=name)
    with torch.no_grad():
        found, maps = ours.eval()(images, SIZES), theirs.eval().backbone(images)
        proposals, _ = theirs.rpn(ImageList(images, SIZES), maps)
        expected, _ = theirs.roi_heads(maps, proposals, SIZES)
    for mine, other in zip(found, expected):
        assert len(mine["boxes"]) > 10
        for name in ("boxes", "scores", "labels"):
            torch.testing.assert_close(mine[name], other[name], atol=1e-3, rtol=1e-4)
        if masks:
            torch.testing.assert_close(mine["masks"], other["masks"][:, 0], atol=1e-5, rtol=1e-4)


def test_regions_are_those_of_torchvision_s_pooling():
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 5, 256 >> i, 320 >> i, generator=draw) for i in range(4)]
    corner = torch.rand(40, 2, generator=draw) * 600
    boxes = torch.cat([corner, corner + 4 + torch.rand(40, 2, generator=draw) ** 3 * 600], 1).split([25, 15])
    theirs = MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2)
    wanted = theirs({str(i): m for i, m in enumerate(maps)}, list(boxes), [(1024, 1280)] * 2)
    found = PyramidRoIAlign(7, (4, 8, 16, 32), aligned=False, samples=2)(maps, boxes)
    torch.testing.assert_close(found, wanted)


def test_an_aligned_region_of_whole_cells_is_the_map_itself():
    map_ = torch.randn(1, 2, 16, 16)
    (region,) = PyramidRoIAlign(8, [4])([map_], [torch.tensor([[16.0, 8, 48, 40]])])
    torch.testing.assert_close(region, map_[0, :, 2:10, 4:12])


def test_anchors_keep_their_area_aspect_and_stride():
    anchors = Anchors([[32, 48], [64, 96]], [8, 16])
    maps = [torch.zeros(1, 1, 3, 4), torch.zeros(1, 1, 2, 2)]
    (found,) = anchors(ImageList(torch.zeros(1, 3, 24, 32), [(24, 32)]), maps)
    wanted = [
        (x * stride, y * stride, side / ratio**0.5, side * ratio**0.5)
        for (high, wide), sides, stride in (((3, 4), (32, 48), 8), ((2, 2), (64, 96), 16))
        for y in range(high)
        for x in range(wide)
        for ratio in (0.5, 1, 2)
        for side in sides
    ]
    centre, sides = (found[:, :2] + found[:, 2:]) / 2, found[:, 2:] - found[:, :2]
    np.testing.assert_allclose(torch.cat([centre, sides], 1).numpy(), wanted, atol=1e-4)


def test_detectron2_s_losses_by_hand():
    """Absolute differences for boxes; masks compared with what is seen of them, rounded."""
    ours = fpn_detector(origin("timm/test_resnet"), 3, masks=True, anchor=16, regions=64, width=8)
    heads = ours.roi_heads
    images, targets = batch()
    proposals = [targets[0]["boxes"] + torch.tensor([1.0, -1, 2, 3]), torch.tensor([[5.0, 5, 50, 50]])]
    maps = ours.backbone(images)
    _, losses = heads(maps, proposals, SIZES, targets)
    boxes = [torch.cat([proposals[0], targets[0]["boxes"]]), proposals[1]]
    logits, offsets = heads.box_predictor(heads.box_head(heads.box_roi_pool(list(maps.values())[:4], boxes)))
    labels = [1, 3, 2, 1, 3, 2]
    total = 0.0
    for i, label in enumerate(labels):
        (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes[0][i].tolist(), targets[0]["boxes"][i % 3].tolist()
        wanted = (10 * ((u0 + u1 - x0 - x1) / 2) / (x1 - x0), 10 * ((v0 + v1 - y0 - y1) / 2) / (y1 - y0),
                  5 * np.log((u1 - u0) / (x1 - x0)), 5 * np.log((v1 - v0) / (y1 - y0)))  # fmt: skip
        total += sum(abs(a - b) for a, b in zip(wanted, offsets[i, 4 * label : 4 * label + 4].tolist()))
    assert losses["box"].item() == pytest.approx(total / 7, rel=1e-4)
    wanted = nn.functional.cross_entropy(logits, torch.tensor([*labels, 0]))
    assert losses["classifier"].item() == pytest.approx(wanted.item(), rel=1e-5)
    shown = heads._shown(targets[0]["masks"], torch.tensor([[8.0, 16, 36, 44]]), torch.tensor([0]), 28)
    torch.testing.assert_close(shown[0], targets[0]["masks"][0, 16:44, 8:36].float())
    assert DETECTRON2.beta == 0 and DETECTRON2.aligned and DETECTRON2.exact_anchors


def test_without_objects_every_loss_is_finite_and_every_weight_has_a_gradient():
    ours = fpn_detector(origin("timm/test_resnet"), 3, masks=True, anchor=16, regions=64, width=8).train()
    images, targets = batch()
    losses = ours.losses(images, [SIZES[1]] * 2, [targets[1]] * 2)
    assert losses["mask"].item() == losses["box"].item() == losses["rpn_box"].item() == 0
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.parameters() if p.requires_grad)


def test_boxes_stay_float32_in_bf16():
    ours = fpn_detector(origin("timm/test_resnet"), 3, masks=True, anchor=16, regions=64, width=8)
    images, targets = batch()
    with torch.autocast("cpu", torch.bfloat16):
        losses = ours.train().losses(images, SIZES, targets)
        found = ours.eval()(images, SIZES)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {value.dtype for image in found for name, value in image.items() if name != "labels"} == {torch.float32}


@pytest.mark.parametrize("seed", range(3))
def test_masks_are_laid_into_their_image_as_by_loops(seed):
    from pycocotools import mask as coco_mask

    rng = np.random.default_rng(seed)
    masks = rng.random((4, 7, 7)).astype(np.float32)
    low = rng.uniform(0, (20, 15), (4, 2))
    boxes = np.concatenate([low, np.minimum(low + rng.uniform(0.2, 25, (4, 2)), (37, 29))], 1)
    found = pasted(torch.from_numpy(masks), torch.from_numpy(boxes), (29, 37))
    for mask, (x0, y0, x1, y1), rle in zip(np.pad(masks, ((0, 0), (1, 1), (1, 1))), boxes, found):
        drawn = coco_mask.decode({**rle, "counts": rle["counts"].encode()})
        assert drawn.shape == (29, 37)
        for y in range(29):
            for x in range(37):
                u, v = (x + 0.5 - x0) / (x1 - x0) * 7 + 0.5, (y + 0.5 - y0) / (y1 - y0) * 7 + 0.5
                value = 0.0
                if int(x0) <= x < x1 and int(y0) <= y < y1 and 0 <= u < 8 and 0 <= v < 8:
                    (i, j), (a, b) = (int(v), int(u)), (v % 1, u % 1)
                    value = sum(mask[i + k, j + m] * (a if k else 1 - a) * (b if m else 1 - b)
                                for k in (0, 1) for m in (0, 1))  # fmt: skip
                assert drawn[y, x] == (value >= 0.5) or abs(value - 0.5) < 1e-5


def test_networks_without_a_pyramid_are_said():
    for arch in ("timm/test_vit", "lab/resnet18"):
        with pytest.raises(UsageError, match=f"arch is '{arch}', which does not give 4 feature maps"):
            fpn_detector(origin(arch, 160), 3, masks=False, anchor=32, regions=64)


def naive_roi_align(map_, box, stride, cells):
    """A region of a map (C, h, w) by loops: in each cell the mean of bilinear values at evenly spread points."""
    (x0, y0, x1, y1), out = (np.array(box) / stride - 0.5).tolist(), np.zeros((len(map_), cells, cells))
    high, wide = (y1 - y0) / cells, (x1 - x0) / cells
    rows, columns = int(np.ceil(high)), int(np.ceil(wide))
    _, h, w = map_.shape
    for i in range(cells):
        for j in range(cells):
            for k in range(rows):
                for m in range(columns):
                    y, x = y0 + high * (i + (k + 0.5) / rows), x0 + wide * (j + (m + 0.5) / columns)
                    if not (-1 <= y <= h and -1 <= x <= w):
                        continue
                    y, x = min(max(y, 0), h - 1), min(max(x, 0), w - 1)
                    top, left = min(int(y), max(h - 2, 0)), min(int(x), max(w - 2, 0))
                    a, b = y - top, x - left
                    corner = map_[:, top : top + 2, left : left + 2]
                    out[:, i, j] += np.einsum("chw,h,w->c", corner, (1 - a, a), (1 - b, b)) / (rows * columns)
    return out


def test_c4_s_box_head_against_a_plain_one():
    """Regions by loops, torchvision's last stage, BatchNorm by its formula, means, two linear layers, masks of them."""
    torch.manual_seed(3)
    theirs, ours = resnet18().train(), None
    network, _ = backbone("resnet18", 224)
    network.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    ours = c4_detector(Origin(network, "resnet18", 224), 3, masks=True, anchor=16, regions=64).train()
    heads = ours.roi_heads
    with torch.no_grad():
        heads.box_head.norm.weight.uniform_(0.5, 2)
        heads.box_head.norm.bias.uniform_(-1, 1)
    images, targets = batch()
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    c4 = theirs.layer3(theirs.layer2(theirs.layer1(x)))
    maps = ours.backbone(images)
    torch.testing.assert_close(maps["0"], c4, atol=1e-4, rtol=1e-4)
    proposals = [targets[0]["boxes"] + torch.tensor([1.0, -1, 2, 3]), torch.tensor([[5.0, 5, 50, 40]])]
    _, losses = heads(maps, proposals, SIZES, targets)

    boxes = [*proposals[0].tolist(), *targets[0]["boxes"].tolist(), *proposals[1].tolist()]
    of = [0] * 6 + [1]
    regions = np.stack([naive_roi_align(c4[i].detach().numpy(), box, 16, 14) for i, box in zip(of, boxes)])
    features = theirs.layer4(torch.from_numpy(regions).float())
    mean, variance = features.mean((0, 2, 3)), features.var((0, 2, 3), unbiased=False)
    norm = heads.box_head.norm
    scaled = (features - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    features = scaled * norm.weight[:, None, None] + norm.bias[:, None, None]
    pooled, labels = features.mean((2, 3)), torch.tensor([1, 3, 2, 1, 3, 2, 0])
    logits = pooled @ heads.box_predictor.cls_score.weight.T + heads.box_predictor.cls_score.bias
    offsets = pooled @ heads.box_predictor.bbox_pred.weight.T + heads.box_predictor.bbox_pred.bias
    total = 0.0
    for i in range(6):
        (x0, y0, x1, y1), (u0, v0, u1, v1) = boxes[i], boxes[3 + i % 3]
        wanted = (5 * (u0 + u1 - x0 - x1) / (x1 - x0), 5 * (v0 + v1 - y0 - y1) / (y1 - y0),
                  5 * np.log((u1 - u0) / (x1 - x0)), 5 * np.log((v1 - v0) / (y1 - y0)))  # fmt: skip
        at = 4 * int(labels[i])
        total += sum(abs(a - b) for a, b in zip(wanted, offsets[i, at : at + 4].tolist()))
    deconv, last = heads.mask_predictor.conv5_mask, heads.mask_predictor.mask_fcn_logits
    drawn = nn.functional.conv_transpose2d(features[:6], deconv.weight, deconv.bias, 2).relu()
    drawn = nn.functional.conv2d(drawn, last.weight, last.bias)[torch.arange(6), labels[:6]]
    masks = np.stack([naive_roi_align(targets[0]["masks"][[i % 3]].numpy(), boxes[i], 1, 14)[0] for i in range(6)])
    masks = torch.from_numpy(masks >= 0.5).float()
    expected = {"box": total / 7, "classifier": nn.functional.cross_entropy(logits, labels).item(),
                "mask": nn.functional.binary_cross_entropy_with_logits(drawn, masks).item()}  # fmt: skip
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-4)


def test_c4_finds_masks_of_the_boxes_that_it_found():
    ours = c4_detector(origin("timm/test_resnet"), 3, masks=True, anchor=16, regions=64).eval()
    images, _ = batch()
    with torch.no_grad():
        (found, _), maps = ours(images, SIZES), list(ours.backbone(images).values())
        features = ours.roi_heads.box_head(ours.roi_heads.box_roi_pool(maps, [found["boxes"], torch.zeros(0, 4)]))
        wanted = ours.roi_heads.mask_predictor(features).sigmoid()[torch.arange(len(features)), found["labels"]]
    assert len(features) and found["masks"].shape[-1] == 2 * features.shape[-1]
    torch.testing.assert_close(found["masks"], wanted)


def test_only_resnets_have_a_last_stage_for_c4():
    with pytest.raises(UsageError, match=r"arch is 'timm/test_vit', which is no ResNet and has no last stage"):
        c4_detector(origin("timm/test_vit", 160), 3, masks=False, anchor=32, regions=64)
