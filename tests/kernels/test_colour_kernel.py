"""The CUDA source of colour, on the CPU in several thread orders, against the definition; the kernel where a GPU is.

Every value is a float until it is stored, so what is told apart from the definition is rounding and the blur's least
taps: `CLOSE` of 255, a hundredth of what the kernel is allowed.
"""

import ctypes
import itertools
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from objcrop.kernels import colour as module
from objcrop.kernels import nvrtc
from objcrop.kernels.colour import (
    FORMATS,
    MEAN_THREADS,
    MOST_TAPS,
    PARTS,
    ROWS,
    SIDES,
    THREADS,
    colour,
    colour_by_kernel,
    fits,
    tile_for,
)
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.colour_reference import colour_reference
from objcrop.kernels.colour_torch import colour_torch

CLOSE = 0.015
RAW = dict(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
IMAGENET = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PLAIN = dict(flip=False, jitter=False, factors=[1, 1, 1, 0], order=[0, 1, 2, 3], grey=False, sigma=0.0, solarise=False)
EVERYTHING = dict(
    flip=True, jitter=True, factors=[1.3, 0.7, 1.35, -0.08], order=[2, 0, 3, 1], grey=False, sigma=1.3, solarise=True
)


def jittered(brightness=1.0, contrast=1.0, saturation=1.0, hue=0.0, order=(0, 1, 2, 3)):
    return {**PLAIN, "jitter": True, "factors": [brightness, contrast, saturation, hue], "order": list(order)}


DECISIONS = {
    "nothing": PLAIN,
    "brightness": jittered(brightness=1.3),
    "darkness": jittered(brightness=0.0),
    "contrast": jittered(contrast=0.65, order=(1, 0, 2, 3)),
    "no contrast": jittered(contrast=0.0, order=(3, 2, 1, 0)),
    "more contrast": jittered(contrast=3.0, order=(3, 2, 1, 0)),
    "saturation": jittered(saturation=1.4),
    "no saturation": jittered(saturation=0.0),
    "far too saturated": jittered(saturation=7.0),
    "hue": jittered(hue=0.1),
    "hue, half a turn": jittered(hue=0.5),
    "hue, half a turn back": jittered(hue=-0.5),
    "all at their bounds": jittered(1.4, 0.6, 1.4, 0.1, (3, 0, 1, 2)),
    "all at their other bounds": jittered(0.6, 1.4, 0.6, -0.1, (1, 3, 2, 0)),
    "grey": {**PLAIN, "grey": True},
    "least blur": {**PLAIN, "sigma": 0.1},
    "a blur that just counts": {**PLAIN, "sigma": 0.22},
    "blur": {**PLAIN, "sigma": 1.1},
    "greatest blur": {**PLAIN, "sigma": 2.0},
    "huge blur": {**PLAIN, "sigma": 1e9},
    "a blur that underflows": {**PLAIN, "sigma": 1e-30},
    "solarise": {**PLAIN, "solarise": True},
    "flip": {**PLAIN, "flip": True},
    "everything": EVERYTHING,
    "everything, and grey": {**EVERYTHING, "grey": True},
}


def pictures(size):
    """Smooth, noise, black, white, grey, and the corners of the colour cube side by side."""
    rng = np.random.default_rng(size)
    y, x = np.mgrid[0:size, 0:size] / size
    smooth = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y), np.sin(9 * x * y)], -1) * 110 + 128
    corner = (8 * x).astype(int)[..., None] >> np.arange(3) & 1
    flat = [np.full((size, size, 3), level) for level in (0, 255, 127, 128)]
    kinds = [smooth.clip(0, 255), rng.integers(0, 256, (size, size, 3)), *flat, 255 * corner]
    return torch.from_numpy(np.stack(kinds).astype(np.uint8))


def by_reference(views, decisions, mean, std):
    # Of the blur that underflows torchvision's taps are NaN where its linspace misses 0, by machine and size.
    decisions = [{**d, "sigma": 0.0 if d["sigma"] < 1e-9 else d["sigma"]} for d in decisions]
    pairs = zip(views, decisions, strict=True)
    return torch.stack([colour_reference(v.permute(2, 0, 1), Decisions(**d), mean=mean, std=std) for v, d in pairs])


