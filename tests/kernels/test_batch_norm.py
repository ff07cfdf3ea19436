"""BatchNorm over virtual devices: torch's own on the CPU and the CUDA source, both against formulas in float64.

Of bfloat16 activations the sums are in float32 and each result is rounded once, so it lies within 2^-8 of itself from
the formulas; what float32 adds is `SMALL`.
"""

import ctypes
import pathlib
import subprocess
from contextlib import contextmanager
from unittest import mock

import numpy as np
import pytest
import torch
from children import torchrun
from torch.nn.functional import batch_norm as torchs

from objcrop.kernels import batch_norm as module
from objcrop.kernels import nvrtc
from objcrop.kernels.batch_norm import CHANNELS, ROUND, THREADS, batch_norm

EPSILON = 1e-5
KINDS = {
    torch.bfloat16: (torch.float32, 2**-8, 1e-4),  # type of the parameters, relative and absolute difference
    torch.float32: (torch.float32, 1e-5, 1e-5),
    torch.float64: (torch.float64, 1e-12, 1e-12),
}
SHAPES = {  # (rows of a device, C, …), devices
    "rows of features": ((8, 66), 4),
    "lines": ((4, 16, 9), 3),
    "images": ((4, 8, 5, 7), 3),
    "few channels": ((3, 5, 6, 6), 2),
    "channels beyond a tile": ((2, 72, 3, 3), 2),
    "tiles": ((2, 192, 4, 5), 2),
    "many positions": ((4, 8, 17, 19), 2),
    "one device": ((6, 16, 4, 4), 1),
    "few values": ((4, 24), 5),
    "videos": ((2, 8, 3, 4, 5), 2),
}


def formulas(x, weight, bias, rows):
    """The definition in float64, its gradient by autograd."""
    axes = (1, *range(3, x.ndim + 1))
    parts = x.unflatten(0, (-1, rows))
    mean = parts.mean(axes, keepdim=True)
    var = (parts - mean).square().mean(axes, keepdim=True)
    shape = (1, -1, *[1] * (x.ndim - 2))
    y = ((parts - mean) / torch.sqrt(var + EPSILON)).flatten(0, 1) * weight.view(shape) + bias.view(shape)
    n = parts[0].numel() // x.shape[1]
    return y, mean.flatten(1).mean(0), var.flatten(1).mean(0) * n / (n - 1)


def by_device(x, weight, bias, rows):
    """Torch's BatchNorm a device, as VirtualBatchNorm once called it."""
    parts = x.split(rows)
    seen = x.new_zeros(2, len(parts), x.shape[1], dtype=weight.dtype)
    out = [torchs(part, *running, weight, bias, True, 1.0, EPSILON) for part, *running in zip(parts, *seen)]
    return torch.cat(out), *seen.mean(1)


def example(shape, devices, dtype=torch.float64, shift=1.0, seed=0):
    """Return x, weight, bias and the gradient of y, in the formats that dtype goes with; x channels last."""
    generator = torch.Generator().manual_seed(seed)
    shape = (shape[0] * devices, *shape[1:])
    x, dy = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    x = (2 * x + shift).movedim(1, -1).contiguous().movedim(-1, 1)
    weight, bias = (torch.rand(shape[1], generator=generator, dtype=torch.float64) + k for k in (0.5, -0.5))
    parameters = KINDS[dtype][0]
    return x.to(dtype), weight.to(parameters), bias.to(parameters), dy.to(dtype)


def all_of(way, x, weight, bias, dy, rows, *more):
    """Return result, what the running statistics see, and the three gradients."""
    x, weight, bias = (t.detach().clone().requires_grad_() for t in (x, weight, bias))
    y, mean, var = way(x, weight, bias, rows, *more)
    y.backward(dy)
    assert y.dtype == x.dtype and (way in (formulas, by_device) or not (mean.requires_grad or var.requires_grad))
    return [t.detach() for t in (y, mean, var, x.grad, weight.grad, bias.grad)]


def compare(made, given, rows, relative, absolute):
    """Against the formulas on the same numbers, y and dx to a bound of each value, sums to one of their greatest."""
    expected = all_of(formulas, *(t.double() for t in given), rows)
    for place, (one, other) in enumerate(zip(made, expected, strict=True)):
        bound = relative * other.abs() + absolute * (1 + (other.abs().max() if place in (1, 2, 4, 5) else 0))
        apart = (one.double() - other).abs()
        assert (apart <= bound).all(), (place, float((apart - bound).max()))


