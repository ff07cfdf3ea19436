"""Each exported form, loaded back by whom it is for, gives the checkpoint's features."""

import pickle

import numpy as np
import pytest
import timm
import torch
import yaml
from torchvision import models
from torchvision.models import detection

from objcrop.dali_pipes.augment import augment_recipe
from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.detectron2 import detectron2_name
from objcrop.ssl.export import FORMATS, export
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.feature_maps import give_maps
from objcrop.ssl.training.checkpoint import save_checkpoint

VIEWS = torch.randn(2, 3, 112, 112, generator=torch.Generator().manual_seed(5))


def checkpoint(folder, arch, size=112, **told):
    """A checkpoint of a network with random weights and statistics, and what it says of VIEWS."""
    torch.manual_seed(1)
    network, _ = backbone(arch, size)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape) + 0.5)
    weights = {"encoder.backbone." + name: value for name, value in network.state_dict().items()}
    method = {**weights, "encoder.heads.heads.all.0.weight": torch.zeros(3, 3)}
    save_checkpoint(folder / "last.pt", {"step": 1, "method": method, "recipe": {"arch": arch, "size": size, **told}})
    with torch.no_grad():
        return folder / "last.pt", network.eval()(VIEWS)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_torchvision(tmp_path, arch):
    path, expected = checkpoint(tmp_path, arch)
    assert export(path, tmp_path / "out.pth", "torchvision")["arch"] == arch
    network = models.get_model(arch)
    left = network.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=False)
    assert left.missing_keys == ["fc.weight", "fc.bias"] and not left.unexpected_keys
    network.fc = torch.nn.Identity()
    torch.testing.assert_close(network.eval()(VIEWS), expected, atol=1e-4, rtol=1e-4)


def test_torchvision_detection(tmp_path):
    path, _ = checkpoint(tmp_path, "resnet50")
    export(path, tmp_path / "out.pth", "torchvision-detection")
    network = detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None).backbone
    left = network.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True), strict=False)
    assert all(name.startswith("fpn.") for name in left.missing_keys) and not left.unexpected_keys
    ours, _ = backbone("resnet50", 112, str(path))
    give_maps(ours, "resnet50", 112, stages=4)
    with torch.no_grad():
        for theirs, map_ in zip(network.eval().body(VIEWS).values(), ours.eval()(VIEWS)[1], strict=True):
            torch.testing.assert_close(theirs, map_, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("arch", "name"), [("resnet50", "resnet50"), ("timm/resnet26", "resnet26")])
def test_timm(tmp_path, arch, name):
    path, expected = checkpoint(tmp_path, arch)
    export(path, tmp_path / "out.pth", "timm")
    network = timm.create_model(name, num_classes=0)
    network.load_state_dict(torch.load(tmp_path / "out.pth", weights_only=True))
    torch.testing.assert_close(network.eval()(VIEWS), expected, atol=1e-4, rtol=1e-4)


