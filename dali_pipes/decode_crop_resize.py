"""The DALI graph: encoded images in, pixels out, and where in them the windows lie that become views.

Python reads the bytes, so that DALI sees none that its parsers could stumble over (`plain_image`), and no name. NumPy
works out where decoding begins and ends, since an operator of DALI's costs as much for two numbers as for an image: the
graph is bytes, decoder, out. All is in the stored frame, which no decoder turns: windows come mapped into it, and who
takes the pixels walks them upright. For a CPU, decoding stops at the union of an image's windows, which makes it 1.4 to
1.9 times cheaper than decoding the whole; its pixels are those of the whole, to the bit, up to its edges. Cropping and
resizing are ours (`kernels/crop_resize`), on a CPU several times faster than DALI's and on both strictly inside the
window, so that a view does not depend on what else was decoded.
"""

from __future__ import annotations

import os
import re
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from objcrop.catalog import Catalog
from objcrop.dali_pipes.read_image import NOTHING, BadImage, Encoded, read_encoded
from objcrop.dali_pipes.reused_memory import ReusedMemory
from objcrop.errors import ObjcropError
from objcrop.exif import stored_windows, upright_walk
from objcrop.kernels.crop_resize import Windows
from objcrop.launcher import cores_here

Feed = Callable[[], list[Any]]  # called once a batch, returns the first of `feed_of`


# Each thread sets decoder_padding aside on the GPU and as much page-locked memory: on a machine of 224 cores 3.5 GiB of
# each. A thread is good for some 240 photos of 640 px a second (DALI's own gate), 24 for three ResNet-50s.
MOST_ON_GPU = 24


