"""Cropped and resized: the CUDA source (on the CPU, in four thread orders) and the CPU's loops against PIL."""

import ctypes
import math
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from objcrop.dali_pipes.decode_crop_resize import windows_at
from objcrop.exif import stored_windows, upright_array
from objcrop.kernels import nvrtc
from objcrop.kernels.colour_cpu import colour_views
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.crop_resize import BLOCK, FILTERS, TILE, Windows, crop_resize, pixels_of
from objcrop.kernels.crop_resize_cpu import crop_resize_into

PIL_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
SIZES = [(61, 47), (200, 9), (1, 1), (3, 80), (128, 128)]
rng = np.random.default_rng(0)
IMAGES = [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in SIZES]
WHOLE = np.array([[0, 0, width, height] for width, height in SIZES], np.int32)
INNER = np.array([[5, 3, 40, 44], [10, 2, 190, 7], [0, 0, 1, 1], [1, 10, 2, 70], [64, 0, 128, 17]], np.int32)
CPU = torch.device("cpu")


def in_memory(images, windows, orientations=None):
    """A window (4,) of each image's stored frame."""
    addresses = np.array([image.ctypes.data for image in images])
    widths = np.array([image.shape[1] for image in images], np.int32)
    return Windows(*(part[0] for part in windows_at(addresses, windows[:, None], widths, orientations)))


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
    return torch.stack(views).numpy().astype(int)