TYPES = dict(
    flip=torch.bool,
    jitter=torch.bool,
    factors=torch.float32,
    order=torch.uint8,
    grey=torch.bool,
    sigma=torch.float32,
    solarise=torch.bool,
)


def stacked(decisions, device="cpu"):
    """The decisions as arguments of `colour`."""
    made = (torch.tensor([d[name] for d in decisions], dtype=t, device=device) for name, t in TYPES.items())
    return Decisions(*made)


def by_kernel(library, views, decisions, mean, std, dtype=torch.float32, order=0, threads=48, tile=32, rows=ROWS):
    """`colour_by_kernel` with its launches sent to the CPU, in blocks and tiles of other sizes."""

    def launch(name, function, grid, block, arguments, shared_bytes=0):
        kinds = {torch.Tensor: lambda t: ctypes.c_void_p(t.data_ptr()), np.int32: int, np.float32: ctypes.c_float}
        passed = [kinds[type(argument)](argument) for argument in arguments]
        assert not getattr(library, f"cpu_{function}")(*passed, *grid, threads, shared_bytes, order)

    torch.use_deterministic_algorithms(True)  # fills what is allocated with NaNs
    try:
        with (
            mock.patch.object(nvrtc, "launch", launch),
            mock.patch.object(module, "tile_for", lambda size, device: tile),
            mock.patch.object(module, "ROWS", rows),
        ):
            return colour_by_kernel(views, stacked(decisions), mean=mean, std=std, dtype=dtype)
    finally:
        torch.use_deterministic_algorithms(False)


def apart(library, views, decisions, **options):
    """The greatest difference from the definition, of 255, before normalising."""
    expected = by_reference(views, decisions, **RAW)
    return float((by_kernel(library, views, decisions, **RAW, **options) - expected).abs().max()) * 255


@pytest.mark.parametrize(("size", "tile"), [(1, 32), (5, 16), (33, 32), (41, 16), (96, 32)])
@pytest.mark.parametrize("name", DECISIONS)
def test_each_decision(name, size, tile, on_cpu):
    views = pictures(size)
    assert apart(on_cpu, views, [DECISIONS[name]] * len(views), tile=tile) < CLOSE


def test_every_order_of_the_jitter(on_cpu):
    orders = list(itertools.permutations(range(4)))
    decisions = [jittered(1.3, 0.7, 1.35, -0.08, order) for order in orders]
    for picture in pictures(24)[:2]:
        assert apart(on_cpu, picture.expand(24, -1, -1, -1), decisions) < CLOSE


@pytest.mark.parametrize("name", ["all at their bounds", "greatest blur", "huge blur", "everything"])
def test_at_the_size_of_training(name, on_cpu):
    views = pictures(224)[:2]
    decisions = [DECISIONS[name], {**DECISIONS[name], "flip": True}]
    for tile in SIDES:
        assert apart(on_cpu, views, decisions, threads=THREADS, tile=tile) < CLOSE


@pytest.mark.parametrize("tile", SIDES)
@pytest.mark.parametrize("size", [2, 20, 32, 47, 64, 65, 130, 319])
def test_sizes_that_tiles_divide_or_do_not(size, tile, on_cpu):
    views = pictures(size)[:2]
    assert apart(on_cpu, views, [EVERYTHING, {**EVERYTHING, "sigma": 1e9, "jitter": False}], tile=tile) < CLOSE


@pytest.mark.parametrize("tile", SIDES)
@pytest.mark.parametrize(("order", "threads"), [(0, 1), (1, 37), (2, 64), (3, THREADS), (4, 193), (5, 512)])
def test_neither_the_threads_nor_their_order_matter(order, threads, tile, on_cpu):
    views = pictures(70)[:3]
    decisions = [EVERYTHING, {**EVERYTHING, "sigma": 0.0}, {**EVERYTHING, "sigma": 3.0, "grey": True}]
    options = dict(order=order, threads=threads, tile=tile, rows=tile * (1 + order % 3))
    assert apart(on_cpu, views, decisions, **options) < CLOSE
    without_contrast = [{**d, "order": [0, 1, 2, 3], "factors": [0.9, 1, 1.2, 0.1]} for d in decisions]
    expected = by_kernel(on_cpu, views, without_contrast, **IMAGENET, tile=tile)
    assert torch.equal(by_kernel(on_cpu, views, without_contrast, **IMAGENET, **options), expected)


