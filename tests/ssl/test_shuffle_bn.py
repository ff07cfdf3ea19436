"""Virtual devices in one process: lay-out, BatchNorm a device, keys in other company. On two: test_distributed."""

import copy

import pytest
import torch
from torch import nn

from objcrop.errors import UsageError
from objcrop.ssl.networks import shuffle_bn
from objcrop.ssl.networks.shuffle_bn import VirtualBatchNorm, VirtualDevices, permutation


def naive_batch_norm(x, groups):
    """Normalise each list of rows by its own statistics."""
    out = torch.empty_like(x)
    for rows in groups:
        mean = x[rows].mean((0, 2, 3), keepdim=True)
        var = x[rows].var((0, 2, 3), keepdim=True, unbiased=False)
        out[rows] = (x[rows] - mean) / torch.sqrt(var + 1e-5)
    return out


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_deal_gather_and_mine_are_inverses(groups):
    devices = VirtualDevices(16, groups)
    rows = torch.arange(16.0)[:, None]
    dealt = devices.deal(rows)
    assert dealt.view(groups, -1).tolist() == [list(range(d, 16, groups)) for d in range(groups)]
    assert torch.equal(devices.gather(dealt), rows)
    assert torch.equal(devices.mine(rows), dealt)


@pytest.mark.parametrize("groups", [2, 4])
def test_every_virtual_device_has_statistics_of_its_own(groups):
    network = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5))
    plain = nn.Sequential(network[0], nn.BatchNorm2d(5))
    devices = VirtualDevices(16, groups)
    devices.normalise(network)
    assert network.state_dict().keys() == plain.state_dict().keys()
    x = torch.randn(16, 3, 4, 4).to(memory_format=torch.channels_last)
    inside = network[0](x)
    expected = naive_batch_norm(inside, [list(range(d, 16, groups)) for d in range(groups)])
    torch.testing.assert_close(devices.gather(network(devices.deal(x))), expected, atol=1e-5, rtol=1e-4)

    means = torch.stack([inside[d::groups].mean((0, 2, 3)) for d in range(groups)])
    variances = torch.stack([inside[d::groups].var((0, 2, 3)) for d in range(groups)])
    fresh = nn.Sequential(network[0], nn.BatchNorm2d(5))
    devices.normalise(fresh)
    fresh(devices.deal(x))
    fresh(devices.deal(x))  # running statistics follow the mean over the devices, at BatchNorm's 0.1
    torch.testing.assert_close(fresh[1].running_mean, 0.19 * means.mean(0), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(fresh[1].running_var, 0.81 + 0.19 * variances.mean(0), atol=1e-5, rtol=1e-4)
    plain.load_state_dict(fresh.state_dict())
    torch.testing.assert_close(fresh.eval()(x), plain.eval()(x))


def test_over_processes_a_gpu_runs_the_kernels(monkeypatch):
    plain = nn.BatchNorm2d(3)
    norm, calls = VirtualBatchNorm(plain, 4, synchronised=True), []

    def batch_norm(*arguments, over_ranks):
        calls.append(over_ranks)
        return arguments[0], torch.ones(3), torch.full((3,), 2.0)

    monkeypatch.setattr(shuffle_bn, "fits", lambda x, weight: True)
    monkeypatch.setattr(shuffle_bn, "batch_norm", batch_norm)
    norm(torch.randn(4, 3, 2, 2))
    assert calls == [True] and int(norm.num_batches_tracked) == 1
    torch.testing.assert_close(norm.running_mean, torch.full((3,), 0.1))
    torch.testing.assert_close(norm.running_var, torch.full((3,), 1.1))


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_crops_that_go_together_share_the_statistics_of_their_device(groups):
    layers = nn.Conv2d(3, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
    network, devices = nn.Sequential(*layers), VirtualDevices(16, groups)
    devices.normalise(network)
    crops = [torch.randn(16, 3, 4, 4).to(memory_format=torch.channels_last) for _ in range(3)]
    dealt = [devices.deal(crop).requires_grad_() for crop in crops]
    made = devices.together(network, dealt)
    companies = [[c * 16 + row for c in range(3) for row in range(d, 16, groups)] for d in range(groups)]
    expected = naive_batch_norm(layers[0](torch.cat(crops)), companies).chunk(3)
    for ours, theirs in zip(made, expected):
        torch.testing.assert_close(devices.gather(ours), theirs, atol=1e-5, rtol=1e-4)
    weights = [torch.randn(16, 4, 4, 4) for _ in crops]
    sum((out * w).sum() for out, w in zip(made, weights)).backward()
    gradients = [crop.grad.clone() for crop in dealt]
    (alone,) = devices.together(network, dealt[:1])  # and afterwards a crop by itself again
    torch.testing.assert_close(
        devices.gather(alone.detach()),
        naive_batch_norm(layers[0](crops[0]), [list(range(d, 16, groups)) for d in range(groups)]),
        atol=1e-5,
        rtol=1e-4,
    )
    for parts in {1, groups}:  # parts of whole devices are the same step
        for crop in dealt:
            crop.grad = None
        for rows in torch.arange(16).chunk(parts):
            some = devices.together(network, [crop[rows] for crop in dealt])
            sum((out * w[rows]).sum() for out, w in zip(some, weights)).backward()
        for crop, gradient in zip(dealt, gradients):
            torch.testing.assert_close(crop.grad, gradient, atol=1e-5, rtol=1e-4)


def small_network():
    """A network normalised over four devices, whose ReLU writes into BatchNorm's result, and rows dealt to them."""
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 2)
    network, devices = nn.Sequential(*layers), VirtualDevices(16, 4)
    devices.normalise(network)
    return network, devices.deal(torch.randn(16, 3, 4, 4))


def test_compiled_in_one_graph_it_is_the_same():
    torch.manual_seed(0)
    network, dealt = small_network()
    compiled = copy.deepcopy(network)
    compiled.compile(backend="aot_eager", fullgraph=True)
    for _ in range(2):
        for each in (network, compiled):
            each(dealt).square().mean().backward()
    assert network.state_dict().keys() == compiled.state_dict().keys()
    for one, other in zip(network.buffers(), compiled.buffers()):
        torch.testing.assert_close(one, other)
    for one, other in zip(network.parameters(), compiled.parameters()):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_step_in_parts_of_whole_devices_is_the_same_step():
    torch.manual_seed(0)
    network, dealt = small_network()
    gradients = []
    for parts in (1, 2, 4):
        network.zero_grad()
        for part in dealt.chunk(parts):
            (network(part).square().mean() / parts).backward()
        gradients.append([p.grad.clone() for p in network.parameters()])
    for other in gradients[1:]:
        torch.testing.assert_close(gradients[0], other, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("groups", [2, 4])
def test_keys_are_normalised_in_the_company_the_permutation_gave_them(groups):
    network = nn.Sequential(nn.BatchNorm2d(3))
    devices = VirtualDevices(16, groups)
    devices.normalise(network)
    views = torch.randn(16, 3, 4, 4)
    keys = devices.encode_shuffled(lambda v: network(v).flatten(1), devices.deal(views), seed=3, step=4)
    expected = naive_batch_norm(views, permutation(16, 3, 4).view(groups, -1))
    torch.testing.assert_close(keys, expected.flatten(1), atol=1e-5, rtol=1e-4)
    own = naive_batch_norm(views, [list(range(d, 16, groups)) for d in range(groups)])
    assert (keys - own.flatten(1)).abs().mean() > 0.01


@pytest.mark.parametrize("n", [1, 7, 64])
def test_permutations_are_bijections_and_functions_of_seed_and_step(n):
    assert sorted(permutation(n, 3, 4).tolist()) == list(range(n))
    assert torch.equal(permutation(n, 3, 4), permutation(n, 3, 4))
    assert n == 1 or not torch.equal(permutation(64, 1, 2), permutation(64, 1, 3))


@pytest.mark.parametrize(("batch_size", "groups"), [(16, 3), (16, 16), (10, 4)])
def test_devices_that_cannot_be(batch_size, groups):
    with pytest.raises(UsageError, match="bn_groups"):
        VirtualDevices(batch_size, groups)
