"""Claim: an H200 crops and resizes 512 views in under 0.5 ms, colours them in under 0.3, and anchors take under 1.

    objcrop bench kernels -o bench/results/h200_kernels.json

Windows of 300×225 pixels, two of each photo of 500×375, become views of 224. Colour finishes uint8 views as bfloat16,
by decisions that the planner drew from moco-v2, and is put beside a copy that reads and writes as many bytes. Anchors
are 256 score maps of 20×15 cells with 12 shapes, suppressed to 5 boxes. BING scores batches of 32 canvases. Each but
the first is measured with the kernels and with torch alone, the calls queued one after another: CUDA events around
each, after a warm-up, medians with the smallest and largest. What the host takes to launch counts where the device
waits for it. `--device cpu` times the torch fallbacks at tiny sizes, which says nothing about speed, only that the
bench runs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any
from unittest import mock

import numpy as np
import torch

from objcrop.dali_pipes.augment import augment_recipe
from objcrop.dali_pipes.view_plan import colour_decisions
from objcrop.errors import UsageError, one_of
from objcrop.kernels import nvrtc
from objcrop.kernels.anchor_score import anchor_shapes, normalise_maps, score_anchors
from objcrop.kernels.bing import bing, load_bing
from objcrop.kernels.colour import colour
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.crop_resize import Windows, crop_resize
from objcrop.kernels.nms import nms_topk
from objcrop.proposals.bing import WEIGHTS

Call = Callable[[], object]
WARM_UP = 5  # calls


@dataclass(frozen=True)
class Sizes:
    """How much is measured.

    Attributes:
        views: of a batch.
        view_size: side of the views, pixels.
        maps: score maps of a batch.
        canvases: of a batch for BING.
    """

    views: int = 512
    view_size: int = 224
    maps: int = 256
    canvases: int = 32


SIZES = {"cuda": Sizes(), "cpu": Sizes(views=4, view_size=32, maps=2, canvases=1)}


def bench_kernels(device: str = "cuda", *, repeats: int = 50) -> dict[str, Any]:
    """Measure every kernel.

    Args:
        device: "cuda", or "cpu" for the torch fallbacks at tiny sizes.
        repeats: measurements of each.

    Returns:
        `kernels`: for each name the median, smallest and largest milliseconds, and images (views, maps) per second.
        With a GPU also `copy_gb_per_s` and `share_of_copy_bandwidth`, colour's.

    Raises:
        UsageError: there is no CUDA device, or the name is neither of the two.
    """
    if one_of(device, SIZES, "--device") == "cuda" and not torch.cuda.is_available():
        raise UsageError("bench kernels needs a CUDA device, and torch finds none; --device cpu runs it in miniature.")
    sizes = SIZES[device]
    calls: dict[str, tuple[Call, int]] = {
        "crop and resize": (_crop_resize_call(sizes, device), sizes.views),
        "colour": (_colour_call(sizes, device), sizes.views),
        "anchors": (_anchors_call(sizes, device), sizes.maps),
        "bing": (_bing_call(sizes, device), sizes.canvases),
    }
    rows: dict[str, dict[str, Any]] = {}
    result: dict[str, Any] = {
        "what": "GPU kernels, milliseconds a call",
        "device": device,
        "sizes": asdict(sizes),
        "kernels": rows,
    }
    with_kernels = device == "cuda" and nvrtc.available()
    for name, (call, images) in calls.items():
        if with_kernels and name != "bing":  # which is torch throughout
            rows[f"{name}, kernel"] = _row(call, images, device, repeats)
        if name == "crop and resize" and device == "cuda":  # which is the kernel alone there
            continue
        with mock.patch.object(nvrtc, "available", lambda: False):
            rows[f"{name}, torch"] = _row(call, images, device, repeats)
    moved = sizes.views * sizes.view_size**2 * 3 * (1 + 2)  # uint8 in, bfloat16 out
    rows["copy of colour's bytes"] = _row(_copy_call(moved, device), sizes.views, device, repeats)
    result["verdict"] = [f"Sizes: {', '.join(f'{k} {v}' for k, v in asdict(sizes).items())}; device {device}."]
    if with_kernels:
        cropped, coloured, anchors = (
            rows[f"{name}, kernel"]["ms"] for name in ("crop and resize", "colour", "anchors")
        )
        copy = rows["copy of colour's bytes"]["ms"]
        result["copy_gb_per_s"] = round(moved / copy / 1e6, 1)
        result["share_of_copy_bandwidth"] = round(copy / coloured, 3)
        result["verdict"] += [
            f"Crop and resize: {cropped:.3f} ms (goal 0.5).",
            f"Colour: {coloured:.3f} ms (goal 0.3), {copy / coloured:.0%} of the copy bandwidth.",
            f"Anchors: {anchors:.3f} ms (goal 1).",
        ]
    return result


def _crop_resize_call(sizes: Sizes, device: str) -> Call:
    """Return the cropping of two windows of each of many photos of noise."""
    width, height, (w, h) = 500, 375, (300, 225)
    count = sizes.views // 2
    photos = torch.randint(256, (count, height, width, 3), dtype=torch.uint8, device=device)
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, width - w, (2, count)), rng.integers(0, height - h, (2, count))
    corners = photos.data_ptr() + 3 * (np.arange(count) * width * height + y * width + x)
    arrays = corners.reshape(-1), np.full((sizes.views, 2), (3, 3 * width)), np.full((sizes.views, 2), (w, h))
    kinds = (np.int64, np.int32, np.int32)
    windows = Windows(*(torch.from_numpy(array.astype(kind)).to(device) for array, kind in zip(arrays, kinds)))

    def call() -> object:
        return crop_resize(windows, sizes.view_size, "bilinear", photos.device)

    return call


def _colour_call(sizes: Sizes, device: str) -> Call:
    """Return the colouring of noise by decisions of moco-v2: nothing in it depends on what the views show."""
    (augment,) = augment_recipe("moco-v2", 1)
    drawn = colour_decisions(np.arange(sizes.views), (augment,), seed=0, epoch=0)
    of_view = {name: torch.from_numpy(np.ascontiguousarray(array[:, 0])).to(device) for name, array in drawn.items()}
    decisions = Decisions(**of_view)
    views = torch.randint(256, (sizes.views, sizes.view_size, sizes.view_size, 3), dtype=torch.uint8, device=device)
    return lambda: colour(views, decisions, augment.mean, augment.std, torch.bfloat16)


def _anchors_call(sizes: Sizes, device: str) -> Call:
    """Return the way from score maps to 5 boxes an image; images of two shapes, as in photos."""
    maps = normalise_maps(torch.rand(sizes.maps, 15, 20, device=device))
    image_sizes = torch.tensor([(640, 480), (480, 640)], dtype=torch.int32, device=device).repeat(sizes.maps // 2, 1)
    shapes = anchor_shapes()

    def call() -> object:
        boxes, scores = score_anchors(maps, image_sizes, shapes)
        return nms_topk(scores, boxes, 5, 0.5)

    return call


def _bing_call(sizes: Sizes, device: str) -> Call:
    model = load_bing(WEIGHTS).to(device)
    canvases = torch.randint(256, (sizes.canvases, 3, model.canvas, model.canvas), device=device).float()
    return lambda: bing(canvases, model)


def _copy_call(moved: int, device: str) -> Call:
    """Return a copy that reads and writes so many bytes together."""
    source = torch.zeros(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


def _row(call: Call, images: int, device: str, repeats: int) -> dict[str, Any]:
    for _ in range(WARM_UP):
        call()
    milliseconds = (_on_cuda if device == "cuda" else _on_cpu)(call, repeats)
    median = statistics.median(milliseconds)
    return {
        "ms": round(median, 4),
        "ms_min": round(min(milliseconds), 4),
        "ms_max": round(max(milliseconds), 4),
        "images_per_s": round(1000 * images / median, 1),
        "repeats": repeats,
    }


def _on_cuda(call: Call, repeats: int) -> list[float]:
    """Return each call's milliseconds on the device, which is waited for once, at the end."""
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [begin.elapsed_time(end) for begin, end in events]


def _on_cpu(call: Call, repeats: int) -> list[float]:
    taken = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        taken.append(1000 * (time.perf_counter() - began))
    return taken
