"""The decoded cache: images decoded once and kept as pixels, so that later epochs neither read nor decode.

For sets that fit into the memory of the device or of the host. Views are those of the loader without a cache, unless
the images are kept smaller (`cache_side`). Each process holds a copy of its own, since an epoch deals any image to any
of them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from objcrop.catalog import Catalog
from objcrop.dali_pipes.bad_images import without_bad
from objcrop.dali_pipes.dali_loader import DaliLoader
from objcrop.dali_pipes.decode_crop_resize import Part, decode_whole, union_of, windows_at
from objcrop.dali_pipes.read_image import BadImage, open_upright, upright_pixels
from objcrop.dali_pipes.view_loader import Position
from objcrop.dali_pipes.view_plan import ViewPlan
from objcrop.dali_pipes.views import Views
from objcrop.errors import ObjcropError, UsageError
from objcrop.kernels.crop_resize import Windows, resize_uint8
from objcrop.progress import tracked

ROWS = 64  # decoded at a time
SPARE = 2 << 30  # bytes to leave free beside the cache


class CachedLoader(DaliLoader):
    """A `DaliLoader` that decodes all images when the first batch is asked for, and none after.

    Args:
        *arguments: as `DaliLoader`.
        cache: "host", or "device" for the GPU's memory.
        cache_side: images whose shorter side is longer are kept at this one, pixels; None keeps them as they are.
        **more: as `DaliLoader`.

    Raises:
        UsageError: "device" without a GPU, or a side below the views'.
        ObjcropError: the decoded images do not fit.
    """

    def __init__(self, *arguments: Any, cache: str, cache_side: int | None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        if cache == "device" and self.device.type == "cpu":
            raise UsageError("cache='device' needs device='cuda'; on a CPU take cache='host'.")
        largest = max(self.planner.sizes)
        if cache_side is not None and cache_side < largest:
            raise UsageError(f"cache_side is {cache_side}, but views of {largest} px need at least as much.")
        self.cache = cache
        self.kept = kept_sizes(self.catalog, cache_side)
        self.begins = np.concatenate([[0], np.cumsum(3 * self.kept.astype(np.int64).prod(1))])
        self._held: list[torch.Tensor] = []  # all images in one tensor, once decoded; every maker has the same list
        refuse_if_too_large(int(self.begins[-1]), self.place, cache_side)

    @property
    def place(self) -> torch.device:
        """Where the images are kept."""
        return self.device if self.cache == "device" else torch.device("cpu")

    def close(self) -> None:
        """Stop the producer and free the images."""
        super().close()
        self._held.clear()

    def _decoded(self, start: Position) -> Generator[Callable[[], Views], None, None]:
        """Yield what finishes each batch from a position on."""
        if not self._held:
            try:
                self._decode()
            except BaseException:
                self._held.clear()  # some are missing
                raise
        for (epoch, _), asked in self.plans_from(start):
            plan = without_bad(asked, self.planner, epoch, self.bad_images.reasons)
            windows, pixels = self._windows(plan)
            yield partial(self._finished, plan, asked, windows, pixels)

    def image(self, row: int) -> torch.Tensor:
        """Return an image as it is kept, uint8 (h, w, 3), a view of the cache."""
        width, height = self.kept[row].tolist()
        return self._held[0][self.begins[row] : self.begins[row + 1]].view(height, width, 3)

    def _decode(self) -> None:
        """Decode all images into one tensor; those that cannot be read are noted as bad, their place stays empty."""
        total = int(self.begins[-1])
        where = "the GPU's memory" if self.place.type == "cuda" else "memory"
        logging.getLogger("objcrop").warning(
            "Decoding %d images into %.1f GB of %s, once.", len(self.catalog), total / 1e9, where
        )
        self._held.append(torch.empty(total, dtype=torch.uint8, device=self.place))
        parts = [range(at, min(at + ROWS, len(self.catalog))) for at in range(0, len(self.catalog), ROWS)]
        graph: dict[str, Any] = {"threads": self.threads, "prefetch": self.prefetch}
        graph |= {"device": self.place.type, "device_id": self.place.index}
        decoded: Iterator[tuple[range, Part]] = zip(parts, decode_whole(self.catalog, parts, **graph))
        if self.rank == 0:
            decoded = tracked(decoded, len(self.catalog), "decoding", size=lambda pair: len(pair[0]))
        for rows, part in decoded:
            if part.decoded is None:
                self._read_with_pil(rows)
            else:
                self._keep_part(rows, part)
            self._wait()

    def _keep_part(self, rows: range, part: Part) -> None:
        for row, pixels, orientation, reason in zip(rows, part.decoded, part.orientations, part.reasons):
            if reason:
                self.bad_images.add(row, reason)
            else:
                self._keep(row, upright_pixels(torch.from_dlpack(pixels), int(orientation)))

    def _wait(self) -> None:
        """Wait for what fills the cache: DALI takes its memory back, and the side stream knows of no other stream."""
        if self.place.type == "cuda":
            torch.cuda.current_stream(self.place).synchronize()

    def _keep(self, row: int, pixels: torch.Tensor) -> None:
        kept = self.image(row)
        height, width, _ = kept.shape
        kept.copy_(pixels if pixels.shape == kept.shape else resize_uint8(pixels, (height, width), "bilinear"))

    def _read_with_pil(self, rows: range) -> None:
        for row in rows:
            try:
                image = open_upright(self.catalog, row)
            except BadImage as error:
                self.bad_images.add(row, str(error))
                continue
            self._keep(row, torch.from_numpy(np.array(image)).to(self.place))

    def _kept_windows(self, plan: ViewPlan) -> NDArray[np.int32]:
        """Return the plan's windows in pixels of the images as they are kept, int32 (N, V, 4)."""
        kept, whole = (np.tile(sizes[plan.row], (1, 2))[:, None] for sizes in (self.kept, self.catalog.sizes))
        if (kept == whole).all():
            return plan.windows
        windows = np.rint(plan.windows * (kept / whole)).astype(np.int32)
        windows[..., :2] = np.minimum(windows[..., :2], kept[..., :2] - 1)
        windows[..., 2:] = np.maximum(windows[..., 2:], windows[..., :2] + 1)
        return windows

    def _windows(self, plan: ViewPlan) -> tuple[Windows, torch.Tensor]:
        """Return the views' windows and the pixels they lie in: for a GPU those of the host's cache are copied."""
        windows, begins, widths = self._kept_windows(plan), self.begins[plan.row], self.kept[plan.row, 0]
        pixels = self._held[0]
        if self.batchwise and self.cache == "host":
            unions = union_of(windows)
            packed, begins, widths = pack(pixels.numpy(), begins, widths, unions, self._pool, self.threads)
            with torch.cuda.stream(self.side_stream):
                pixels = packed.to(self.device, non_blocking=True)
            windows = windows - np.tile(unions[:, None, :2], 2)
        return windows_at(pixels.data_ptr() + begins, windows, widths), pixels


