"""Cropped and resized: the CUDA source (on the CPU, in four thread orders) and torch's way against PIL."""

import ctypes

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from objcrop.kernels.crop_resize import FILTERS, crop_resize

PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(61, 47), (200, 9), (1, 1), (3, 80), (128, 128)]
rng = np.random.default_rng(0)
IMAGES = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in SIZES]
PIXELS = torch.from_numpy(np.concatenate([image.ravel() for image in IMAGES]))
BEGINS = torch.tensor(np.cumsum([0] + [image.size for image in IMAGES[:-1]]))
WIDTHS = torch.tensor([width for width, _ in SIZES], dtype=torch.int32)
WHOLE = torch.tensor([[0, 0, width, height] for width, height in SIZES], dtype=torch.int32)
INNER = torch.tensor([[5, 3, 40, 44], [10, 2, 190, 7], [0, 0, 1, 1], [1, 10, 2, 70], [64, 0, 128, 17]]).int()


def by_pil(windows, size, interpolation, which=range(len(IMAGES))):
    views = []
    for image, (x0, y0, x1, y1) in zip((IMAGES[i] for i in which), windows.tolist()):
        window = Image.fromarray(image[y0:y1, x0:x1])
        views.append(np.asarray(window.resize((size, size), PIL_FILTERS[interpolation])))
    return np.stack(views).astype(int)


def by_torch(windows, size):
    views = []
    for image, (x0, y0, x1, y1) in zip(IMAGES, windows.tolist()):
        window = torch.from_numpy(image[y0:y1, x0:x1]).permute(2, 0, 1)[None].float()
        view = torch.nn.functional.interpolate(window, (size, size), mode="bicubic", antialias=True)
        views.append(view[0].permute(1, 2, 0).round().clamp(0, 255))
    return torch.stack(views).numpy()


def by_kernel(library, begins, widths, windows, size, interpolation, order=0, blocks=3, threads=64):
    out = torch.zeros(len(windows), size, size, 3, dtype=torch.uint8)
    begins, widths, windows = begins.contiguous(), widths.contiguous(), windows.contiguous()
    pointer = lambda tensor: ctypes.c_void_p(tensor.data_ptr())  # noqa: E731
    given = (pointer(PIXELS), pointer(begins), pointer(widths), pointer(windows), size, FILTERS[interpolation])
    assert not library.cpu_crop_resize(*given, pointer(out), blocks, len(windows), threads, order)
    return out.numpy().astype(int)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [1, 8, 33, 96])
@pytest.mark.parametrize("windows", [WHOLE, INNER], ids=["whole", "inner"])
def test_both_are_pils_within_a_level(windows, size, interpolation, on_cpu):
    expected = by_pil(windows, size, interpolation)
    theirs = crop_resize(PIXELS, BEGINS, WIDTHS, windows, size, interpolation).numpy().astype(int)
    ours = by_kernel(on_cpu, BEGINS, WIDTHS, windows, size, interpolation)
    if interpolation == "bicubic":
        # Where the cubic overshoots, as it does in noise, what is clamped between the axes makes a difference.
        assert np.abs(theirs - expected).mean() < 0.3
        expected = by_torch(windows, size)
    else:
        assert np.abs(theirs - expected).max() <= 1
    assert np.abs(ours - expected).max() <= 1


@pytest.mark.parametrize("order", range(4))
def test_no_thread_order_matters(order, on_cpu):
    first = by_kernel(on_cpu, BEGINS, WIDTHS, INNER, 24, "bilinear")
    assert np.array_equal(by_kernel(on_cpu, BEGINS, WIDTHS, INNER, 24, "bilinear", order, 5, 37), first)


@given(data=st.data(), size=st.integers(1, 40))
@settings(max_examples=60)
def test_any_window(data, size, on_cpu):
    which = data.draw(st.integers(0, len(IMAGES) - 1))
    width, height = SIZES[which]
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    window = torch.tensor([[x0, y0, data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))]])
    at = slice(which, which + 1)
    ours = by_kernel(on_cpu, BEGINS[at], WIDTHS[at], window.int(), size, "bilinear")
    assert np.abs(ours - by_pil(window, size, "bilinear", [which])).max() <= 1


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", FILTERS)
def test_the_kernel_on_the_gpu(interpolation, on_cpu):
    expected = by_kernel(on_cpu, BEGINS, WIDTHS, INNER, 96, interpolation)
    arguments = (tensor.cuda() for tensor in (PIXELS, BEGINS, WIDTHS, INNER))
    made = crop_resize(*arguments, 96, interpolation).cpu().numpy().astype(int)
    assert np.abs(made - expected).max() <= 1  # fused multiply-adds may round the other way
