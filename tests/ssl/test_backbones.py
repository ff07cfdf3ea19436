"""Networks by name, their stem for small images, and weights to begin with."""

import pytest
import timm
import torch
from torchvision import models

from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.evaluation.frozen_features import frozen_backbone
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.training.checkpoint import load_checkpoint, save_checkpoint
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import compiler_named, pretrain


@pytest.mark.parametrize(
    ("arch", "width"),
    [("resnet18", 512), ("resnext50_32x4d", 2048), ("timm/resnet26", 2048), ("timm/vit_tiny_patch16_224", 192)],
)
def test_names_and_widths(arch, width):
    network, said = backbone(arch, 224)
    assert said == width and network(torch.zeros(1, 3, 224, 224)).shape == (1, width)


@pytest.mark.parametrize(("size", "side_before_layer1"), [(224, 56), (112, 28), (96, 24), (64, 16), (48, 24), (32, 32)])
def test_the_stem_follows_the_size(size, side_before_layer1):
    network, _ = backbone("resnet18", size)
    seen = []
    network.layer1.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].shape[-1]))
    network(torch.zeros(1, 3, size, size))
    assert seen == [side_before_layer1]


@pytest.mark.parametrize(
    "arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "mixer_s16_224", "test_resnet"]
)
@pytest.mark.parametrize("size", [64, 224])
def test_timms_networks_take_any_size(arch, size):
    network, width = backbone(f"timm/{arch}", size)
    assert network.training and network(torch.zeros(2, 3, size, size)).shape == (2, width)


@pytest.mark.parametrize(("arch", "size"), [("test_vit", 100), ("xcit_nano_12_p16_224", 100), ("crossvit_9_240", 64)])
def test_a_size_that_a_network_cannot_take(arch, size):
    with pytest.raises(UsageError, match=rf"{arch} does not take views of {size} px .*take another size\.$") as caught:
        backbone(f"timm/{arch}", size)
    assert "\n" not in str(caught.value)


def test_a_vit_is_read_at_another_size_than_it_was_trained_at(tmp_path):
    network, _ = backbone("timm/test_vit", 64)
    weights = {f"encoder.backbone.{name}": value for name, value in network.state_dict().items()}
    saved = {"step": 0, "recipe": {"arch": "timm/test_vit", "size": 64}, "method": weights}
    save_checkpoint(tmp_path / "vit.pt", saved)
    for size in (None, 64, 96):
        found, side = frozen_backbone(tmp_path / "vit.pt", size)
        assert side == (size or 64) and found(torch.zeros(1, 3, side, side)).shape == (1, 64)
    with pytest.raises(UsageError, match="does not take views of 100 px"):
        frozen_backbone(tmp_path / "vit.pt", 100)


def test_weights_to_begin_with(tmp_path):
    theirs = models.resnet18()
    torch.save(theirs.state_dict(), tmp_path / "torchvision.pth")
    ours, _ = backbone("resnet18", 224, str(tmp_path / "torchvision.pth"))
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())
    of_timm = timm.create_model("resnet26", num_classes=10)
    torch.save({"state_dict": of_timm.state_dict()}, tmp_path / "timm.pth")
    ours, _ = backbone("timm/resnet26", 224, str(tmp_path / "timm.pth"))
    assert all(torch.equal(value, of_timm.state_dict()[name]) for name, value in ours.state_dict().items())