@pytest.mark.parametrize("dtype", FORMATS)
def test_each_format_is_the_nearest_to_the_float(dtype, on_cpu):
    views = pictures(40)
    decisions = [{**EVERYTHING, "solarise": i % 2 > 0} for i in range(len(views))]
    mean, std = (0.485, -3.0, 0.5), (0.229, 3e-5, 4e3)  # the second beyond half's range, the third below its normal one
    exact = by_kernel(on_cpu, views, decisions, mean, std)
    made = by_kernel(on_cpu, views, decisions, mean, std, dtype)
    assert torch.equal(made, exact.to(dtype))
    if dtype == torch.float16:
        assert made.isinf().any() and (made.abs() < 2**-14).any()


def test_halves_to_the_bit(on_cpu):
    # Of a black view a normalised pixel is the bias, so a float a view goes through the conversion.
    rng = np.random.default_rng(0)
    edges = np.float32([0, 2**-24, 2**-25, 1.5 * 2**-25, 3 * 2**-25, 2**-14, 65504, 65519.996, 65520, 65536, 1e30])
    ties = (1 + (2 * np.arange(8) + 1) / 2**11).astype(np.float32)
    wide = (rng.uniform(-1, 1, 150) * 2.0 ** rng.integers(-30, 20, 150)).astype(np.float32)
    values = np.concatenate([edges, -edges, ties, -ties, 1 + (2 * np.arange(8) + 1).astype(np.float32) / 2**8, wide])
    black = torch.zeros(1, 1, 1, 3, dtype=torch.uint8)
    for triple in np.resize(values, (-(-len(values) // 3), 3)):
        for dtype in (torch.float16, torch.bfloat16):
            made = by_kernel(on_cpu, black, [PLAIN], [-float(v) for v in triple], (1.0, 1.0, 1.0), dtype)
            expected = torch.from_numpy(triple).to(dtype)
            assert torch.equal(made.flatten(), expected), triple


def test_views_do_not_depend_on_their_company(on_cpu):
    views = pictures(50)
    decisions = [DECISIONS[name] for name in itertools.islice(itertools.cycle(reversed(DECISIONS)), len(views))]
    together = by_kernel(on_cpu, views, decisions, **IMAGENET)
    alone = [by_kernel(on_cpu, views[i : i + 1], decisions[i : i + 1], **IMAGENET) for i in range(len(views))]
    assert torch.equal(together, torch.cat(alone))


drawn = st.fixed_dictionaries(
    dict(
        flip=st.booleans(),
        jitter=st.booleans(),
        factors=st.tuples(*[st.floats(0, 2, width=32)] * 3, st.floats(-0.5, 0.5, width=32)),
        order=st.permutations(range(4)),
        grey=st.booleans(),
        sigma=st.just(0.0) | st.floats(0.125, 4, width=32),
        solarise=st.booleans(),
    )
)


@given(decision=drawn, size=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=60)
def test_any_decision(on_cpu, decision, size, seed):
    view = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (1, size, size, 3), np.uint8))
    assert apart(on_cpu, view, [decision], order=seed) < CLOSE


def test_without_a_gpu_it_is_torch():
    views, decisions = pictures(33), stacked([EVERYTHING] * 7)
    for dtype in FORMATS:
        made = colour(views, decisions, **IMAGENET, dtype=dtype)
        assert torch.equal(made, colour_torch(views, decisions, **IMAGENET, dtype=dtype))
        assert made.dtype == dtype and made.is_contiguous(memory_format=torch.channels_last)


def a_gpu(monkeypatch, of_multiprocessor, of_block):
    """One with so much shared memory, KiB."""
    monkeypatch.setattr(nvrtc, "shared_bytes_of_multiprocessor", lambda device: of_multiprocessor * 1024)
    monkeypatch.setattr(nvrtc, "most_shared_bytes", lambda device: of_block * 1024)


@pytest.mark.parametrize(
    ("gpu", "tiles"),
    {
        # With the blur's reach r, side + 2 r + 1 rows, made a multiple of 4, of 3 times as many floats, made odd.
        "T4, sm_75": ((64, 64), {96: 16, 224: 16, 384: 32, 479: 16, 639: None}),
        "V100, sm_70": ((96, 96), {96: 32, 224: 16, 384: 16, 639: 16}),
        "A100, sm_80": ((164, 163), {96: 32, 224: 32, 384: 16, 639: 16}),
        "RTX 3090, sm_86": ((100, 99), {96: 32, 224: 16, 384: 16, 639: 16}),
        "H100, sm_90": ((228, 227), {96: 32, 224: 32, 384: 32, 639: 32}),
        "no room": ((16, 16), {96: 16, 224: None}),
    }.values(),
)
def test_small_tiles_are_for_little_shared_memory(gpu, tiles, monkeypatch):
    a_gpu(monkeypatch, *gpu)
    assert {size: tile_for(size, torch.device("cuda:0")) for size in tiles} == tiles


def test_what_does_not_fit_is_left_to_torch(monkeypatch):
    def view(size, count=1):
        return torch.zeros(1, 1, 1, 1, dtype=torch.uint8).expand(count, size, size, 3)

    monkeypatch.setattr(nvrtc, "available", lambda: True)
    a_gpu(monkeypatch, 64, 48)
    assert fits(view(479), torch.float32) and not fits(view(480), torch.float32)
    a_gpu(monkeypatch, 228, 227)
    assert fits(view(639), torch.float32) and not fits(view(640), torch.float32)
    assert fits(view(224), torch.bfloat16) and not fits(view(224), torch.float64)
    assert not fits(view(224, 65536), torch.bfloat16)
    monkeypatch.setattr(nvrtc, "available", lambda: False)
    assert not fits(view(224), torch.bfloat16)


def test_the_numbers_are_those_of_the_source():
    source = (nvrtc.FOLDER / "colour.cu").read_text(encoding="utf-8")
    for name, value in dict(PARTS=PARTS, BATCH=4, MOST_TAPS=MOST_TAPS).items():
        assert f"constexpr int {name} = {value};" in source
    assert all(f"void colour_{side}(" in source for side in SIDES)
    assert MEAN_THREADS <= 1024


@pytest.mark.gpu
@pytest.mark.parametrize("size", [1, 2, 5, 32, 33, 96, 224, 319, 384])
@pytest.mark.parametrize("dtype", FORMATS)
def test_the_kernel_is_the_definition(dtype, size):
    views = pictures(size)
    decisions = [DECISIONS[name] for name in DECISIONS for _ in views]
    views = views.repeat(len(DECISIONS), 1, 1, 1)
    expected = by_reference(views, decisions, **RAW)
    arguments = views.cuda(), stacked(decisions, "cuda")
    for tile in SIDES:
        with mock.patch.object(module, "tile_for", lambda size, device, tile=tile: tile):
            made = colour(*arguments, **RAW, dtype=dtype)
        assert made.dtype == dtype and made.is_contiguous(memory_format=torch.channels_last)
        half_unit = 255 * torch.finfo(dtype).eps / 2
        assert float((made.cpu().float() - expected).abs().max()) * 255 < CLOSE + half_unit


@pytest.mark.gpu
def test_the_kernel_runs_in_the_current_stream_and_waits_for_nothing():
    views, decisions = pictures(224).cuda(), stacked([EVERYTHING] * 7, "cuda")
    expected = colour(views, decisions, **IMAGENET)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        late = torch.zeros_like(views)
        colour(late, decisions, **IMAGENET)  # its memory is there to be used again: allocating could wait
        stream.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            torch.cuda._sleep(100_000_000)  # a kernel in another stream would read zeros
            late.copy_(views)
            made = colour(late, decisions, **IMAGENET)
            assert not stream.query(), "the host waited"
        finally:
            torch.cuda.set_sync_debug_mode("default")
    stream.synchronize()
    assert torch.equal(made, expected)


@pytest.mark.gpu
def test_no_views_are_no_launch():
    decisions = Decisions(*(value[:0] for value in stacked([PLAIN], "cuda")))
    assert colour(pictures(32).cuda()[:0], decisions, **IMAGENET).shape == (0, 3, 32, 32)
