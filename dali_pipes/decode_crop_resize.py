"""The DALI graph: encoded images and windows in, pixels out.

Python reads the bytes, so that DALI sees none that its parsers could stumble over (`plain_image`), and no name. All is
in the stored frame, which no decoder turns: windows come mapped into it, and who takes the pixels turns them upright.
Decoding stops at the union of an image's windows, which makes it 1.4 to 1.9 times cheaper than decoding the whole. For
a GPU the resize is in the graph; for a CPU the union is handed out, because torch resizes uint8 several times faster
than DALI's CPU operator.
"""

from __future__ import annotations

import os
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from objcrop.catalog import Catalog
from objcrop.dali_pipes.read_image import NOTHING, BadImage, Encoded, read_encoded
from objcrop.errors import ObjcropError
from objcrop.exif import stored_windows

Feed = Callable[[], tuple[list[NDArray[np.uint8]], NDArray[np.int32]]]


def feed_of(
    images: Sequence[Encoded], windows: NDArray[np.int32], sizes: NDArray[np.int32]
) -> tuple[list[NDArray[np.uint8]], NDArray[np.int32]]:
    """Return what the graph takes for a batch.

    Args:
        images: N encoded images.
        windows: int32 (N, V, 4) in pixels of the upright images.
        sizes: int32 (N, 2) upright width and height.

    Returns:
        The images' bytes, and the windows in pixels of what they hold, in the stored frame, int32 (N, 4 V).
    """
    stored = stored_windows(windows, sizes, orientations_of(images))
    stored = stored - np.tile(np.array([image.corner for image in images], np.int32), 2)[:, None]
    return [image.data for image in images], np.ascontiguousarray(stored.reshape(len(images), -1))


def orientations_of(images: Sequence[Encoded]) -> NDArray[np.int8]:
    """Return how each image's pixels are turned upright once they are decoded, int8 (N,)."""
    return np.array([image.orientation for image in images], np.int8)


def union_of(windows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the smallest window that holds all views' windows: (N, V, 4) to (N, 4)."""
    return np.concatenate([windows[:, :, :2].min(axis=1), windows[:, :, 2:].max(axis=1)], axis=1)


def decode_graph(
    feed: Feed,
    *,
    batch_size: int,
    threads: int,
    prefetch: int,
    device: str = "cpu",
    device_id: int | None = None,
    interpolation: tuple[str, ...] = (),
    size: int = 0,
    decode: str = "union",
    hw_decoder_load: float = 0.0,
    decoder_padding: int = 16,
) -> Any:
    """Build the pipeline.

    Args:
        feed: called once a batch, returns `feed_of(...)`, of one window for each `interpolation`, or of one for none.
        batch_size: the most samples in a batch.
        threads: DALI's worker threads.
        prefetch: batches kept ready inside DALI.
        device: "cpu" or "cuda".
        device_id: which GPU; None on a CPU.
        interpolation: "bilinear" or "bicubic" a view; none gives out the window as it was decoded.
        size: side of the views.
        decode: "union" of the windows, or the "whole" image.
        hw_decoder_load: share of the JPEGs that the GPU's own decoder takes, where it has one; "cuda" only. Above 0 it
            is reported to write while earlier work of its stream still reads there, on an H100 (torchvision#9606).
        decoder_padding: MiB of the GPU's memory that each thread sets aside to decode in, and two halves of it in
            page-locked memory; "cuda" only.

    Returns:
        A built `nvidia.dali.Pipeline`. Its outputs: each view (uint8 S, S, 3, RGB), or without interpolation the window
        or whole image (uint8 HWC); in the stored frame.
    """
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali import math as dmath

    on_gpu = device == "cuda"
    filters = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}

    def low(window: Any) -> Any:
        return fn.stack(window[1], window[0])

    def high(window: Any) -> Any:
        return fn.stack(window[3], window[2])

    def as_float(corner: Any) -> Any:
        return fn.cast(corner, dtype=types.FLOAT)

    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
    )
    def graph() -> Any:
        how: dict[str, Any] = {"device": "mixed" if on_gpu else "cpu", "adjust_orientation": False}
        if on_gpu:  # upsampled as libjpeg does it, so that pixels stay close to the CPU's
            how |= {"jpeg_fancy_upsampling": True, "hw_decoder_load": hw_decoder_load}
            how |= {"device_memory_padding": decoder_padding << 20, "host_memory_padding": decoder_padding << 19}
        if decode == "whole" and not interpolation:
            encoded = fn.external_source(source=lambda: feed()[0], batch=True, dtype=types.UINT8, ndim=1)
            return fn.decoders.image(encoded, **how)
        encoded, windows = fn.external_source(
            source=feed, num_outputs=2, batch=True, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
        )
        union = windows[0:4] if interpolation else windows
        for v in range(1, len(interpolation)):
            other = windows[4 * v : 4 * v + 4]
            union = fn.cat(dmath.min(union[0:2], other[0:2]), dmath.max(union[2:4], other[2:4]))
        if decode == "whole":
            image = fn.decoders.image(encoded, **how)
        else:
            image = fn.decoders.image_slice(encoded, start=low(union), end=high(union), axes=[0, 1], **how)

        def in_image(corner: Any) -> Any:
            return as_float(corner if decode == "whole" else corner - low(union))

        if not interpolation:
            return image
        views = [
            fn.resize(
                image,
                size=[size, size],
                roi_start=in_image(low(windows[4 * v : 4 * v + 4])),
                roi_end=in_image(high(windows[4 * v : 4 * v + 4])),
                interp_type=filters[filter_name],
                antialias=True,
            )
            for v, filter_name in enumerate(interpolation)
        ]
        return tuple(views)

    pipe = graph()
    pipe.build()
    _built.add(pipe)
    return pipe