def default_threads(device: str, *, beside_training: bool = False) -> int:
    """Return how many threads decode for a device, "cpu" or "cuda".

    Args:
        device: whose memory the pixels are for.
        beside_training: a training step for a GPU is hundreds of kernels that Python begins in time, or the GPU waits;
            with decoders on all cores it did (by a third on 16 cores and an H200, on 6 by a twentieth). So half are
            left to it.
    """
    if device == "cpu":
        return cores_here()
    return min(max(cores_here() // 2, 1) if beside_training else cores_here(), MOST_ON_GPU)


def feed_of(
    images: Sequence[Encoded], windows: NDArray[np.int32], sizes: NDArray[np.int32], decode: str
) -> tuple[list[Any], NDArray[np.int32]]:
    """Return what the graph takes for a batch, and where its windows lie in what it decodes.

    Args:
        images: N encoded images.
        windows: int32 (N, V, 4) in pixels of the upright images.
        sizes: int32 (N, 2) upright width and height.
        decode: "union" of an image's windows, or the "whole" image.

    Returns:
        The images' bytes, and for "union" where it begins and ends (y, x), two int32 (N, 2); and the windows in pixels
        of what is decoded, in the stored frame, int32 (N, V, 4).
    """
    held = stored_windows(windows, sizes, orientations_of(images))
    held = held - np.tile(np.array([image.corner for image in images], np.int32), 2)[:, None]
    held[[bool(image.views) for image in images]] = (0, 0, 1, 1)  # of a photo whose views are made: see `with_views`
    encoded = [image.data for image in images]
    if decode == "whole":
        return [encoded], held
    union = union_of(held)
    begin, end = np.ascontiguousarray(union[:, 1::-1]), np.ascontiguousarray(union[:, :1:-1])
    return [encoded, begin, end], held - np.tile(union[:, :2], 2)[:, None]


def orientations_of(images: Sequence[Encoded]) -> NDArray[np.int8]:
    """Return how each image's pixels are turned upright once they are decoded, int8 (N,)."""
    return np.array([image.orientation for image in images], np.int8)


def union_of(windows: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return the smallest window that holds all views' windows: (N, V, 4) to (N, 4)."""
    return np.concatenate([windows[:, :, :2].min(axis=1), windows[:, :, 2:].max(axis=1)], axis=1)


def windows_in(decoded: Any, windows: NDArray[np.int32], orientations: NDArray[np.int8]) -> Windows:
    """Return windows as they are walked upright in the memory of decoded images.

    Args:
        decoded: the graph's output, N images; it must be held for as long as the windows are read.
        windows: int32 (N, V, 4) in its pixels, as `feed_of` returns them.
        orientations: int8 (N,), what turns each one upright.

    Returns:
        Arrays (V, N) or (V, N, 2): a view's are contiguous.

    Raises:
        ObjcropError: an image is smaller than its header said.
    """
    shapes = np.array(decoded.shape(), np.int32)  # all shapes at once, but each address for itself: 0.15 ms for 256
    addresses = np.array([decoded[i].data_ptr() for i in range(len(decoded))], np.int64)
    if (windows[..., 2:] > shapes[:, None, 1::-1]).any() or (windows[..., :2] < 0).any():
        raise ObjcropError("DALI decoded an image to another size than its header says; take backend='torch'.")
    return windows_at(addresses, windows, shapes[:, 1], orientations)


def with_views(windows: Windows, images: Sequence[Encoded]) -> Windows:
    """Let windows of photos whose views are made already (`Encoded.views`) be those, each the whole of it."""
    for i, image in enumerate(images):
        for v, view in enumerate(image.views):
            side = len(view)
            windows.corners[v, i], windows.steps[v, i], windows.sizes[v, i] = view.ctypes.data, (3, 3 * side), side
    return windows


def windows_at(
    addresses: NDArray[np.int64],
    windows: NDArray[np.int32],
    widths: NDArray[np.int32],
    orientations: NDArray[np.int8] | None = None,
) -> Windows:
    """Return windows int32 (N, V, 4) of RGB images at addresses (N,), of widths (N,) pixels; see `windows_in`."""
    upright = np.ones(len(windows), np.int8)
    walk = upright_walk(windows, widths, upright if orientations is None else orientations)
    corners = addresses[:, None] + 3 * walk.first
    return Windows(*(np.ascontiguousarray(part.swapaxes(0, 1)) for part in (corners, 3 * walk.steps, walk.sizes)))


def fed(feed: Feed, decode: str) -> list[Any]:
    """Return the graph's inputs: `feed_of`'s bytes, and for "union" where it begins and ends."""
    from nvidia.dali import fn, types

    kinds = [types.UINT8] if decode == "whole" else [types.UINT8, types.INT32, types.INT32]
    dims = [1] * len(kinds)
    return list(
        fn.external_source(source=feed, num_outputs=len(kinds), batch=True, dtype=kinds, ndim=dims, no_copy=True)
    )


def _held_by_us(feed: Feed, batches: int) -> Feed:
    """Keep the last batches of a feed, whose arrays DALI reads where they lie.

    Copied, as is DALI's default, 256 photos cost 10 ms of a thread that lets no other run Python: the training loop's.
    """
    held: deque[list[Any]] = deque(maxlen=batches)

    def next_batch() -> list[Any]:
        held.append(feed())
        return held[-1]

    return next_batch


def decode_graph(
    feed: Feed,
    *,
    batch_size: int,
    threads: int,
    prefetch: int,
    device: str = "cpu",
    device_id: int | None = None,
    decode: str = "union",
    hw_decoder_load: float = 0.0,
    decoder_padding: int = 16,
) -> Any:
    """Build the pipeline.

    Args:
        feed: called once a batch, returns what `feed_of` gives for `decode`.
        batch_size: the most samples in a batch.
        threads: DALI's worker threads.
        prefetch: batches kept ready inside DALI.
        device: "cpu" or "cuda".
        device_id: which GPU; None on a CPU.
        decode: "union" of the windows, or the "whole" image.
        hw_decoder_load: share of the JPEGs that the GPU's own decoder takes, where it has one; "cuda" only. Above 0 it
            is reported to write while earlier work of its stream still reads there, on an H100 (torchvision#9606).
        decoder_padding: MiB of the GPU's memory that each thread sets aside to decode in, and two halves of it in
            page-locked memory; "cuda" only.

    Returns:
        A built `nvidia.dali.Pipeline`. Its output: what was decoded of each image (uint8 HWC, RGB), in the stored
        frame.
    """
    from nvidia.dali import fn, pipeline_def

    @pipeline_def(
        batch_size=batch_size,
        num_threads=threads,
        device_id=device_id,
        prefetch_queue_depth=prefetch,
    )
    def graph() -> Any:
        how: dict[str, Any] = {"device": "mixed" if device == "cuda" else "cpu", "adjust_orientation": False}
        if device == "cuda":  # upsampled as libjpeg does it, so that pixels stay close to the CPU's
            how |= {"jpeg_fancy_upsampling": True, "hw_decoder_load": hw_decoder_load}
            how |= {"device_memory_padding": decoder_padding << 20, "host_memory_padding": decoder_padding << 19}
        encoded, *part = fed(_held_by_us(feed, prefetch + 2), decode)
        if decode == "whole":
            return fn.decoders.image(encoded, **how)
        return fn.decoders.image_slice(encoded, start=part[0], end=part[1], axes=[0, 1], **how)

    pipe = graph()
    try:
        pipe.build()
    except RuntimeError as error:
        raise trouble_of(str(error), batch_size) or error from None
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

    decoded: the graph's output, in the stored frame, None where DALI stumbled; orientations int8 (N,): what turns each
    one upright; reasons: why an image has no pixels (its place holds a black one), "" where it has.
    """

    decoded: Any
    orientations: NDArray[np.int8]
    reasons: list[str]


def decode_whole(catalog: Catalog, parts: Sequence[range], *, threads: int, **graph: Any) -> Iterator[Part]:
    """Decode whole images, part by part.

    Args:
        catalog: the images.
        parts: rows of each part.
        threads: DALI's, and as many that read.
        **graph: prefetch, device, device_id of `decode_graph`.

    Yields:
        Each part. Where DALI stumbled over a file, PIL can say which and why.
    """
    from objcrop.dali_pipes.read_files import file_memory  # numba takes a second to come

    done = 0
    memory = file_memory(max(map(len, parts), default=0), threads, graph["prefetch"] + 3)
    with ThreadPoolExecutor(threads, thread_name_prefix="objcrop-read") as pool:
        while done < len(parts):
            left = parts[done:]
            reading = _PartReader(catalog, catalog.image_bytes.ahead_of(left, list), pool, threads, memory)
            pipe = None  # another one's memory is free before this one takes its own
            size = max(map(len, left))
            pipe = decode_graph(reading.next, batch_size=size, threads=threads, decode="whole", **graph)
            for _ in left:
                try:
                    (decoded,) = pipe.run()
                except RuntimeError as error:  # the graph does not go on from here, so another one will
                    if trouble := trouble_of(str(error), size):
                        raise trouble from None
                    decoded = None
                if reading.failed is not None:
                    raise reading.failed from None
                images, reasons = reading.fed.popleft()
                done += 1
                yield Part(decoded, orientations_of(images), reasons)
                if decoded is None:
                    break


class _PartReader:
    """Reads whole images for a graph, part after part, and keeps what it was fed until it hands out the pixels."""

    def __init__(
        self,
        catalog: Catalog,
        parts: Iterator[range],
        pool: ThreadPoolExecutor,
        threads: int,
        memory: ReusedMemory,
    ) -> None:
        self.catalog, self.parts, self.pool, self.threads, self.memory = catalog, parts, pool, threads, memory
        self.fed: deque[tuple[list[Encoded], list[str]]] = deque()
        self.failed: ObjcropError | None = None  # DALI makes errors of its own of what is raised in a feed

    def next(self) -> list[Any]:
        rows = next(self.parts)
        try:
            found = read_encoded(self.catalog, rows, None, (), self.pool, self.threads, self.memory)
        except ObjcropError as error:
            self.failed = error
            raise
        images = [NOTHING if isinstance(image, BadImage) else image for image in found]
        reasons = [str(image) if isinstance(image, BadImage) else "" for image in found]
        self.fed.append((images, reasons))
        return [[image.data for image in images]]


def decodable(image: Encoded) -> bool:
    """Whether DALI decodes this image on the CPU."""
    return not refused_alone([[image.data]], decode="whole")


def refused_alone(feed: list[Any], **graph: Any) -> list[int]:
    """Return which images of a batch DALI does not decode, each alone, for then no parser's failure can meet another.

    Args:
        feed: the batch, as `feed_of` returns it.
        **graph: device, device_id and what else decides how `decode_graph` decodes.

    Raises:
        ObjcropError: it fails for want of memory, or the GPU does.
    """
    refused: list[int] = []
    count, done = len(feed[0]), 0
    while done < count:
        pipe = None  # before another one takes its memory
        pipe = decode_graph(_one_by_one(feed, done), batch_size=1, threads=1, prefetch=1, **graph)
        for i in range(done, count):
            done = i + 1
            try:
                pipe.run()
            except RuntimeError as error:
                if trouble := trouble_of(str(error), 1):
                    raise trouble from None
                refused.append(i)
                break
    return refused


def _one_by_one(feed: list[Any], begin: int) -> Feed:
    coming = iter(range(begin, len(feed[0])))

    def next_image() -> list[Any]:
        i = next(coming)
        return [part[i : i + 1] for part in feed]

    return next_image


def trouble_of(said: str, batch_size: int) -> ObjcropError | None:
    """Return the error to raise where what DALI said is about memory or the GPU itself, which is no file's fault."""
    if re.search(r"out of memory|bad_alloc|MemoryAllocation|can't allocate|allocation failed", said, re.IGNORECASE):
        return ObjcropError(
            f"the memory is full, of the GPU or of page-locked memory, while DALI decodes {batch_size} images at once; "
            "take a smaller batch_size, decoder_padding or prefetch, or fewer threads, or end what else runs there."
        )
    if found := re.search(r"[^\n]*(cudaError|CUDA_ERROR|CUDA (runtime|driver) API error)[^\n]*", said):
        return ObjcropError(
            f"the GPU failed while DALI decoded ({' '.join(found[0].split())}), which is no file's fault; take "
            "decode='whole' and hw_decoder_load=0 where you gave another, or backend='torch'."
        )
    return None