@contextmanager
def kernels_on(library, order=0, blocks=module.BLOCKS):
    """Let the operators launch the CUDA source on the CPU, in some order of its threads; what it leaves out is NaN."""

    def launch(name, function, grid, block, arguments):
        kinds = {torch.Tensor: lambda t: ctypes.c_void_p(t.data_ptr()), np.int32: int, np.float64: ctypes.c_double}
        passed = [kinds[type(argument)](argument) for argument in arguments]
        assert name == "batch_norm" and all(a.is_contiguous() for a in arguments if isinstance(a, torch.Tensor))
        assert not getattr(library, f"cpu_{function}")(*passed, *grid, *block, order)

    torch.use_deterministic_algorithms(True)
    try:
        with (
            mock.patch.object(nvrtc, "launch", launch),
            mock.patch.object(module, "fits", lambda x, weight: True),
            mock.patch.object(module, "BLOCKS", blocks),
        ):
            yield
    finally:
        torch.use_deterministic_algorithms(False)


def way(x, weight, bias, rows):
    return batch_norm(x, weight, bias, rows, EPSILON)


@pytest.mark.parametrize("name", SHAPES)
def test_on_the_cpu_it_is_torchs_a_device(name):
    (rows, *shape), devices = SHAPES[name]
    given = example((rows, *shape), devices)
    made, before = all_of(way, *given, rows), all_of(by_device, *given, rows)
    for one, other in zip(made, before, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)
    assert made[0].movedim(1, -1).is_contiguous() and made[3].movedim(1, -1).is_contiguous()


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_on_the_cpu_it_is_the_formulas(name, dtype):
    (rows, *shape), devices = SHAPES[name]
    given = example((rows, *shape), devices, dtype)
    compare(all_of(way, *given, rows), given, rows, *KINDS[dtype][1:])


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", SHAPES)
def test_the_kernels_are_the_formulas(name, dtype, on_cpu):
    (rows, *shape), devices = SHAPES[name]
    given = example((rows, *shape), devices, dtype)
    with kernels_on(on_cpu):
        compare(all_of(way, *given, rows), given, rows, *KINDS[dtype][1:])


@pytest.mark.parametrize("dtype", KINDS)
def test_the_order_of_the_threads_does_not_matter_to_the_bit(dtype, on_cpu):
    given = example((3, 72, 9, 11), 2, dtype)
    made = []
    for order in range(4):
        with kernels_on(on_cpu, order, blocks=12):
            made.append(all_of(way, *given, 3))
    assert all(torch.equal(one, other) for run in made[1:] for one, other in zip(made[0], run, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("most", [1, 5, 128])
@pytest.mark.parametrize("blocks", [1, 4, 10, 1000])
def test_any_number_of_parts_is_the_same_norm(blocks, most, dtype, on_cpu, monkeypatch):
    monkeypatch.setattr(module, "MOST_PARTS", most)
    given = example((3, 16, 11, 13), 2, dtype)
    with kernels_on(on_cpu, blocks=blocks):
        compare(all_of(way, *given, 3), given, 3, *KINDS[dtype][1:])


def test_large_means_cost_no_digits(on_cpu):
    # What float32 keeps of 10,000 + a normal deviate is exact to 2^-11, which the formulas see too.
    given = example((4, 16, 9, 9), 2, torch.float32, shift=1e4)
    with kernels_on(on_cpu):
        y, _, var, dx, *_ = all_of(way, *given, 4)
    expected = all_of(formulas, *(t.double() for t in given), 4)
    for one, other in ((y, expected[0]), (var, expected[2]), (dx, expected[3])):
        torch.testing.assert_close(one.double(), other, atol=2e-3, rtol=1e-4)


def test_a_channel_of_one_value_and_one_that_is_no_number(on_cpu):
    x, weight, bias, _ = example((4, 16, 4, 4), 2, torch.bfloat16)
    x[:, 3] = 0.7
    x[4, 5, 1, 1] = torch.nan
    with kernels_on(on_cpu):
        y, _, var = batch_norm(x, weight, bias, 4, EPSILON)
    assert torch.equal(y[:, 3], bias[3].bfloat16().expand_as(y[:, 3])) and float(var[3]) == 0
    assert y[4:, 5].isnan().all() and not y[:4].isnan().any() and int(y.isnan().any(1).any(1).sum()) == 4 * 4


def test_slopes_that_lie_otherwise_and_at_odd_addresses(on_cpu):
    x, weight, bias, _ = example((4, 16, 4, 4), 2, torch.float32)
    odd = torch.empty(x.numel() + 1)[1:].view(8, 4, 4, 16).movedim(-1, 1).copy_(x)
    dy = torch.randn(8, 16, 4, 4)
    with kernels_on(on_cpu):
        compare(all_of(way, odd, weight, bias, dy, 4), (x, weight, bias, dy), 4, *KINDS[torch.float32][1:])
        made = all_of(way, x, weight, bias, dy[:, :, :1, :1].expand_as(dy), 4)
    compare(made, (x, weight, bias, dy[:, :, :1, :1].expand_as(dy)), 4, *KINDS[torch.float32][1:])


def test_over_ranks_it_is_the_norm_of_all_rows(on_cpu, monkeypatch):
    world, rows = 3, 4
    given = example((rows, 72, 5, 5), world, torch.float32)
    x, weight, bias, dy = given

    def one_after_the_other(heard):
        """What every rank makes of what all said at a time, and what they then say."""
        made, said = [], [[], []]
        for rank in range(world):
            calls = iter((0, 1))  # forward, backward

            def gather(own, calls=calls):
                call = next(calls)
                said[call].append(own)
                return torch.stack(heard[call] or [own] * world)

            monkeypatch.setattr(module, "gather_ranks", gather)
            mine = slice(rank * rows, (rank + 1) * rows)
            made.append(all_of(batch_norm, x[mine], weight, bias, dy[mine], rows, EPSILON, True))
        return made, said

    monkeypatch.setattr(module, "rank_and_world_size", lambda: (0, world))
    heard = [[], []]
    with kernels_on(on_cpu, blocks=6):
        for _ in range(3):  # forward parts are right after the first time, backward ones after the second
            made, heard = one_after_the_other(heard)
    y, mean, var, dx, dw, db = zip(*made)
    whole = [torch.cat(y), mean[0], var[0], torch.cat(dx), sum(dw), sum(db)]
    compare(whole, given, world * rows, *KINDS[torch.float32][1:])
    assert all(torch.equal(other, mean[0]) for other in mean) and not torch.equal(dw[0], dw[1])


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 3, 3)])
def test_torch_finds_nothing_wrong_with_the_operators(shape):
    x, weight, bias, dy = example((4, *shape[1:]), 2)
    for tensor in (x, weight, bias):
        tensor.requires_grad_()
    torch.library.opcheck(module._operator, (x, weight, bias, 4, EPSILON, False))
    saved = torch.rand(2, 2, shape[1], dtype=torch.float64)
    torch.library.opcheck(module._backward_operator, (dy, x.detach(), weight.detach(), saved, 4, EPSILON, False))