def test_wrong_weights(tmp_path):
    torch.save(models.resnet18().state_dict(), tmp_path / "r18.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights")
    for name, arch, size, word in (
        ("r18.pth", "resnet50", 224, "another network"),
        ("r18.pth", "resnet18", 32, "conv1.weight has another shape"),
        ("list.pth", "resnet18", 224, "neither a checkpoint"),
        ("text.pth", "resnet18", 224, "no weights that can be read"),
        ("none.pth", "resnet18", 224, "not there"),
    ):
        with pytest.raises(ObjcropError, match=word) as caught:
            backbone(arch, size, str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_unknown_names():
    with pytest.raises(UsageError, match="resnet18"):
        backbone("resnet19", 224)
    with pytest.raises(UsageError, match="no such model"):
        backbone("timm/resnet19", 224)


def test_a_run_begins_with_the_weights_of_another(photos, tmp_path):
    catalog, _ = photos
    flags = dict(arch="resnet18", size=16, batch_size=8, queue=8, dim=8, loader="torch", workers=0, steps=1)
    first = pretrain(resolve(None, {**flags, "seed": 3}), catalog, None, tmp_path / "a")
    second = pretrain(resolve(None, {**flags, "init": str(first), "base_lr": 0.0}), catalog, None, tmp_path / "b")
    a, b = (load_checkpoint(path)["method"] for path in (first, second))
    weights = [
        name for name in a if name.startswith("encoder.backbone.") and "running" not in name and "num" not in name
    ]
    assert len(weights) > 50 and all(torch.equal(a[name], b[name]) for name in weights)


def test_bf16_trains_weights_in_float32(photos, tmp_path):
    catalog, _ = photos
    flags = dict(arch="resnet18", size=16, batch_size=8, queue=8, dim=8, loader="torch", workers=0, steps=2)
    pretrain(resolve(None, {**flags, "precision": "bf16", "log_every_steps": 1}), catalog, None, tmp_path / "a")
    assert all(line["loss"] == line["loss"] for line in read_metrics(tmp_path / "a" / "metrics.jsonl"))
    method = load_checkpoint(tmp_path / "a" / "last.pt")["method"]
    assert method["encoder.backbone.conv1.weight"].dtype == torch.float32


@pytest.mark.slow
def test_compiled_is_the_same_run(photos, tmp_path):
    catalog, _ = photos
    flags = dict(arch="resnet18", size=16, batch_size=8, queue=8, dim=8, loader="torch", workers=0, steps=2)
    flags |= dict(log_every_steps=1, augment="none")
    for name, compiled in (("eager", False), ("compiled", True)):
        pretrain(resolve(None, {**flags, "compile": compiled}), catalog, None, tmp_path / name)
    a, b = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("eager", "compiled"))
    for one, other in zip(a, b, strict=True):
        assert one["loss"] == pytest.approx(other["loss"], abs=1e-2)
    a, b = (load_checkpoint(tmp_path / name / "last.pt")["method"] for name in ("eager", "compiled"))
    assert a.keys() == b.keys()


def test_what_the_compiler_raises_is_a_sentence(tmp_path, monkeypatch):
    """Where there is no compiler for what torch.compile writes, pages of its inner life came out."""
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "fx_graph_cache", False)
    said = r"torch\.compile failed \(.*no-such-compiler.*leave (--)?compile out, and steps"
    with pytest.raises(ObjcropError, match=said), compiler_named():
        torch.compile(lambda x: (x + 1).sin())(torch.zeros(3))
    with pytest.raises(RuntimeError, match="another's"), compiler_named():
        raise RuntimeError("another's")


@pytest.mark.parametrize("name, blocks", [("resnet18", 1), ("resnet50", 4)])
def test_narrow_networks_are_torchvisions_of_a_quarter_of_the_channels(name, blocks):
    network, width = backbone(f"narrow/{name}", 224)
    whole = models.get_model(name, weights=None)
    assert width == 128 * blocks and network(torch.rand(2, 3, 64, 64)).shape == (2, width)
    own, theirs = network.state_dict(), whole.state_dict()
    assert own.keys() == theirs.keys() - {"fc.weight", "fc.bias"}
    for part, value in own.items():
        channels = [n if n in (1, 3, 7) and i else n // 4 for i, n in enumerate(theirs[part].shape)]
        assert list(value.shape) == channels, part
    small, _ = backbone(f"narrow/{name}", 32)
    assert small.conv1.weight.shape == (16, 3, 3, 3) and small.conv1.stride == (1, 1)
