"""The definition against torchvision's public functional, and every implementation against the definition."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import functional as tv1

from objcrop.dali_pipes.decode_crop_resize import windows_at
from objcrop.kernels.colour_cpu import colour_views, crop_colour_into
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.colour_pil import colour_pil
from objcrop.kernels.colour_reference import blur_kernel_size, colour_reference
from objcrop.kernels.colour_torch import colour_torch
from objcrop.kernels.crop_resize import Windows, crop_resize

PLAIN = dict(flip=False, jitter=False, factors=[1, 1, 1, 0], order=[0, 1, 2, 3], grey=False, sigma=0.0, solarise=False)
RAW = dict(mean=(0, 0, 0), std=(1, 1, 1))
STEPS = {
    "nothing": {},
    "brightness": dict(jitter=True, factors=[1.3, 1, 1, 0]),
    "contrast": dict(jitter=True, factors=[1, 0.65, 1, 0], order=[1, 0, 2, 3]),
    "more contrast": dict(jitter=True, factors=[1, 1.4, 1, 0], order=[3, 2, 1, 0]),
    "saturation": dict(jitter=True, factors=[1, 1, 1.4, 0]),
    "hue": dict(jitter=True, factors=[1, 1, 1, 0.1]),
    "hue back": dict(jitter=True, factors=[1, 1, 1, -0.5]),
    "grey": dict(grey=True),
    "blur": dict(sigma=1.7),
    "light blur": dict(sigma=0.1),
    "solarise": dict(solarise=True),
    "flip": dict(flip=True),
}


def pictures(size):
    rng = np.random.default_rng(size)
    y, x = np.mgrid[0:size, 0:size] / size
    smooth = np.stack([np.sin(7 * x + 3 * y), np.cos(5 * y), np.sin(9 * x * y)], -1) * 110 + 128
    primaries = np.zeros((size, size, 3))
    primaries[: size // 2, :, 0] = 255
    primaries[:, : size // 2, 1] = 255
    primaries[size // 4 : size // 2, :, 2] = 255
    kinds = [
        np.clip(smooth + rng.normal(0, 12, smooth.shape), 0, 255),
        rng.integers(0, 256, (size, size, 3)),
        np.zeros((size, size, 3)),
        np.full((size, size, 3), 255),
        np.full((size, size, 3), 77),
        primaries,
    ]
    return torch.from_numpy(np.stack(kinds).astype(np.uint8))


def by_reference(views, decisions, mean, std):
    pairs = zip(views, decisions)
    return torch.stack([colour_reference(v.permute(2, 0, 1), Decisions(**d), mean=mean, std=std) for v, d in pairs])


def by_numba(views, decisions, mean, std):
    out = np.full(views.shape, np.nan, np.float32)
    stacked = Decisions(*(np.array([d[name] for d in decisions]) for name in Decisions._fields))
    colour_views(views.numpy(), stacked, mean=mean, std=std, out=out)
    return torch.from_numpy(out).permute(0, 3, 1, 2)


def by_torch(views, decisions, mean, std):
    stacked = {k: torch.as_tensor(np.array([d[k] for d in decisions])) for k in PLAIN}
    stacked["factors"], stacked["sigma"] = stacked["factors"].float(), stacked["sigma"].float()
    return colour_torch(views, Decisions(**stacked), mean=mean, std=std)


IMPLEMENTATIONS = {"numba": by_numba, "torch": by_torch}


@pytest.mark.parametrize("size", [9, 31, 64, 224])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_each_step(name, step, size):
    views = pictures(size)
    decisions = [{**PLAIN, **STEPS[step]}] * len(views)
    apart = (IMPLEMENTATIONS[name](views, decisions, **RAW) - by_reference(views, decisions, **RAW)).abs() * 255
    assert apart.max() < 0.1, apart.amax((1, 2, 3))


def random_decisions(n, rng):
    return [
        dict(
            flip=bool(rng.random() < 0.5),
            jitter=bool(rng.random() < 0.8),
            factors=[*rng.uniform(0.6, 1.4, 3), rng.uniform(-0.1, 0.1)],
            order=rng.permutation(4).tolist(),
            grey=bool(rng.random() < 0.2),
            sigma=float(rng.uniform(0.1, 2) if rng.random() < 0.5 else 0),
            solarise=bool(rng.random() < 0.2),
        )
        for _ in range(n)
    ]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_whole_chains(name):
    rng = np.random.default_rng(0)
    views = pictures(96).repeat(20, 1, 1, 1)
    decisions = random_decisions(len(views), rng)
    for d in decisions:  # solarising is a jump: a hair's difference on either side of 0.5 is a whole level apart
        d["solarise"] = False
    norm = dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    apart = (IMPLEMENTATIONS[name](views, decisions, **norm) - by_reference(views, decisions, **norm)).abs()
    apart = apart * torch.tensor(norm["std"]).view(3, 1, 1) * 255
    assert apart.mean() < 0.01 and apart.max() < 0.6


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_solarised_chains_on_the_mean(name):
    views = pictures(64)[:1].repeat(30, 1, 1, 1)
    decisions = [{**d, "solarise": True} for d in random_decisions(30, np.random.default_rng(1))]
    apart = (IMPLEMENTATIONS[name](views, decisions, **RAW) - by_reference(views, decisions, **RAW)).abs() * 255
    assert apart.mean() < 0.05


@pytest.mark.parametrize(("height", "width"), [(31, 1), (64, 33), (33, 64), (60, 2100)])
def test_views_that_are_not_square(height, width):
    views = torch.from_numpy(np.random.default_rng(2).integers(0, 256, (8, height, width, 3), np.uint8))
    decisions = random_decisions(len(views), np.random.default_rng(3))
    for i, d in enumerate(decisions):
        d.update(solarise=False, sigma=float(i % 3), flip=i % 2 == 0)
    if width == 2100:  # a row longer than what is worked on at once; blurred it would need more rows
        decisions = [{**d, "sigma": 0.0} for d in decisions]
    apart = (by_numba(views, decisions, **RAW) - by_reference(views, decisions, **RAW)).abs() * 255
    assert apart.max() < 0.6


def test_a_view_does_not_depend_on_the_one_before():
    views = pictures(64)
    decisions = random_decisions(len(views), np.random.default_rng(4))
    alone = torch.cat([by_numba(v[None], [d], **RAW) for v, d in zip(views, decisions)])
    by_numba(pictures(224), random_decisions(len(views), np.random.default_rng(5)), **RAW)
    back = by_numba(views.flip(0), decisions[::-1], **RAW).flip(0)
    assert torch.equal(alone, back)


@pytest.mark.slow
def test_processors_without_wide_registers(tmp_path):
    """numba compiles for the processor it finds; told of none of its extensions, the colours are the same."""
    environment = {
        **os.environ,
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
        "NUMBA_CACHE_DIR": str(tmp_path),
    }
    own = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "numba and chains"]
    run = subprocess.run(own, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout


COLOURS = """
import hashlib
import numpy as np
from objcrop.kernels.colour_cpu import colour_views
from objcrop.kernels.colour_decisions import Decisions
random, digest = np.random.default_rng(0), hashlib.sha256()
for n in range(12):
    factors = random.uniform(0.6, 1.4, 4).astype(np.float32)
    factors[3] = 0.1
    order, sigma, side = random.permutation(4).astype(np.int8), np.float32(n % 3), (32, 97)[n % 2]
    chosen = Decisions([n % 2 == 0], [n % 5 > 0], [factors], [order], [n % 7 == 6], [sigma], [n % 4 == 0])
    out = np.empty((1, side, side, 3), np.float32)
    colour_views(random.integers(0, 256, out.shape, dtype=np.uint8), chosen, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), out)
    digest.update(out.tobytes())