def test_the_numbers_are_those_of_the_source():
    source = (nvrtc.FOLDER / "batch_norm.cu").read_text(encoding="utf-8")
    for name, value in dict(NORM_THREADS=THREADS, CHANNELS=CHANNELS, ROUND=ROUND).items():
        assert f"constexpr int {name} = {value};" in source


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", [*SHAPES, "as in ResNet-50"])
def test_on_a_gpu_the_kernels_are_the_formulas(name, dtype):
    (rows, *shape), devices = {**SHAPES, "as in ResNet-50": ((8, 64, 56, 56), 8)}[name]
    given = example((rows, *shape), devices, dtype)
    on_gpu = [t.cuda() for t in given]
    made, again = (all_of(way, *on_gpu, rows) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(made, again, strict=True)), "two runs differ"
    compare([t.cpu() for t in made], given, rows, *KINDS[dtype][1:])


TWO_RANKS = """
import sys
import torch
import torch.distributed as dist
sys.path[:0] = sys.argv[1:]
from test_batch_norm import EPSILON, all_of, batch_norm, example

dist.init_process_group("gloo")
rank = dist.get_rank()
x, weight, bias, dy = (t.cuda() for t in example((4, 72, 5, 5), 2, torch.float32))
mine = slice(4 * rank, 4 * rank + 4)
made = all_of(batch_norm, x[mine], weight, bias, dy[mine], 4, EPSILON, True)
torch.save([t.cpu() for t in made], f"made.{rank}.pt")
dist.destroy_process_group()
"""


@pytest.mark.gpu
def test_on_a_gpu_two_ranks_take_one_norm(tmp_path):
    (tmp_path / "two.py").write_text(TWO_RANKS)
    here = pathlib.Path(__file__).parent
    run = subprocess.run(torchrun("two.py", here, here.parent), cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    y, mean, var, dx, dw, db = zip(*(torch.load(tmp_path / f"made.{rank}.pt") for rank in range(2)))
    whole = [torch.cat(y), mean[0], var[0], torch.cat(dx), sum(dw), sum(db)]
    compare(whole, example((4, 72, 5, 5), 2, torch.float32), 8, *KINDS[torch.float32][1:])