def test_detectron2(tmp_path):
    path, expected = checkpoint(tmp_path, "resnet50")
    export(path, tmp_path / "out.pkl", "detectron2")
    content = pickle.loads((tmp_path / "out.pkl").read_bytes())
    assert content["matching_heuristics"] is True
    # Names of Detectron2's own R-50, and how its converter turns torchvision's around.
    some = ("stem.conv1.weight", "stem.conv1.norm.bias", "res2.0.shortcut.weight", "res2.0.shortcut.norm.running_mean")
    some += ("res2.0.conv3.norm.running_var", "res5.2.conv1.weight", "res4.5.conv2.norm.weight")
    assert set(some) <= content["model"].keys()
    back = {}
    for name, value in content["model"].items():
        assert isinstance(value, np.ndarray)
        for ours, theirs in ((".shortcut.norm.", ".downsample.1."), (".shortcut.", ".downsample.0."), ("stem.", "")):
            name = name.replace(ours, theirs)
        for k in "123":
            name = name.replace(f"conv{k}.norm.", f"bn{k}.")
        for k in "2345":
            name = name.replace(f"res{k}.", f"layer{int(k) - 1}.")
        back[name] = torch.from_numpy(value)
    network = models.resnet50()
    network.fc = torch.nn.Identity()
    left = network.load_state_dict(back, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys) and not left.unexpected_keys
    torch.testing.assert_close(network.eval()(VIEWS), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("arch", ["resnet50", "resnext50_32x4d", "wide_resnet50_2"])
def test_detectron2s_configuration_is_of_the_network_and_its_views(tmp_path, arch):
    path, _ = checkpoint(tmp_path, arch, augment="swav")
    odd = tmp_path / 'a: "b" #.pkl'
    said = export(path, odd, "detectron2")
    config = yaml.safe_load(said["config"].read_text(encoding="utf-8"))
    model, network = config["MODEL"], models.get_model(arch)
    assert model["WEIGHTS"] == str(odd) and said["config"] == odd.with_suffix(".yaml")
    assert config["INPUT"]["FORMAT"] == "RGB"
    swav = augment_recipe("swav", 1)[0]
    np.testing.assert_allclose(np.array(model["PIXEL_MEAN"]) / 255, swav.mean)
    np.testing.assert_allclose(np.array(model["PIXEL_STD"]) / 255, swav.std)
    resnets, block = model["RESNETS"], network.layer2[0]
    assert (resnets["NUM_GROUPS"], resnets["WIDTH_PER_GROUP"]) == (network.groups, network.base_width)
    assert resnets["DEPTH"] == 2 + 3 * sum(len(getattr(network, f"layer{i}")) for i in (1, 2, 3, 4))
    assert resnets["STRIDE_IN_1X1"] is (block.conv1.stride == (2, 2)) is False


def test_detectron2s_configuration_is_for_bottlenecks_alone(tmp_path):
    path, _ = checkpoint(tmp_path, "resnet18")
    assert export(path, tmp_path / "out.pkl", "detectron2")["config"] is None
    assert sorted(file.name for file in tmp_path.iterdir()) == ["last.pt", "out.pkl"]
    with pytest.raises(UsageError, match=r"give one in \.pkl"):
        export(path, tmp_path / "out.yaml", "detectron2")


def test_detectron2_takes_plain_vision_transformers(tmp_path):
    """ViTDet's names end in the file's, each in one; what it has no place for is left out."""
    (path, _), depth = checkpoint(tmp_path, "timm/test_vit"), 6
    said = export(path, tmp_path / "out.pkl", "detectron2")
    held = pickle.loads((tmp_path / "out.pkl").read_bytes())["model"]
    vitdet = ["pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"]
    parts = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    vitdet += [f"blocks.{i}.{part}.{kind}" for i in range(depth) for part in parts for kind in ("weight", "bias")]
    pyramid = [
        f"backbone.simfp_{i}.{j}.norm.{kind}" for i in (2, 3, 4, 5) for j in (0, 1) for kind in ("weight", "bias")
    ]
    for name in [f"backbone.net.{name}" for name in vitdet]:
        assert sum(name.endswith(f".{ours}") for ours in held) == 1, name
    assert len(held) == len(vitdet) == said["tensors"] and not any(
        name.endswith(f".{ours}") for name in pyramid for ours in held
    )
    weights = torch.load(path, weights_only=True)["method"]
    assert all(np.array_equal(value, weights[f"encoder.backbone.{name}"]) for name, value in held.items())
    assert held["pos_embed"].shape == (1, 1 + 7 * 7, 64)  # the CLS token's too, pretrain_use_cls_token=True
    other, _ = checkpoint(tmp_path, "timm/test_vit2")
    with pytest.raises(UsageError, match="ResNets and plain Vision Transformers"):
        export(other, tmp_path / "out.pkl", "detectron2")


def test_names():
    assert detectron2_name("layer4.2.bn3.running_var") == "res5.2.conv3.norm.running_var"
    assert detectron2_name("layer1.0.downsample.0.weight") == "res2.0.shortcut.weight"
    assert detectron2_name("bn1.weight") == "stem.conv1.norm.weight"


def test_wrong_use(tmp_path):
    path, _ = checkpoint(tmp_path, "resnet18", size=64)
    assert export(path, tmp_path / "small.pth", "torchvision")["small_stem"]
    with pytest.raises(UsageError, match="stem for small images"):
        export(path, tmp_path / "out.pkl", "detectron2")
    with pytest.raises(UsageError, match="stem for small images that torchvision's detectors"):
        export(path, tmp_path / "out.pth", "torchvision-detection")
    with pytest.raises(UsageError, match="torchvision, torchvision-detection, timm, detectron2"):
        export(path, tmp_path / "out", "caffe")
    with pytest.raises(ObjcropError, match="cannot be written"):
        export(path, tmp_path / "no" / "folder.pth", "timm")
    with pytest.raises(ObjcropError, match="not there"):
        export(tmp_path / "none.pt", tmp_path / "out.pth", "timm")
    (tmp_path / "timm").mkdir()
    other, _ = checkpoint(tmp_path / "timm", "timm/resnet26")
    for form, word in {
        "torchvision": "take --format timm",
        "torchvision-detection": "timm",
        "detectron2": "takes torch",
    }.items():
        with pytest.raises(UsageError, match=word):
            export(other, tmp_path / "out", form)
    narrow, _ = checkpoint(tmp_path / "timm", "narrow/resnet18")
    for form in FORMATS:
        with pytest.raises(UsageError, match="a quarter of that network's channels, which no format holds"):
            export(narrow, tmp_path / "out", form)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "small.pth", "timm"]
