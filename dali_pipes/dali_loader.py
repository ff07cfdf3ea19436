"""The DALI loader: the product on a GPU, and several times the torch loader's speed on a CPU.

A producer thread reads the files, runs the graph of decode_crop_resize, finishes the views (CPU: one compiled loop for
a few views a thread, beside the next batch; GPU: two kernels a view) and keeps `prefetch` batches ready. What is no
plain image goes PIL's way before DALI sees it: a lossless copy of what PIL reads, a substitute for what it does not. A
batch in which it stumbles all the same is looked at file by file, and the graph is rebuilt at the same batch.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from objcrop.child_process import in_a_line
from objcrop.dali_pipes.bad_images import BadImages, without_bad
from objcrop.dali_pipes.decode_crop_resize import (
    decode_graph,
    feed_of,
    orientations_of,
    refused_alone,
    trouble_of,
    union_of,
    windows_in,
    with_views,
)
from objcrop.dali_pipes.photo import Photo, scales_of
from objcrop.dali_pipes.read_image import BadImage, Encoded, open_upright, read_encoded, views_or_encoded
from objcrop.dali_pipes.reused_memory import ReusedMemory
from objcrop.dali_pipes.to_device import to_device
from objcrop.dali_pipes.torch_loader import assemble
from objcrop.dali_pipes.view_boxes import ViewBoxes
from objcrop.dali_pipes.view_loader import Position, ViewLoader
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner
from objcrop.dali_pipes.views import Views
from objcrop.errors import ObjcropError
from objcrop.kernels.colour_decisions import Decisions
from objcrop.kernels.crop_resize import Windows, crop_resize

AT_ONCE = 4  # samples that a thread of a CPU finishes at once, beside which Python runs: fewer calls, yet even shares
CHANCE = 8  # images that DALI refuses one and all: that is no chance
# Of the batch's tensors those that come with the views.
BESIDE_VIEWS = ("index", "requested", "labels", "substituted")


class DaliLoader(ViewLoader):
    """Fills the contract with NVIDIA DALI; arguments as in `load_views`."""

    def __init__(
        self,
        planner: ViewPlanner,
        bad_images: BadImages,
        *,
        threads: int,
        prefetch: int,
        device: str,
        dtype: torch.dtype,
        decode: str | None = None,
        decode_scaled: bool = False,
        hw_decoder_load: float = 0.0,
        decoder_padding: int = 16,
        **contract: Any,
    ) -> None:
        super().__init__(planner, bad_images, device=device, **contract)
        self.threads, self.prefetch, self.dtype = threads, prefetch, dtype
        # A GPU's way: a batch is resized and coloured at once. On a CPU each view for itself is faster.
        self.batchwise = self.device.type == "cuda"
        # Whole on a GPU: decoding a part through nvImageCodec 0.9 is reported to end the process (nvImageCodec#55).
        self.decode = decode or ("whole" if self.batchwise else "union")
        self.decode_scaled = decode_scaled
        self.hw_decoder_load, self.decoder_padding = hw_decoder_load, decoder_padding
        # Rows whose files look plain and are refused by DALI all the same: PIL makes a copy of them.
        self._by_pil: set[int] = set()
        # What kernels in the side stream still read, each with the event behind them.
        self._read_later: deque[tuple[Any, Any]] = deque()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="objcrop-view")
        self._readers = ThreadPoolExecutor(threads, thread_name_prefix="objcrop-read")  # do not queue behind views
        self._producer: threading.Thread | None = None

    @cached_property
    def _memory(self) -> ReusedMemory:
        """For views on a CPU: beside what is ready one is made, one handed on, and the consumer holds one or two."""
        return ReusedMemory(kept=len(self.planner.sizes) * (self._room + 4))

    @property
    def _room(self) -> int:
        """How many batches lie ready: `prefetch`, of which on a CPU one is in the making while another is handed on."""
        return self.prefetch if self.batchwise else max(self.prefetch - 1, 1)

    @cached_property
    def _files(self) -> ReusedMemory:
        """For the bytes of files: a batch is read, and DALI holds `prefetch` + 2."""
        from objcrop.dali_pipes.read_files import file_memory  # numba takes a second to come

        return file_memory(self.batch_size // self.world_size, self.threads, self.prefetch + 3)

    def close(self) -> None:
        """Stop the producer, which lets go of its memory, and the pools."""
        super().close()
        self._pool.shutdown()
        self._readers.shutdown()

    def _stream(self, start: Position) -> Iterator[Views]:
        """Run `_produce` in a thread; whatever it raises is raised here."""
        ready: queue.Queue[tuple[Views, Any] | BaseException] = queue.Queue(maxsize=self._room)
        stopped = threading.Event()

        def wanted() -> bool:
            return threading.main_thread().is_alive() and not stopped.is_set()

        def put(item: tuple[Views, Any] | BaseException) -> None:
            while wanted():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        def produce() -> None:
            try:
                if self.device.type == "cuda":  # a new thread's GPU is 0
                    torch.cuda.set_device(self.device)
                for views in self._produce(start):
                    put((views, self._mark()))
                    if not wanted():
                        break
            except BaseException as error:
                put(error)
            while self._read_later:
                self._read_later[0][0].synchronize()
                self._read_later.popleft()

        # No daemon: one that is inside DALI as Python ends takes the whole process down. Python waits for this one.
        self._producer = threading.Thread(target=produce, name="objcrop-producer")
        self._producer.start()
        try:
            while True:
                item = ready.get()
                if isinstance(item, BaseException):
                    raise item
                views, made = item
                if made is not None:
                    self._hand_over(views, made)
                yield views
        finally:
            stopped.set()  # and no more: the collector may close this in a thread that the producer waits for

    def _ended(self) -> None:
        if self._producer is not None:
            self._producer.join()

    def _produce(self, start: Position) -> Iterator[Views]:
        """Yield batches from a position on; on a CPU one is finished while the next is read, and any failure waits."""
        with closing(self._decoded(start)) as decoded:
            if self.batchwise:
                yield from (finish() for finish in decoded)
                return
            with ThreadPoolExecutor(1, thread_name_prefix="objcrop-finish") as beside:
                yield beside.submit(next(decoded)).result()  # the first at once: somebody waits
                making: Future[Views] | None = None
                while True:
                    try:
                        finish = next(decoded)
                    except Exception:
                        if making is not None:
                            yield making.result()
                        raise
                    before, making = making, beside.submit(finish)
                    if before is not None:
                        yield before.result()
                    del before, finish  # and so the batch and its images

    def _decoded(self, start: Position) -> Generator[Callable[[], Views], None, None]:
        """Yield what finishes each batch from a position on, rebuilding the graph whenever one held a bad file."""
        while True:
            run = _GraphRun(self, start)
            try:
                while True:
                    try:
                        fed, decoded = run.next_batch()
                    except RuntimeError as error:
                        fed, said = run.oldest(), str(error)  # the error itself would hold the graph
                        break
                    windows = windows_in(decoded, fed.windows, orientations_of(fed.images))
                    yield partial(self._finished, fed.plan, fed.asked, with_views(windows, fed.images), decoded)
            finally:
                run.close()
            self._rescue(fed, said)
            start = fed.position

    def _planned_ahead(self, start: Position) -> Generator[tuple[Position, ViewPlan], None, None]:
        """Yield positions and plans as asked for, so early that images which lie far away are there in time."""

        def rows_of(batch: tuple[Position, ViewPlan]) -> list[int]:
            position, asked = batch  # a row known to be bad is asked for by nobody
            return without_bad(asked, self.planner, position[0], self.bad_images.reasons).row.tolist()

        yield from self.catalog.image_bytes.ahead_of(self.plans_from(start), rows_of)

    # ---- files

    def _read(self, position: Position, asked: ViewPlan) -> tuple[ViewPlan, list[Encoded]]:
        """Return the plan of a batch as it is shown, and its images; bad ones are replaced on the way."""
        plan = without_bad(asked, self.planner, position[0], self.bad_images.reasons)
        images: dict[int, Encoded] = {}
        wanted = np.arange(len(plan))
        while True:
            rows = plan.row[wanted].tolist()
            for i, row, image in zip(wanted.tolist(), rows, self._images(rows, plan.windows[wanted])):
                if isinstance(image, BadImage):
                    self.bad_images.add(row, str(image))
                else:
                    images[i] = image
            before, plan = plan, without_bad(asked, self.planner, position[0], self.bad_images.reasons)
            wanted = np.flatnonzero(plan.sample != before.sample)
            if not wanted.size:
                return plan, [images[i] for i in range(len(plan))]

    def _images(self, rows: list[int], windows: NDArray[np.int32]) -> list[Encoded | BadImage]:
        """Return images as DALI is given them, or why one is bad; windows: int32 (N, V, 4) of their views."""
        unions, read = union_of(windows), (self._by_pil, self._readers, self.threads, self._files)
        if not self.decode_scaled:
            return read_encoded(self.catalog, rows, unions, *read)
        scales = scales_of(windows, self.planner.sizes)

        def one(i: int) -> Encoded | BadImage:
            views_of, row = partial(self._views_of, windows[i].tolist()), rows[i]
            return views_or_encoded(self.catalog, row, int(scales[i]), views_of, unions[i], row in self._by_pil)

        coming = {i: self._readers.submit(one, i) for i in np.flatnonzero(scales > 1).tolist()}
        small = np.flatnonzero(scales == 1)
        found = iter(read_encoded(self.catalog, [rows[i] for i in small], unions[small], *read))
        return [coming[i].result() if i in coming else next(found) for i in range(len(rows))]

    def _views_of(self, windows: list[list[int]], photo: Photo) -> tuple[NDArray[np.uint8], ...]:
        wanted = zip(windows, self.planner.sizes, self.planner.augment)
        return tuple(np.asarray(photo.view(window, side, how.interpolation)) for window, side, how in wanted)

    def _rescue(self, failed: _Fed, said: str) -> None:
        """Find out which images of a failed batch are at fault: PIL says what is bad, and copies what DALI refuses.

        Raises:
            ObjcropError: none is, it is the memory or the GPU, or this way of decoding is.
        """
        if trouble := trouble_of(said, len(failed.images)):
            raise trouble
        refused = sorted({int(failed.plan.row[i]) for i in refused_alone(failed.feed, **self.decoding)})
        readable = 0
        for row in refused:
            try:
                open_upright(self.catalog, row)
                readable += 1
            except BadImage as reason:
                self.bad_images.add(row, str(reason))
        said = in_a_line(RuntimeError(said))
        if readable == len(set(failed.plan.row.tolist())) >= CHANCE:
            raise ObjcropError(
                f"DALI decodes none of the {readable} images of a batch, which PIL reads, so that it is the way and no "
                f"file: take decode='whole' and hw_decoder_load=0 where you gave another, or backend='torch'; "
                f"it said: {said}"
            )
        copied = {row for row in refused if row not in self.bad_images.reasons} - self._by_pil
        if not copied and readable == len(refused):
            if refused:
                raise ObjcropError(
                    f"DALI decodes neither {self.catalog.path(refused[0])} nor PIL's copy of it, so that its image "
                    f"decoders are not whole: install nvidia-nvimgcodec anew, or take backend='torch'; it said: {said}"
                )
            raise ObjcropError(
                f"DALI failed on a batch whose images it decodes one by one: take a smaller batch_size, or "
                f"backend='torch'; it said: {said}"
            )
        self._by_pil |= copied

    # ---- pixels

    def _finished(self, plan: ViewPlan, asked: ViewPlan, windows: Windows, images: Any) -> Views:
        """Return the batch whose views are these windows (V, N) of images, which are held until they are read."""
        batch = assemble(self.planner, plan, asked, [])
        return self._finish_batch(batch, windows, images) if self.batchwise else self._finish_cpu(batch, windows)

    def _finish_cpu(self, batch: Views, windows: Windows) -> Views:
        """Resize and colour views on the pool's threads, a few at once; each goes to its own place in the batch."""
        sizes, own = self.planner.sizes, self.planner.transform is not None
        out = [self._memory.empty((len(batch), size, size, 3), np.uint8 if own else np.float32) for size in sizes]

        def some(part: slice) -> None:
            for v in range(len(sizes)):
                of_part = Windows(*(each[v, part] for each in windows))
                self._make_views(out[v][part].numpy(), v, of_part, None if own else batch.plan.decisions(part, v))

        share = min(-(-len(batch) // self.threads), AT_ONCE)
        for _ in self._pool.map(some, (slice(at, at + share) for at in range(0, len(batch), share))):
            pass
        views = tuple(o.permute(0, 3, 1, 2).to(o.dtype if own else self.dtype) for o in out)
        return self._transformed(replace(batch, views=views))

    def _make_views(self, out: NDArray[Any], v: int, windows: Windows, decisions: Decisions | None) -> None:
        """Resize windows into views, uint8, or, where something is decided of their colours, finish them, float32."""
        from objcrop.kernels.colour_cpu import crop_colour_into  # numba takes a second to come
        from objcrop.kernels.crop_resize_cpu import crop_resize_into

        augment = self.planner.augment[v]
        if decisions is None:
            crop_resize_into(out, windows, augment.interpolation)
        else:
            crop_colour_into(out, windows, augment.interpolation, decisions, augment.mean, augment.std)

    def _finish_batch(self, batch: Views, windows: Windows, images: Any) -> Views:
        """Resize and colour the views in the side stream, as the images are there; the host waits for nothing."""
        plan = batch.plan
        arrays = {name: getattr(plan, name).swapaxes(0, 1) for name in Decisions._fields} | windows._asdict()
        arrays |= {name: getattr(batch, name).numpy() for name in BESIDE_VIEWS}
        arrays |= {f"boxes {v} {k}": t.numpy() for v, b in enumerate(batch.boxes) for k, t in enumerate(b.tensors())}
        with torch.cuda.stream(self.side_stream):
            there = to_device(arrays, self.device)
            views = []
            for v, augment in enumerate(self.planner.augment):
                of_view = Windows(*(there[name][v] for name in Windows._fields))
                pixels = crop_resize(of_view, self.planner.sizes[v], augment.interpolation, self.device)
                if self.planner.transform is not None:
                    views.append(pixels.permute(0, 3, 1, 2))
                else:
                    decisions = Decisions(*(there[name][v] for name in Decisions._fields))
                    views.append(self._colour_batch(v, pixels, decisions))
            made = self._transformed(replace(batch, views=tuple(views)))
        # DALI takes its memory back when nobody holds it: that must not be before the kernels have read it.
        while self._read_later and self._read_later[0][0].query():
            self._read_later.popleft()
        read = self._mark()
        if read is not None:
            self._read_later.append((read, images))
        beside: dict[str, Any] = {name: there[name] for name in BESIDE_VIEWS}
        beside["boxes"] = tuple(
            ViewBoxes(*(there[f"boxes {v} {k}"] for k in range(4))) for v in range(len(batch.boxes))
        )
        return replace(made, **beside)

    def _colour_batch(self, v: int, pixels: torch.Tensor, decisions: Decisions) -> torch.Tensor:
        """Colour a batch of one view, uint8 (N, S, S, 3), in the current stream."""
        from objcrop.kernels.colour import colour

        augment = self.planner.augment[v]
        return colour(pixels, decisions, augment.mean, augment.std, self.dtype)

    @property
    def decoding(self) -> dict[str, Any]:
        """How `decode_graph` decodes."""
        return {
            **{"device": self.device.type, "device_id": self.device.index, "decode": self.decode},
            **{"hw_decoder_load": self.hw_decoder_load, "decoder_padding": self.decoder_padding},
        }

    @cached_property
    def side_stream(self) -> torch.cuda.Stream | None:
        """The stream in which views are made; None on a CPU."""
        return torch.cuda.Stream(self.device) if self.device.type == "cuda" else None

    def _mark(self) -> torch.cuda.Event | None:
        """Return an event behind all that is in the side stream so far; None on a CPU."""
        return self.side_stream.record_event() if self.side_stream is not None else None

    def _hand_over(self, views: Views, made: torch.cuda.Event) -> None:
        """Order the consumer's stream after the views' making, and tell the allocator who reads them."""
        current = torch.cuda.current_stream(self.device)
        current.wait_event(made)
        for tensor in views.tensors():
            tensor.record_stream(current)


class _Fed(NamedTuple):
    """A batch that was fed to the graph: the plan asked for and as shown, the images, and what `feed_of` made of it."""

    position: Position
    asked: ViewPlan
    plan: ViewPlan
    images: list[Encoded]
    feed: list[Any]
    windows: NDArray[np.int32]


class _GraphRun:
    """One life of the graph: from a position to the first batch that fails."""

    def __init__(self, loader: DaliLoader, start: Position) -> None:
        self.loader = loader
        self._planned = loader._planned_ahead(start)
        self._in_flight: deque[_Fed] = deque()
        self._planning_error: BaseException | None = None
        self.pipe: Any = decode_graph(
            self._feed,
            batch_size=-(-loader.batch_size // loader.world_size),
            threads=loader.threads,
            prefetch=loader.prefetch,
            **loader.decoding,
        )

    def _feed(self) -> list[Any]:
        """DALI asks for the next batch, several ahead of the one it hands out."""
        try:
            position, asked = next(self._planned)
            plan, images = self.loader._read(position, asked)
        except BaseException as error:
            self._planning_error = error
            raise
        feed, windows = feed_of(images, plan.windows, self.loader.catalog.sizes_of(plan.row), self.loader.decode)
        self._in_flight.append(_Fed(position, asked, plan, images, feed, windows))
        return feed

    def next_batch(self) -> tuple[_Fed, Any]:
        """Return what was fed, and the graph's output for it."""
        try:
            (decoded,) = self.pipe.run(self.loader.side_stream)
        except RuntimeError:
            if self._planning_error is not None:
                raise self._planning_error from None
            raise
        return self._in_flight.popleft(), decoded

    def close(self) -> None:
        """Let go of the graph and its memory, which would wait for the garbage collector: it knows who feeds it."""
        self.pipe = None
        self._planned.close()

    def oldest(self) -> _Fed:
        """Return the batch that failed: the oldest that was fed and not handed out."""
        return self._in_flight[0]
