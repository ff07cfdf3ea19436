"""Anchors from features: the rules on maps with a known answer, real networks, and the two controls."""

import numpy as np
import pytest
import torch
from torchvision import models

from objcrop.box_stats import stats
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.objectness import object_mask, object_share, summed_area
from objcrop.proposals import propose
from objcrop.proposals.anchors import best_anchors, centre_map, feature_maps, last_maps
from objcrop.sample_scenes import draw_scenes
from objcrop.ssl.networks.backbones import backbone


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anchors") / "s"
    draw_scenes(folder, 12, seed=4)
    return index(folder, "scenes")[0]


def corner_map():
    """A map that is 1 in its upper left part and falls off, twice."""
    one = torch.zeros(7, 7)
    one[:4, :4] = 1
    return torch.stack([one, one])


@pytest.mark.parametrize("rank", ["mean-sqrt-area", "mean", "per-size"])
def test_boxes_lie_where_the_map_is_high_and_apart(rank):
    boxes, scores = best_anchors(corner_map(), 224, rank, 5, 0.5)
    assert boxes.shape == (2, 5, 4) and (scores > 0).all() and torch.equal(boxes[0], boxes[1])
    assert (boxes >= 0).all() and (boxes <= 224).all()
    centre = (boxes[0, :, :2] + boxes[0, :, 2:]) / 2
    assert (centre[0] < 112).all()
    from torchvision.ops import box_iou

    overlap = box_iou(boxes[0], boxes[0]).fill_diagonal_(0)
    assert float(overlap.max()) <= 0.5


def test_the_letter_picks_small_boxes_and_the_default_coarse_ones():
    def area(rank):
        boxes, _ = best_anchors(centre_map(7), 224, rank, 5, 0.5)
        return float((boxes[..., 2:] - boxes[..., :2]).prod(-1).mean()) / 224**2

    assert area("mean") < 0.1 < area("per-size") and area("mean-sqrt-area") > 0.25


def test_feature_maps_of_timms_resnets_too():
    network, width = backbone("timm/test_resnet", 64)
    views = torch.randn(2, 3, 64, 64)
    maps = last_maps(network)(views)
    torch.testing.assert_close(maps, network.eval().forward_features(views))
    assert maps.shape[1] == width
    with pytest.raises(UsageError, match="anchors need a ResNet's feature maps"):
        last_maps(backbone("timm/test_vit", 64)[0])


def test_feature_maps_are_the_networks(tmp_path):
    theirs = models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    views = torch.randn(2, 3, 224, 224)
    theirs.fc = torch.nn.Identity()
    with torch.no_grad():
        maps = feature_maps(f"resnet18:{tmp_path / 'w.pth'}")(views)
        torch.testing.assert_close(maps.mean((2, 3)), theirs.eval()(views), atol=1e-4, rtol=1e-4)
    assert maps.shape == (2, 512, 7, 7)


def test_the_same_in_this_process_and_others_and_from_a_checkpoint(scenes, tmp_path):
    options = dict(method="anchors", model="untrained:resnet18")
    here, there = (propose(scenes, workers=workers, **options) for workers in (0, 2))
    np.testing.assert_array_equal(here.values, there.values)
    np.testing.assert_array_equal(here.scores, there.scores)
    assert (here.counts(np.arange(12)) == 5).all() and here.parameters["rank"] == "mean-sqrt-area"
    from objcrop.ssl.training.recipe import resolve
    from objcrop.ssl.training.trainer import pretrain

    flags = dict(arch="resnet18", size=32, batch_size=4, queue=4, dim=8, steps=1, loader="torch", workers=0)
    last = pretrain(resolve(None, flags), scenes, None, tmp_path / "run")
    trained = propose(scenes, "anchors", model=last, workers=0)
    assert len(trained.values) == 60 and not np.array_equal(trained.values, here.values)


def test_controls(scenes):
    prior = propose(scenes, "centre-prior", workers=0)
    share = prior.values / np.repeat(np.tile(scenes.sizes, (1, 2)), 5, 0)
    np.testing.assert_allclose(share[:5], share[5:10], atol=1e-5)  # it looks at nothing but the frame
    boxes = propose(scenes, "poor", count=5)
    found = [object_share(summed_area(object_mask(scenes, row)[0]), boxes[row].astype(int)).mean() for row in range(12)]
    assert np.mean(found) == pytest.approx(0.2, abs=0.02)
    assert stats(scenes, boxes)["boxes"]


def test_wrong_use(scenes, tmp_path):
    (tmp_path / "text.pt").write_text("no checkpoint at all")
    for options, error, word in (
        (dict(rank="best"), UsageError, "mean-sqrt-area"),
        (dict(count=0), UsageError, "--count is 0"),
        (dict(nms=2.0), UsageError, "--nms is 2"),
        (dict(model="none.pt"), ObjcropError, "not there"),
        (dict(model=tmp_path / "text.pt"), ObjcropError, r"text\.pt is truncated or no checkpoint"),
        (dict(model="untrained:resnet19"), UsageError, "resnet18"),
        (dict(model="untrained:timm/vit_tiny_patch16_224"), UsageError, "feature maps"),
    ):
        with pytest.raises(error, match=word):
            propose(scenes, "anchors", **options)