def by_kernel(library, windows, size, interpolation, order=0):
    out = np.zeros((len(windows.corners), size, size, 3), np.uint8)
    parts = [np.ascontiguousarray(part) for part in windows]
    tiles = -(-size // TILE[0]), -(-size // TILE[1])
    pointers = [ctypes.c_void_p(array.ctypes.data) for array in (*parts, out)]
    given = (*pointers[:3], size, FILTERS[interpolation], pointers[3])
    assert not library.cpu_crop_resize(*given, *tiles, len(out), order)
    return out.astype(int)


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize("size", [1, 8, 33, 96])
@pytest.mark.parametrize("windows", [WHOLE, INNER], ids=["whole", "inner"])
def test_both_are_pils_within_a_level(windows, size, interpolation, on_cpu):
    expected = by_pil(windows, size, interpolation)
    if interpolation == "bicubic":
        # Where the cubic overshoots, as it does in noise, what PIL clamps between the axes makes a difference.
        assert np.abs(by_torch(windows, size) - expected).mean() < 0.3
        expected = by_torch(windows, size)
    there = in_memory(IMAGES, windows)
    on_a_gpu = by_kernel(on_cpu, there, size, interpolation)
    on_a_cpu = crop_resize(there, size, interpolation, CPU).numpy().astype(int)
    for made in (on_a_gpu, on_a_cpu):
        assert np.abs(made - expected).max() <= 1
    assert (on_a_gpu != on_a_cpu).mean() < 0.01  # of what lies between two levels


def weights_by_hand(length, size, interpolation):
    """Of `size` pixels the first of each, and the weights of those from there on (size, even)."""
    scale = length / size
    support = {"bilinear": 1, "bicubic": 2}[interpolation] * max(scale, 1.0)
    first, weights = [], []
    for x in range(size):
        centre = scale * (x + 0.5)
        begin, end = max(int(centre - support + 0.5), 0), min(int(centre + support + 0.5), length)
        far = [abs((i - centre + 0.5) / max(scale, 1.0)) for i in range(begin, end)]
        if interpolation == "bilinear":
            tent = [max(1 - d, 0) for d in far]
        else:
            tent = [(1.5 * d - 2.5) * d * d + 1 if d < 1 else ((-0.5 * d + 2.5) * d - 4) * d + 2 for d in far]
            tent = [0.0 if d >= 2 else weight for d, weight in zip(far, tent)]
        first.append(begin)
        total = np.cumsum(tent)[-1]  # one after the other, as Python's `sum` is not from 3.12 on
        weights.append([weight / total for weight in tent])
    even = -(-math.ceil(2 * support) // 2) * 2
    return first, np.array([(row + [0.0] * even)[:even] for row in weights], np.float32)


def by_numpy(window, shape, interpolation):
    """In single precision, product by product and pair by pair, so that it must agree to the bit."""
    for axis, size in enumerate(shape):
        first, weights = weights_by_hand(window.shape[axis], size, interpolation)
        moved = np.moveaxis(window, axis, 0).astype(np.float32)
        moved = np.concatenate([moved, np.zeros((weights.shape[1], *moved.shape[1:]), np.float32)])
        made = []
        for begin, of_one in zip(first, weights):
            parts = [weight * moved[begin + t] for t, weight in enumerate(of_one)]
            pairs = [near + far for near, far in zip(parts[::2], parts[1::2])]
            total = pairs[0]
            for pair in pairs[1:]:
                total = total + pair
            made.append(total)
        window = np.moveaxis(np.stack(made), 0, axis)
    return np.clip(window + np.float32(0.5), 0, 255).astype(np.uint8)


def test_the_cpus_loops_are_exact():
    random = np.random.default_rng(3)
    # First called within the loop that colours, which may be inexact: numba once made these inexact then as well.
    plain = Decisions([False], [False], [[1, 1, 1, 0]], [[0, 1, 2, 3]], [False], [0], [False])
    colour_views(np.zeros((1, 8, 8, 3), np.uint8), plain, (0, 0, 0), (1, 1, 1), np.empty((1, 8, 8, 3), np.float32))
    windows = [(1, 1), (2, 7), (40, 33), (90, 200), (31, 31), (224, 150), (16, 5), (30, 20), (9, 8)]
    shapes = [(5, 5), (31, 31), (33, 40), (24, 96), (31, 31), (224, 224), (3, 64), (64, 3), (1, 1)]
    for (height, width), shape in zip(windows, shapes):
        window = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for interpolation in FILTERS:
            made = np.empty((1, *shape, 3), np.uint8)
            whole = np.array([[0, 0, width, height]], np.int32)
            crop_resize_into(made, in_memory([window], whole), interpolation)
            np.testing.assert_array_equal(made[0], by_numpy(window, shape, interpolation), f"{shape} {interpolation}")


BESIDE_NOTHING = """
import ctypes, mmap
import numpy as np
from objcrop.kernels.crop_resize import Windows
from objcrop.kernels.crop_resize_cpu import crop_resize_into
page, libc = mmap.PAGESIZE, ctypes.CDLL(None, use_errno=True)
room = mmap.mmap(-1, 8 * page)
begin = ctypes.addressof(ctypes.c_char.from_buffer(room))
for closed in (0, 7):
    assert not libc.mprotect(ctypes.c_void_p(begin + closed * page), ctypes.c_size_t(page), 0)
for width, height, size in ((1, 1, 9), (2, 3, 31), (61, 100, 224), (100, 61, 7), (7, 300, 33), (89, 91, 90)):
    held = 3 * width * height
    for corner, right, down in (
        (begin + page, 3, 3 * width),
        (begin + 7 * page - held, 3, 3 * width),
        (begin + 7 * page - 3, -3, -3 * width),
        (begin + 7 * page - held, 3 * height, 3),
    ):
        window = Windows(np.array([corner]), np.array([[right, down]]), np.array([[width, height]]))
        for interpolation in ("bilinear", "bicubic"):
            crop_resize_into(np.empty((1, size, size, 3), np.uint8), window, interpolation)
"""


def test_nothing_beside_a_window_is_read():
    """Where the memory ends with the window: in a process of its own, which would be killed."""
    run = subprocess.run([sys.executable, "-c", BESIDE_NOTHING], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "processor", [{}, {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}], ids=["this", "plain"]
)
def test_who_compiles_them_makes_the_same_to_the_bit(processor, tmp_path):
    """On a processor without wide registers too."""
    own = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", "loops_are_exact"]
    environment = {**os.environ, "NUMBA_CACHE_DIR": str(tmp_path), **processor}
    run = subprocess.run(own, env=environment, capture_output=True, text=True)
    assert run.returncode == 0 and "1 passed" in run.stdout, run.stdout


@pytest.mark.parametrize("interpolation", FILTERS)
def test_a_view_is_its_window_alone(interpolation, on_cpu):
    """Neither what lies around it, nor how its image is turned, nor its place in the batch: to the bit."""
    windows = INNER.copy()
    upright = [image[y0:y1, x0:x1].copy() for image, (x0, y0, x1, y1) in zip(IMAGES, windows.tolist())]
    alone = in_memory(upright, np.array([[0, 0, *image.shape[1::-1]] for image in upright], np.int32))
    ways = {"kernel": lambda windows, size: by_kernel(on_cpu, windows, size, interpolation)}
    ways["loops"] = lambda windows, size: crop_resize(windows, size, interpolation, CPU).numpy()
    for name, way in ways.items():
        for size in (3, 40):
            expected = way(alone, size)
            assert np.array_equal(way(in_memory(IMAGES, windows), size), expected)
            for orientation in range(1, 9):
                # The eight turns of the dihedral group: the one that takes an image back is its own but for 6 and 8.
                back = {6: 8, 8: 6}.get(orientation, orientation)
                stored = [np.ascontiguousarray(upright_array(image, back)) for image in IMAGES]
                turns = np.full(len(IMAGES), orientation, np.int8)
                sizes = np.array([image.shape[1::-1] for image in IMAGES], np.int32)
                there = in_memory(stored, stored_windows(windows[:, None], sizes, turns)[:, 0], turns)
                for i, image in enumerate(upright):
                    assert np.array_equal(pixels_of(there, i), image)
                assert np.array_equal(way(there, size), expected), (name, size, orientation)


@pytest.mark.parametrize("interpolation", FILTERS)
def test_windows_many_times_the_view_are_summed_in_parts(interpolation, on_cpu):
    image = rng.integers(0, 256, (70, 400, 3), dtype=np.uint8)
    windows = np.array([[3, 0, 400, 70], [0, 5, 1, 70]], np.int32)
    for size in (1, 3):
        expected = np.stack(
            [
                np.asarray(Image.fromarray(image[y0:y1, x0:x1]).resize((size, size), PIL_FILTERS[interpolation]))
                for x0, y0, x1, y1 in windows
            ]
        )
        found = by_kernel(on_cpu, in_memory([image, image], windows), size, interpolation)
        assert np.abs(found - expected.astype(int)).max() <= 2


@pytest.mark.parametrize("order", range(4))
def test_no_thread_order_matters(order, on_cpu):
    there = in_memory(IMAGES, INNER)
    first = by_kernel(on_cpu, there, 41, "bilinear")
    assert np.array_equal(by_kernel(on_cpu, there, 41, "bilinear", order), first)


@given(data=st.data(), size=st.integers(1, 40))
@settings(max_examples=60)
def test_any_window(data, size, on_cpu):
    which = data.draw(st.integers(0, len(IMAGES) - 1))
    width, height = SIZES[which]
    x0, y0 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x1, y1 = data.draw(st.integers(x0 + 1, width)), data.draw(st.integers(y0 + 1, height))
    window = np.array([[x0, y0, x1, y1]], np.int32)
    ours = by_kernel(on_cpu, in_memory([IMAGES[which]], window), size, "bilinear")
    assert np.abs(ours - by_pil(window, size, "bilinear", [which])).max() <= 1


def test_tiles_are_those_of_the_source():
    source = (nvrtc.FOLDER / "crop_resize.cu").read_text()
    columns, lines, each = map(int, re.search(r"COLUMNS = (\d+), LINES = (\d+), EACH = (\d+)", source).groups())
    assert (columns, lines * each) == TILE and (columns, lines) == BLOCK


@pytest.mark.gpu
@pytest.mark.parametrize("interpolation", FILTERS)
def test_the_kernel_on_the_gpu(interpolation, on_cpu):
    there = in_memory(IMAGES, INNER)
    expected = by_kernel(on_cpu, there, 96, interpolation)
    by_loops = crop_resize(there, 96, interpolation, CPU).numpy().astype(int)
    gpu = torch.device("cuda", torch.cuda.current_device())
    images = [torch.from_numpy(image).to(gpu) for image in IMAGES]
    addresses = np.array([image.data_ptr() for image in images])
    windows = windows_at(addresses, INNER[:, None], np.array([width for width, _ in SIZES], np.int32))
    there = Windows(*(torch.from_numpy(part[0]).to(gpu) for part in windows))
    made = crop_resize(there, 96, interpolation, gpu).cpu().numpy().astype(int)
    for others in (expected, by_loops):
        assert np.abs(made - others).max() <= 1  # fused multiply-adds may round the other way