print(digest.hexdigest())
"""


def test_who_compiles_and_who_finds_it_compiled_give_the_same_to_the_bit(tmp_path):
    """A run is begun by the one and resumed by the other. Parts that were not inlined were rounded in two ways."""
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COLOURS]
    first, second = (
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True) for _ in range(2)
    )
    assert first.stdout == second.stdout and list(tmp_path.rglob("colour_cpu._colour_all-*.nbc"))
    assert first.stderr.count("Compiling loops for this processor") == 1 and not second.stderr


def test_views_of_a_batch_are_those_alone_to_the_bit():
    random, count, side = np.random.default_rng(0), 7, 32
    views = random.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    flip, jitter, grey, solarise = random.random((4, count)) < 0.5
    order = np.stack([random.permutation(4) for _ in views]).astype(np.uint8)
    factors = random.uniform(0.6, 1.4, (count, 4)).astype(np.float32) - np.array([0, 0, 0, 1], np.float32)
    sigma = np.array([0, 2, 0.1, 0, 1, 0.5, 0], np.float32)
    decisions = Decisions(flip, jitter, factors, order, grey, sigma, solarise)
    together, alone = np.full((2, *views.shape), np.nan, np.float32)
    colour_views(views, decisions, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), together)
    for i in range(count):
        one = slice(i, i + 1)
        of_one = Decisions(*(d[one] for d in decisions))
        colour_views(views[one], of_one, (0.4, 0.5, 0.6), (0.2, 0.2, 0.2), alone[one])
    assert np.array_equal(together, alone)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [1, 2, 3, 5, 40, 97])
def test_windows_are_coloured_as_the_views_they_become_to_the_bit(size, interpolation):
    random = np.random.default_rng(2)
    image = random.integers(0, 256, (90, 120, 3), dtype=np.uint8)
    windows = np.array([[[0, 0, 120, 90]], [[7, 3, 47, 43]], [[100, 50, 103, 90]], [[2, 5, 95, 61]]], np.int32)
    turns = np.array([1, 1, 6, 2], np.int8)
    there = windows_at(np.full(4, image.ctypes.data), windows, np.full(4, 120, np.int32), turns)
    of_view = Windows(*(part[0] for part in there))
    decided = random_decisions(4, random)
    stacked = Decisions(*(np.array([d[name] for d in decided]) for name in Decisions._fields))
    at_once, in_two = np.full((2, 4, size, size, 3), np.nan, np.float32)
    crop_colour_into(at_once, of_view, interpolation, stacked, **RAW)
    views = crop_resize(of_view, size, interpolation, torch.device("cpu")).numpy()
    colour_views(views, stacked, **RAW, out=in_two)
    np.testing.assert_array_equal(at_once, in_two)


def test_half_precision_is_channels_last():
    views = pictures(32)
    stacked = by_torch(views, [PLAIN] * len(views), **RAW)
    assert stacked.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("step", "theirs"),
    [
        ("brightness", lambda x: tv1.adjust_brightness(x, 1.3)),
        ("contrast", lambda x: tv1.adjust_contrast(x, 0.65)),
        ("saturation", lambda x: tv1.adjust_saturation(x, 1.4)),
        ("hue", lambda x: tv1.adjust_hue(x, 0.1)),
        ("grey", lambda x: tv1.rgb_to_grayscale(x, 3)),
        ("blur", lambda x: tv1.gaussian_blur(x, [23, 23], [1.7, 1.7])),
        ("solarise", lambda x: tv1.solarize(x, 0.5)),
        ("flip", tv1.hflip),
    ],
)
def test_the_definition_is_torchvisions(step, theirs):
    view = pictures(230)[0].permute(2, 0, 1)
    mine = colour_reference(view, Decisions(**{**PLAIN, **STEPS[step]}), **RAW)
    torch.testing.assert_close(mine, theirs(view.float() / 255), atol=5e-6, rtol=0)


def test_order_matters_and_is_kept():
    view = pictures(64)[0].permute(2, 0, 1)
    jitter = {**PLAIN, "jitter": True, "factors": [1.4, 0.6, 1.3, 0.08]}
    a = colour_reference(view, Decisions(**{**jitter, "order": [0, 1, 2, 3]}), **RAW)
    b = colour_reference(view, Decisions(**{**jitter, "order": [3, 2, 1, 0]}), **RAW)
    x = view.float() / 255
    x = tv1.adjust_saturation(tv1.adjust_contrast(tv1.adjust_brightness(x, 1.4), 0.6), 1.3)
    torch.testing.assert_close(a, tv1.adjust_hue(x, 0.08), atol=5e-6, rtol=0)
    assert (a - b).abs().mean() > 0.01


def test_blur_kernel_is_a_tenth_of_the_view():
    assert [blur_kernel_size(s) for s in (224, 96, 64, 32, 8)] == [23, 9, 7, 3, 1]


@pytest.mark.parametrize("step", [s for s in STEPS if "blur" not in s])
def test_the_pil_chain_is_near(step):
    view = pictures(64)[0]
    d = {**PLAIN, **STEPS[step]}
    mine = colour_pil(Image.fromarray(view.numpy()), Decisions(**d), **RAW)
    apart = (mine - colour_reference(view.permute(2, 0, 1), Decisions(**d), **RAW)).abs() * 255
    assert apart.mean() < (0.01 if step in ("nothing", "flip") else 4)
