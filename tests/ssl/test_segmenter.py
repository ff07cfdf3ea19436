"""FCN against torchvision's, pyramid pooling and point-wise spatial attention against loops over positions."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import get_model
from torchvision.models.segmentation import fcn_resnet50

from objcrop.errors import UsageError
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.transfer.dilated_resnet import DilatedResNet
from objcrop.ssl.transfer.fcn import fcn_head
from objcrop.ssl.transfer.psanet import PointwiseSpatialAttention, collect, distribute, psanet_head
from objcrop.ssl.transfer.pspnet import BINS, PyramidPooling, pspnet_head
from objcrop.ssl.transfer.segmenter import IGNORED, Segmenter, cross_entropy


def images_and_labels(n=2, size=(40, 56), classes=5):
    draw = torch.Generator().manual_seed(3)
    labels = torch.randint(classes, (n, *size), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < 0.2] = IGNORED
    return torch.randn(n, 3, *size, generator=draw, dtype=torch.float64), labels


def spoilt(module):
    """Weights with no zeros or ones among them, BatchNorm's own too."""
    torch.manual_seed(0)
    with torch.no_grad():
        for p in module.parameters():
            p += 0.05 * torch.rand_like(p) if p.ndim == 1 else 0
    return module.double()


def test_fcn_is_torchvision_s():
    theirs = spoilt(fcn_resnet50(weights=None, weights_backbone=None, num_classes=5, aux_loss=True))
    network, _ = backbone("resnet50", 224)
    ours = Segmenter(DilatedResNet(network, "resnet50", 8), fcn_head(2048, 5), fcn_head(1024, 5), 0.5).double()
    ours.load_state_dict(theirs.state_dict())
    for module in [*theirs.modules(), *ours.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    images, labels = images_and_labels(size=(33, 48))
    out = theirs(images)
    losses = [F.cross_entropy(out[name], labels, ignore_index=IGNORED) for name in ("out", "aux")]
    wanted, loss = losses[0] + 0.5 * losses[1], sum(ours.losses(images, labels).values())
    assert abs(float(loss.detach() - wanted.detach())) < 1e-12
    wanted.backward()
    loss.backward()
    gradients = zip(theirs.parameters(), ours.parameters(), strict=True)
    assert max(float((a.grad - b.grad).abs().max()) for a, b in gradients) < 1e-12
    torch.testing.assert_close(ours.eval()(images), theirs.eval()(images)["out"])


@pytest.mark.parametrize("stride", [8, 16])
def test_bottlenecks_are_dilated_as_torchvision_dilates_them(stride):
    theirs = spoilt(get_model("resnet50", weights=None, replace_stride_with_dilation=[False, stride == 8, True]))
    network = get_model("resnet50", weights=None).double()
    network.load_state_dict(theirs.state_dict())
    ours = DilatedResNet(network, "resnet50", stride)
    theirs.avgpool, theirs.fc = nn.Identity(), nn.Identity()
    images, _ = images_and_labels(1, (48, 64))
    torch.testing.assert_close(ours.eval()(images)[1].flatten(1), theirs.eval()(images))
    assert ours.channels == (1024, 2048)


@pytest.mark.parametrize("arch", ["resnet18", "timm/test_resnet", "timm/resnet26d"])
def test_other_resnets_keep_what_they_see(arch):
    """Cells of the undilated network are every second, or fourth, of the dilated one's, as long as nothing is padded
    and nothing but convolutions with a stride shrinks the map."""
    network, _ = backbone(arch, 224)
    whole = copy.deepcopy(network)
    ours = DilatedResNet(network, arch, 8)
    c4, c5 = ours.eval()(torch.zeros(1, 3, 64, 96))
    assert c4.shape[-2:] == c5.shape[-2:] == (8, 12) and (c4.shape[1], c5.shape[1]) == ours.channels
    if arch == "resnet18":
        strided = nn.Sequential(whole.conv1, whole.bn1, whole.relu, whole.maxpool, whole.layer1, whole.layer2)
        image = torch.randn(1, 3, 256, 256)
        x = strided.eval()(image)
        small, large = whole.layer3.eval()(x), ours(image)[0]
        torch.testing.assert_close(small[..., 2:-2, 2:-2], large[..., ::2, ::2][..., 2:-2, 2:-2])


def test_only_resnets_are_dilated():
    for arch in ("timm/test_vit", "lab/resnet18"):
        with pytest.raises(UsageError, match=f"arch is '{arch}', which is no ResNet and cannot be dilated"):
            DilatedResNet(backbone(arch, 160)[0], arch, 8)


def test_pyramid_pooling_against_loops():
    x = torch.randn(2, 8, 7, 9, dtype=torch.float64)
    pooling = spoilt(PyramidPooling(8)).eval()
    wanted = [x]
    for bins, level in zip(BINS, pooling.levels, strict=True):
        means = torch.zeros(2, 8, bins, bins, dtype=torch.float64)
        for i in range(bins):
            for j in range(bins):
                rows = slice(i * 7 // bins, -(-(i + 1) * 7 // bins))
                columns = slice(j * 9 // bins, -(-(j + 1) * 9 // bins))
                means[:, :, i, j] = x[:, :, rows, columns].mean((2, 3))
        wanted.append(F.interpolate(level[1:](means), (7, 9), mode="bilinear", align_corners=False))
    torch.testing.assert_close(pooling(x), torch.cat(wanted, 1))


@pytest.mark.parametrize(("size", "largest"), [((3, 4), (3, 4)), ((2, 3), (4, 3)), ((1, 5), (2, 6))])
def test_attention_against_loops_over_positions(size, largest):
    (h, w), (high, wide) = size, largest
    draw = np.random.default_rng(1)
    x = draw.normal(size=(2, 6, h, w))
    weights = draw.normal(size=(2, (2 * high - 1) * (2 * wide - 1), h, w))
    maps = weights.reshape(2, 2 * high - 1, 2 * wide - 1, h, w)
    collected, received = np.zeros_like(x), np.zeros_like(x)
    positions = [(i, j) for i in range(h) for j in range(w)]
    for n in range(2):
        for y, z in positions:
            own = np.exp([maps[n, j - y + high - 1, k - z + wide - 1, y, z] for j, k in positions])
            sent = np.exp([maps[n, y - j + high - 1, z - k + wide - 1, j, k] for j, k in positions])
            for (j, k), a, b in zip(positions, own / own.sum(), sent / sent.sum(), strict=True):
                collected[n, :, y, z] += a * x[n, :, j, k]
                received[n, :, y, z] += b * x[n, :, j, k]
    given = torch.from_numpy(x), torch.from_numpy(weights), largest
    np.testing.assert_allclose(collect(*given).numpy(), collected, atol=1e-12)
    np.testing.assert_allclose(distribute(*given).numpy(), received, atol=1e-12)


def test_psanet_sees_the_whole_map_and_refuses_a_larger_one():
    attention = spoilt(PointwiseSpatialAttention(8, 4, (9, 9))).eval()
    x = torch.randn(1, 8, 9, 9, dtype=torch.float64, requires_grad=True)
    attention(x)[0, 8:, 0, 0].sum().backward()
    assert (x.grad[0].abs().sum(0)[::2, ::2] > 0).all()  # halved with its corners, of an odd side every second stays
    with pytest.raises(UsageError, match="a map of 11×9 cells is larger than those that PSANet was made for"):
        attention(torch.zeros(1, 8, 9, 11, dtype=torch.float64))


@pytest.mark.parametrize("head", [lambda: fcn_head(96, 5, width=8, convolutions=2, dilation=6),
                                  lambda: pspnet_head(96, 5), lambda: psanet_head(96, 5, (5, 7))])  # fmt: skip
def test_every_head_learns_from_labelled_pixels_alone(head):
    torch.manual_seed(0)
    network, _ = backbone("timm/test_resnet", 224)
    segmenter = Segmenter(DilatedResNet(network, "timm/test_resnet", 8), head(), fcn_head(192, 5)).double()
    for module in segmenter.modules():
        if isinstance(module, (nn.Dropout, nn.Dropout2d)):
            module.p = 0.0
    images, labels = images_and_labels()
    assert segmenter(images).shape == (2, 5, 40, 56)
    loss = sum(segmenter.losses(images, labels).values())
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in segmenter.parameters())
    nothing = sum(segmenter.losses(images, torch.full_like(labels, IGNORED)).values())
    assert float(nothing.detach()) == 0


def test_cross_entropy_is_the_mean_of_the_labelled_pixels():
    _, labels = images_and_labels()
    logits = torch.randn(2, 5, 40, 56)
    by_pixel = -logits.log_softmax(1).gather(1, labels.clamp(max=4)[:, None])[:, 0]
    assert float(cross_entropy(logits, labels)) == pytest.approx(float(by_pixel[labels != IGNORED].mean()), rel=1e-5)
