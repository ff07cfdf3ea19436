"""A backbone's feature maps: of the plain network's own layers, under its own names."""

import copy
import itertools

import pytest
import torch

from objcrop.errors import UsageError
from objcrop.ssl.networks.backbones import backbone
from objcrop.ssl.networks.feature_maps import give_maps
from objcrop.ssl.networks.shuffle_bn import VirtualDevices

TIMM = ["test_resnet", "test_convnext", "test_efficientnet", "test_byobnet", "mobilenetv3_small_050", "regnetx_002"]
CHANNELS = {"resnet18": (64, 128, 256, 512), "timm/test_resnet": (32, 48, 192, 96)}


def views_of(n, size):
    views = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    return views.contiguous(memory_format=torch.channels_last)


def seen_by_hooks(network, names, views):
    """What the network's own layers give as the plain network runs."""
    seen = []
    hooks = [network.get_submodule(name).register_forward_hook(lambda *a: seen.append(a[2])) for name in names]
    features = network(views)
    for hook in hooks:
        hook.remove()
    return features, seen


@pytest.mark.parametrize(
    ("arch", "size"),
    [("resnext50_32x4d", 48), *itertools.product(["resnet18", "timm/test_resnet", "timm/resnet26"], [100, 96, 48, 32])],
)
def test_maps_are_what_the_stages_give(arch, size):
    torch.manual_seed(0)
    network, width = backbone(arch, size)
    plain, names, views = copy.deepcopy(network), list(network.state_dict()), views_of(2, size)
    channels = give_maps(network, arch, size, stages=4)
    assert network.training and list(network.state_dict()) == names
    features, maps = network(views)
    expected, seen = seen_by_hooks(plain, [f"layer{stage}" for stage in (1, 2, 3, 4)], views)
    torch.testing.assert_close(features, expected, rtol=1e-5, atol=1e-5)
    assert len(maps) == 4 and channels == tuple(each.shape[1] for each in seen) == CHANNELS.get(arch, channels)
    for map_, each in zip(maps, seen):
        torch.testing.assert_close(map_, each, rtol=1e-5, atol=1e-5)
        assert map_.is_contiguous(memory_format=torch.channels_last) or map_.shape[2] == 1
    torch.testing.assert_close(maps[3].mean((2, 3)), features, rtol=1e-5, atol=1e-5)  # the c5 that features pool
    ours, theirs = network.state_dict(), plain.state_dict()  # running statistics too: one pass, not two
    assert all(torch.allclose(ours[name], theirs[name], 1e-5, 1e-5) for name in names) and features.shape == (2, width)


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("stages", [1, 4])
def test_timms_networks_give_maps(name, stages):
    torch.manual_seed(0)
    network, width = backbone(f"timm/{name}", 64)
    plain, views = copy.deepcopy(network).eval(), views_of(2, 64)
    channels = give_maps(network, f"timm/{name}", 64, stages)
    features, maps = network.eval()(views)
    torch.testing.assert_close(features, plain(views), rtol=1e-5, atol=1e-5)
    assert features.shape == (2, width) and [map_.shape[1] for map_ in maps] == list(channels)
    assert [map_.shape[2] for map_ in maps] == [maps[-1].shape[2] << k for k in reversed(range(stages))]
    (features.sum() + sum(map_.sum() for map_ in maps)).backward()
    assert all(p.grad is not None for p in network.parameters())


def test_a_vit_gives_its_patches_and_no_pyramid():
    network, _ = backbone("timm/test_vit", 64)
    plain = copy.deepcopy(network).eval()
    assert give_maps(network, "timm/test_vit", 64) == (64,)
    features, (map_,) = network.eval()(views_of(2, 64))
    tokens = plain.forward_features(views_of(2, 64))[:, 1:]  # without the class token
    torch.testing.assert_close(map_, tokens.mT.unflatten(2, (4, 4)), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features, plain(views_of(2, 64)), rtol=1e-5, atol=1e-5)


def test_a_network_without_maps_is_refused(monkeypatch):
    vit, _ = backbone("timm/test_vit", 64)
    with pytest.raises(
        UsageError, match=r"'timm/test_vit', which does not give 4 feature maps, each half .* take a Res"
    ):
        give_maps(vit, "timm/test_vit", 64, stages=4)
    network, _ = backbone("timm/test_resnet", 64)
    other = {
        "forward_head": lambda *_, pre_logits=False: torch.zeros(1, 96) + pre_logits,  # features of another kind
        "forward_intermediates": None,  # an older timm's network
    }
    for part, found in other.items():
        monkeypatch.setattr(type(network), part, found)
        with pytest.raises(UsageError, match="'timm/test_resnet', which does not give a feature map; take") as said:
            give_maps(network, "timm/test_resnet", 64)
        assert "\n" not in str(said.value) and network.training


@pytest.mark.parametrize("arch", ["resnet18", "timm/test_resnet"])
def test_copies_compiled_networks_and_virtual_devices(arch):
    """A copy runs its own layers; compiled, and normalised a virtual device at a time, it gives the same numbers."""
    torch.manual_seed(0)
    network, _ = backbone(arch, 32)
    give_maps(network, arch, 32, stages=4)
    twin = copy.deepcopy(network)
    with torch.no_grad():
        for p in twin.parameters():
            p.zero_()
    assert all(not map_.any() for map_ in twin(views_of(2, 32))[1])
    VirtualDevices(8, 2).normalise(network)
    assert network(views_of(8, 32))[1][0].any()
    compiled = copy.deepcopy(network)
    compiled.compile(backend="eager")
    results = []
    for each in (network, compiled):
        features, maps = each(views_of(8, 32))
        (features.square().sum() + maps[0].cos().sum()).backward()
        results.append([features, *maps, *(p.grad for p in each.parameters())])
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