# A forked child (a DataLoader's worker) inherits the parent's pipelines without their threads, and would wait for them
# for ever when its garbage collector destroys one; so it keeps them all until it ends. They are held from before the
# fork on: the collector may run in the child's very first lines.
_built: weakref.WeakSet[Any] = weakref.WeakSet()
_held: list[Any] = []
_inherited: list[Any] = []
os.register_at_fork(
    before=lambda: _held.extend(_built),
    after_in_parent=_held.clear,
    after_in_child=lambda: _inherited.extend(_held),
)


class Part(NamedTuple):
    """Images of a part of a catalog, decoded whole.

    outputs: the graph's, in the stored frame, None where DALI stumbled; orientations int8 (N,): what turns each one
    upright; reasons: why an image has no pixels (its place holds a black one), "" where it has.
    """

    outputs: tuple[Any, ...] | None
    orientations: NDArray[np.int8]
    reasons: list[str]


def decode_whole(catalog: Catalog, parts: Sequence[range], *, threads: int, **graph: Any) -> Iterator[Part]:
    """Decode whole images, part by part.

    Args:
        catalog: the images.
        parts: rows of each part.
        threads: DALI's, and as many that read.
        **graph: prefetch, device, device_id, interpolation, size of `decode_graph`.

    Yields:
        Each part. Where DALI stumbled over a file, PIL can say which and why.
    """
    done = 0
    with ThreadPoolExecutor(threads, thread_name_prefix="objcrop-read") as pool:
        while done < len(parts):
            left = parts[done:]
            reading = _PartReader(catalog, iter(left), pool, threads)
            pipe = decode_graph(reading.next, batch_size=max(map(len, left)), threads=threads, **graph)
            for _ in left:
                try:
                    outputs = pipe.run()
                except RuntimeError:  # the graph does not go on from here, so another one will
                    outputs = None
                if reading.failed is not None:
                    raise reading.failed from None
                images, reasons = reading.fed.popleft()
                done += 1
                yield Part(outputs, orientations_of(images), reasons)
                if outputs is None:
                    break


class _PartReader:
    """Reads whole images for a graph, part after part, and keeps what it was fed until it hands out the pixels."""

    def __init__(self, catalog: Catalog, parts: Iterator[range], pool: ThreadPoolExecutor, threads: int) -> None:
        self.catalog, self.parts, self.pool, self.threads = catalog, parts, pool, threads
        self.fed: deque[tuple[list[Encoded], list[str]]] = deque()
        self.failed: ObjcropError | None = None  # DALI makes errors of its own of what is raised in a feed

    def next(self) -> tuple[list[NDArray[np.uint8]], NDArray[np.int32]]:
        rows = next(self.parts)
        try:
            found = read_encoded(self.catalog, rows, None, (), self.pool, self.threads)
        except ObjcropError as error:
            self.failed = error
            raise
        images = [NOTHING if isinstance(image, BadImage) else image for image in found]
        reasons = [str(image) if isinstance(image, BadImage) else "" for image in found]
        self.fed.append((images, reasons))
        sizes = np.where(np.array([bool(reason) for reason in reasons])[:, None], 1, self.catalog.sizes[list(rows)])
        return feed_of(images, np.concatenate([np.zeros_like(sizes), sizes], axis=1)[:, None], sizes)


def decodable(image: Encoded) -> bool:
    """Whether DALI decodes this image on the CPU; asked only of images in a batch that failed."""
    pixel = np.array([[[0, 0, 1, 1]]], np.int32)
    upright = Encoded(image.data, 1)
    pipe = decode_graph(lambda: feed_of([upright], pixel, pixel[0, :, 2:]), batch_size=1, threads=1, prefetch=1)
    try:
        pipe.run()
    except RuntimeError:
        return False
    return True
