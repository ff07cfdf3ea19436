"""The DALI loader: the product on a GPU, and several times the torch loader's speed on a CPU.

A producer thread runs the graph of decode_crop_resize, finishes the views (CPU: torch's uint8 resize and the fused
colour loop, one view a thread; GPU: colour on the device) and keeps `prefetch` batches ready. A batch in which DALI
stumbles is looked at file by file with PIL: what PIL cannot read is substituted, what only PIL can read is handed to
DALI as a lossless copy, and the graph is rebuilt at the same batch.
"""

from __future__ import annotations

import queue
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from objcrop.dali_pipes.bad_images import BadImages, open_upright, without_bad
from objcrop.dali_pipes.decode_crop_resize import decodable, decode_graph, feed_of, union_of
from objcrop.dali_pipes.torch_loader import assemble
from objcrop.dali_pipes.view_loader import Position, ViewLoader
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner
from objcrop.dali_pipes.views import Views
from objcrop.errors import ObjcropError
from objcrop.kernels.crop_resize import resize_uint8


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
        decode: str = "union",
        hw_decoder_load: float = 0.65,
        decoder_padding: int = 16,
        **contract: Any,
    ) -> None:
        super().__init__(planner, bad_images, device=device, **contract)
        self.threads, self.prefetch, self.dtype = threads, prefetch, dtype
        self.decode, self.hw_decoder_load, self.decoder_padding = decode, hw_decoder_load, decoder_padding
        # A GPU's way: the graph resizes, and a batch is coloured at once. On a CPU each view for itself is faster.
        self.batchwise = self.device.type == "cuda"
        # Files that only PIL reads: row to the lossless copy that DALI gets instead.
        self._copies: dict[int, str] = {}
        self._copies_folder: str | None = None
        # What kernels in the side stream still read, each with the event behind them.
        self._read_later: deque[tuple[Any, Any]] = deque()
        if self.device.type == "cpu":
            self._pool: ThreadPoolExecutor | None = ThreadPoolExecutor(threads, thread_name_prefix="objcrop-view")
        else:
            self._pool = None

    def close(self) -> None:
        """Stop the producer and the pool, remove the lossless copies."""
        super().close()
        if self._pool is not None:
            self._pool.shutdown()
        if self._copies_folder is not None:
            shutil.rmtree(self._copies_folder, ignore_errors=True)
            self._copies, self._copies_folder = {}, None

    def _stream(self, start: Position) -> Iterator[Views]:
        """Run `_produce` in a thread; whatever it raises is raised here."""
        ready: queue.Queue[tuple[Views, Any] | BaseException] = queue.Queue(maxsize=self.prefetch)
        stopped = threading.Event()

        def put(item: tuple[Views, Any] | BaseException) -> None:
            while not stopped.is_set():
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
                    if stopped.is_set():
                        return
            except BaseException as error:
                put(error)

        producer = threading.Thread(target=produce, name="objcrop-producer", daemon=True)
        producer.start()
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
            stopped.set()
            producer.join()

    def _produce(self, start: Position) -> Iterator[Views]:
        """Yield batches from a position on, rebuilding the graph whenever a batch held a bad file."""
        while True:
            run = _GraphRun(self, start)
            while True:
                try:
                    asked, plan, decoded = run.next_batch()
                except ObjcropError:
                    raise
                except RuntimeError as error:
                    start = run.oldest()
                    self._rescue(self._planned(start)[1], str(error))
                    break
                changed = self._changed(plan, np.asarray(decoded[0].as_tensor()))
                if changed.size:
                    for i in changed:
                        self._reject(int(plan.row[i]))
                    start = run.position
                    break
                if self.batchwise:
                    views = self._finish_batch(plan, decoded[1:])
                else:
                    corners = union_of(plan.windows)[:, None, :2]
                    unions = [torch.from_dlpack(union) for union in decoded[1]]
                    views = self._finish_cpu(plan, unions, plan.windows - np.tile(corners, 2))
                yield self._assembled(plan, asked, views)

    def _planned(self, position: Position) -> tuple[ViewPlan, ViewPlan]:
        """Return a batch's plan as asked for, and with the rows known to be bad replaced."""
        asked = self.batches.plan(position)
        return asked, without_bad(asked, self.planner, position[0], self.bad_images.reasons)

    def _path(self, row: int) -> str:
        return self._copies.get(row) or self.catalog.path(row)

    # ---- bad files

    def _changed(self, plan: ViewPlan, shapes: np.ndarray) -> np.ndarray:
        """Return the positions whose file has another size than the catalog says; shapes: (N, 3) height first."""
        return np.flatnonzero((shapes[:, 1::-1] != self.catalog.sizes[plan.row]).any(axis=1))

    def _reject(self, row: int) -> bool:
        """Note a row as bad if PIL agrees; return whether it did."""
        try:
            open_upright(self.catalog.path(row), tuple(self.catalog.sizes[row]))
        except ObjcropError as error:
            self.bad_images.add(row, str(error))
            return True
        self._copy(row)  # PIL and DALI disagree about its size: PIL rules
        return False

    def _rescue(self, plan: ViewPlan, error: str) -> None:
        """Find out which files of a failed batch are at fault, and what to do with each."""
        rows = [int(row) for row in np.unique(plan.row)]
        at_fault = [row for row in rows if self._reject_unreadable(row)]
        at_fault += [row for row in rows if row not in self.bad_images.reasons and self._copy_if_refused(row)]
        if not at_fault:
            raise ObjcropError(f"DALI failed on a batch whose files are all readable; it said: {error.strip()}")

    def _reject_unreadable(self, row: int) -> bool:
        try:
            open_upright(self.catalog.path(row), tuple(self.catalog.sizes[row]))
        except ObjcropError as error:
            self.bad_images.add(row, str(error))
            return True
        return False

    def _copy_if_refused(self, row: int) -> bool:
        if row in self._copies or decodable(self.catalog.path(row)):
            return False
        self._copy(row)
        return True

    def _copy(self, row: int) -> None:
        """Hand DALI an upright, lossless copy of a file that only PIL reads as it should."""
        if self._copies_folder is None:
            self._copies_folder = tempfile.mkdtemp(prefix="objcrop-")
        image = open_upright(self.catalog.path(row), tuple(self.catalog.sizes[row]))
        path = Path(self._copies_folder) / f"{row}.png"
        image.save(path, compress_level=1)
        self._copies[row] = str(path)

    # ---- pixels

    def _finish_cpu(
        self, plan: ViewPlan, images: Sequence[torch.Tensor], windows: NDArray[np.int32]
    ) -> list[torch.Tensor]:
        """Resize and colour each view on the pool's threads; every view goes to its own place in the batch.

        Args:
            plan: the colour decisions.
            images: uint8 (h, w, 3), N of them: whole or cut.
            windows: (N, V, 4) in their pixels.
        """
        size, augment = self.planner.size, self.planner.augment
        out = [torch.empty(len(plan), size, size, 3) for _ in augment]

        def one_sample(i: int) -> None:
            for v in range(len(augment)):
                x0, y0, x1, y1 = windows[i, v]
                view = resize_uint8(images[i][y0:y1, x0:x1], (size, size), augment[v].interpolation)
                self._colour(view, plan, i, v, out[v][i])

        assert self._pool is not None
        for _ in self._pool.map(one_sample, range(len(plan))):
            pass
        return [o.permute(0, 3, 1, 2).to(self.dtype) for o in out]

    def _colour(self, view: torch.Tensor, plan: ViewPlan, i: int, v: int, out: torch.Tensor) -> None:
        from objcrop.kernels.colour_cpu import colour_one

        augment = self.planner.augment[v]
        colour_one(
            view.numpy(),
            plan.flip[i, v],
            plan.jitter[i, v],
            plan.factors[i, v],
            plan.order[i, v],
            plan.grey[i, v],
            plan.sigma[i, v],
            plan.solarise[i, v],
            augment.mean,
            augment.std,
            out.numpy(),
        )

    def _finish_batch(self, plan: ViewPlan, decoded: tuple[Any, ...]) -> list[torch.Tensor]:
        """Colour the resized views, which DALI hands out in the side stream's order; the host waits for nothing."""
        with torch.cuda.stream(self.side_stream):
            views = self._colour_batch(plan, [torch.from_dlpack(each.as_tensor()) for each in decoded])
        # DALI takes its memory back when nobody holds it: that must not be before the kernels have read it.
        while self._read_later and self._read_later[0][0].query():
            self._read_later.popleft()
        read = self._mark()
        if read is not None:
            self._read_later.append((read, decoded))
        return views

    def _colour_batch(self, plan: ViewPlan, resized: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Colour views uint8 (N, S, S, 3), one tensor a view, in the current stream."""
        from objcrop.kernels.colour import colour

        views = []
        for v, (pixels, augment) in enumerate(zip(resized, self.planner.augment)):
            names = ("flip", "jitter", "factors", "order", "grey", "sigma", "solarise")
            decisions = {name: self.to_device(getattr(plan, name)[:, v]) for name in names}
            views.append(colour(pixels, **decisions, mean=augment.mean, std=augment.std, dtype=self.dtype))
        return views

    def _assembled(self, plan: ViewPlan, asked: ViewPlan, views: list[torch.Tensor]) -> Views:
        """Return the batch, what comes with the views copied to the device in the side stream."""
        with torch.cuda.stream(self.side_stream):
            return assemble(self.planner, plan, asked, views).map(self.to_device)

    def to_device(self, array: np.ndarray | torch.Tensor) -> torch.Tensor:
        """Return the array on the device, copied in the current stream where it is not there."""
        tensor = array if isinstance(array, torch.Tensor) else torch.from_numpy(np.ascontiguousarray(array))
        if self.device.type == "cpu" or tensor.is_cuda:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

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


class _GraphRun:
    """One life of the graph: from a position to the first batch that fails."""

    def __init__(self, loader: DaliLoader, start: Position) -> None:
        self.loader = loader
        self.position = start
        self._positions = loader._positions(start)
        self._in_flight: deque[tuple[Position, ViewPlan, ViewPlan]] = deque()
        self._planning_error: BaseException | None = None
        augments = loader.planner.augment if loader.batchwise else ()
        self.pipe = decode_graph(
            self._feed,
            batch_size=-(-loader.batch_size // loader.world_size),
            threads=loader.threads,
            prefetch=loader.prefetch,
            device=loader.device.type,
            device_id=loader.device.index,
            interpolation=tuple(augment.interpolation for augment in augments),
            size=loader.planner.size,
            decode=loader.decode if loader.batchwise else "union",
            hw_decoder_load=loader.hw_decoder_load,
            decoder_padding=loader.decoder_padding,
        )

    def _feed(self) -> tuple[list[np.ndarray], np.ndarray]:
        """DALI asks for the next batch, several ahead of the one it hands out."""
        position = next(self._positions)
        try:
            asked, plan = self.loader._planned(position)
        except BaseException as error:
            self._planning_error = error
            raise
        self._in_flight.append((position, asked, plan))
        windows = plan.windows if self.loader.batchwise else union_of(plan.windows)
        return feed_of([self.loader._path(int(row)) for row in plan.row], windows)

    def next_batch(self) -> tuple[ViewPlan, ViewPlan, tuple[Any, ...]]:
        """Return the plan asked for, the plan shown, and the graph's outputs."""
        try:
            decoded = self.pipe.run(self.loader.side_stream)
        except RuntimeError:
            if self._planning_error is not None:
                raise self._planning_error from None
            raise
        self.position, asked, plan = self._in_flight.popleft()
        return asked, plan, decoded

    def oldest(self) -> Position:
        """Return the batch that failed: the oldest that was fed and not handed out."""
        return self._in_flight[0][0]