def kept_sizes(catalog: Catalog, side: int | None) -> NDArray[np.int32]:
    """Return width and height of the images as they are kept, int32 (N, 2): the shorter side at most `side`."""
    if side is None:
        return catalog.sizes
    share = np.minimum(side / catalog.sizes.min(axis=1, keepdims=True), 1.0)
    return np.maximum(np.rint(catalog.sizes * share), 1).astype(np.int32)


def pack(
    pixels: NDArray[np.uint8],
    begins: NDArray[np.int64],
    widths: NDArray[np.int32],
    cuts: NDArray[np.int32],
    pool: ThreadPoolExecutor,
    threads: int,
) -> tuple[torch.Tensor, NDArray[np.int64], NDArray[np.int32]]:
    """Copy a part of each image, one behind the other, into page-locked memory where there is a GPU.

    Args:
        pixels: uint8 (bytes,), RGB images.
        begins: (N,), where each image begins.
        widths: (N,) of the images.
        cuts: (N, 4) x0, y0, x1, y1.
        pool: where the copying runs: one thread's does not fill the memory's width.
        threads: parts that it is cut into.

    Returns:
        The bytes, where each part begins (N,), and its width (N,).
    """
    across, down = (cuts[:, 2:] - cuts[:, :2]).T
    ends = np.cumsum(3 * across.astype(np.int64) * down)
    packed = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=torch.cuda.is_available())
    there = packed.numpy()

    def copy(part: slice) -> None:
        facts = zip(ends[part].tolist(), begins[part].tolist(), widths[part].tolist(), cuts[part].tolist())
        for end, begin, width, (x0, y0, x1, y1) in facts:
            lines = pixels[begin + 3 * width * y0 : begin + 3 * width * y1].reshape(y1 - y0, 3 * width)
            size = 3 * (x1 - x0) * (y1 - y0)
            there[end - size : end].reshape(y1 - y0, -1)[...] = lines[:, 3 * x0 : 3 * x1]

    share = -(-len(cuts) // threads)
    for _ in pool.map(copy, [slice(at, at + share) for at in range(0, len(cuts), share)]):
        pass
    return packed, np.concatenate([[0], ends[:-1]]), across


def refuse_if_too_large(needed: int, place: torch.device, side: int | None) -> None:
    """Raise an `ObjcropError` where `needed` bytes, in every process of this machine, leave too little memory."""
    if place.type == "cuda":
        free, processes, where = torch.cuda.mem_get_info(place)[0], 1, "GPU"
    else:
        free, processes, where = available_memory(), int(os.environ.get("LOCAL_WORLD_SIZE", 1)), "machine"
    if needed * processes > free - SPARE:
        each = f" for each of {processes} processes" if processes > 1 else ""
        smaller = "a smaller" if side is not None else "a"
        raise ObjcropError(
            f"the decoded images take {needed / 1e9:.1f} GB{each}, but the {where} has {free / 1e9:.1f} GB free, of "
            f"which 2 stay so: leave the cache out, or give {smaller} cache_side."
        )


def available_memory() -> int:
    """Return the bytes of memory that are free or can be freed on this machine."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            facts = dict(line.split(":") for line in file)
        return int(facts["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux: what there is in all
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
