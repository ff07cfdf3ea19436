"""The reference loader: PIL and torchvision in DataLoader workers, as people have it today.

Each worker makes whole batches: decode with PIL, crop, resize with PIL, colour either as torchvision's float
definition (`colour="float"`, what the other backends are held against) or as the PIL chain of facebookresearch/moco
(`colour="pil"`, the baseline for speed). Imports neither DALI nor CuPy.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
from collections.abc import Iterable, Iterator
from contextlib import nullcontext, suppress
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info

from objcrop.dali_pipes.bad_images import BadImages, stand_in
from objcrop.dali_pipes.photo import Photo, scales_of
from objcrop.dali_pipes.read_image import BadImage, open_photo
from objcrop.dali_pipes.view_loader import GlobalBatches, Position, ViewLoader
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner
from objcrop.dali_pipes.views import Views
from objcrop.errors import ObjcropError, UsageError, way_out
from objcrop.kernels.colour_pil import colour_pil
from objcrop.kernels.colour_reference import colour_reference

Made = tuple[Views, list[tuple[int, str]]]  # a batch, and the rows found bad on the way with the reason


class TorchLoader(ViewLoader):
    """Fills the contract with a `torch.utils.data.DataLoader`; arguments as in `load_views`."""

    def __init__(
        self,
        planner: ViewPlanner,
        bad_images: BadImages,
        *,
        workers: int,
        prefetch: int,
        colour: str,
        device: str,
        dtype: torch.dtype,
        decode_scaled: bool = False,
        **contract: Any,
    ) -> None:
        super().__init__(planner, bad_images, device=device, **contract)
        self.workers, self.prefetch, self.colour, self.dtype = workers, prefetch, colour, dtype
        self.decode_scaled = decode_scaled

    def _stream(self, start: Position) -> Iterator[Views]:
        on_gpu = self.device.type != "cpu"
        made = self._dataset()
        batches = DataLoader(
            made,
            sampler=_From(self._positions(start)),
            batch_size=None,
            num_workers=self.workers,
            prefetch_factor=self.prefetch if self.workers else None,
            collate_fn=_as_is,
            pin_memory=on_gpu,
            multiprocessing_context=self._how_workers_begin(made) if self.workers else None,
        )
        with torch.cuda.device(self.device) if on_gpu else nullcontext():  # that of the thread that pins memory
            arriving = iter(batches)
        found, begun_in = self._without_reports(arriving), os.getpid()
        try:
            for views in _ahead(found, self.device) if on_gpu else found:
                yield self._transformed(views)
        finally:
            if os.getpid() == begun_in:  # and no worker of another loader, which inherits this and lets go of it
                _end(arriving)

    def _how_workers_begin(self, made: Batches) -> str:
        if self.catalog.image_bytes.far:
            return _spawned(made)
        # Before Python 3.14 "fork" is what begins them where nobody chose; since then an `augment` of one's own, a
        # lambda for one, would have to be sent to them.
        return multiprocessing.get_start_method(allow_none=True) or "fork"

    def _dataset(self) -> Batches:
        return Batches(self.batches, self.colour, self.dtype, self.decode_scaled)

    def _without_reports(self, batches: Iterable[Made | ObjcropError]) -> Iterator[Views]:
        try:
            for made in batches:
                if isinstance(made, ObjcropError):
                    raise made
                views, bad = made
                for row, reason in bad:
                    self.bad_images.add(row, reason)
                yield views
        except (RuntimeError, OSError, EOFError) as error:
            said = lost_worker(error) if self.workers else None
            if said is None:
                raise
            raise said from None

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        if "DataLoader worker" in str(raised[1]):  # PyTorch tells of a dead one by a signal, wherever the loop then is
            said = lost_worker(raised[1])
            if said is not None:
                raise said from None


def _spawned(batches: Batches) -> str:
    """Return how workers begin that fetch from far away: anew, since a forked one has none of obstore's threads."""
    try:
        pickle.dumps(batches)
    except Exception as error:
        raise UsageError(
            f"workers that fetch images from an address begin anew, and what they need cannot be sent there ({error}): "
            "define your own augment at the top of a module, or take workers=0 or backend='dali'."
        ) from None
    return "spawn"


def _end(arriving: Iterator[Any]) -> None:
    """End the workers now: PyTorch raises, wherever the program then is, for one that dies while it counts as at work.

    The error on its way may hold the iterator in a cycle, so that only the collector would end them; and a killed
    worker's connections are closed before its end is signalled.
    """
    shut_down = getattr(arriving, "_shutdown_workers", None)  # with workers=0 there are none
    if shut_down is not None:
        with suppress(RuntimeError):  # the signal, which the shutting down outlives
            shut_down()


def lost_worker(error: object) -> ObjcropError | None:
    """Return the sentence for PyTorch's error about a worker process; None for any other error."""
    text = str(error)
    if not isinstance(error, (RuntimeError, OSError, EOFError)) or isinstance(error, ObjcropError):
        return None
    # One that dies while it hands over a tensor is met as a broken connection, or as a socket that is gone.
    cut = isinstance(error, (ConnectionError, EOFError)) or (
        isinstance(error, FileNotFoundError) and error.filename is None
    )
    none = way_out("give --workers 0 (workers=0)", "take workers=0")
    if "Bus error" in text or "shared memory" in text or "</torch_" in text:
        return ObjcropError(
            f"the loader's workers ran out of shared memory; {none}, or make /dev/shm larger (`docker run "
            "--shm-size=8g …`)."
        )
    if "Too many open files" in text or "ancdata" in text:
        return ObjcropError(f"the loader's workers ran out of open files; {none}, or raise the limit (`ulimit -n`).")
    if cut or ("DataLoader worker" in text and ("exited unexpectedly" in text or "killed by signal" in text)):
        return ObjcropError(
            f"a worker process of the loader was killed, most often because memory ran out; {none}, or fewer workers."
        )
    return None


def _ahead(batches: Iterator[Views], device: torch.device) -> Iterator[Views]:
    """Copy each batch on a stream of its own while the step before it runs, so that none waits for the copy."""
    stream = torch.cuda.Stream(device)
    arriving: tuple[Views, torch.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copied = batch.to(device), stream.record_event()
        if arriving is not None:
            views, arrived = arriving
            consumer = torch.cuda.current_stream(device)
            consumer.wait_event(arrived)
            for tensor in views.tensors():
                tensor.record_stream(consumer)  # its memory is not given away while the consumer reads it
            yield views
        arriving = copied


class _From(Sampler):
    """Endless positions, so that workers prefetch across the end of an epoch."""

    def __init__(self, positions: Iterator[Position]) -> None:
        self.positions = positions

    def __iter__(self) -> Iterator[Position]:
        return self.positions


def _shared(tensor: torch.Tensor) -> torch.Tensor:
    """Move it to shared memory now: where PyTorch does it, a failure is printed and the batch waited for for ever."""
    return tensor.share_memory_() if tensor.numel() else tensor


def _as_is(batch: Any) -> Any:
    return batch


class Batches(Dataset):
    """Position to one rank's batch and the rows found bad on the way; what a batch is stands in the last methods."""

    def __init__(self, batches: GlobalBatches, colour: str, dtype: torch.dtype, decode_scaled: bool = False) -> None:
        self.batches, self.colour, self.dtype, self.decode_scaled = batches, colour, dtype, decode_scaled

    def __getitem__(self, position: Position) -> Made | ObjcropError:
        try:
            return self._made(position)
        except ObjcropError as error:  # as a value: PyTorch would put a traceback into its sentence
            return error

    def _made(self, position: Position) -> Made:
        planner = self.batches.planner
        plan = asked = self.batches.plan(position)
        out = self.blank(len(plan))
        bad: list[tuple[int, str]] = []
        pending = np.arange(len(plan))
        for attempt in count():
            failed = []
            scales = scales_of(plan.windows, planner.sizes) if self.decode_scaled else np.ones(len(plan), np.int64)
            planner.catalog.image_bytes.ahead(plan.row[pending].tolist())
            for i in pending:
                row = int(plan.row[i])
                try:
                    photo = open_photo(planner.catalog, row, int(scales[i]))
                except BadImage as error:
                    bad.append((row, str(error)))
                    failed.append(i)
                    continue
                self.put(out, int(i), photo, plan)
            if not failed:
                break
            pending = np.array(failed)
            plan = stand_in(plan, asked, pending, planner, position[0], attempt)
        batch = self.together(plan, asked, out)
        return batch if get_worker_info() is None else batch.map(_shared), bad

    def blank(self, n: int) -> list[torch.Tensor]:
        """Return room for n samples."""
        planner = self.batches.planner
        kind = torch.float32 if planner.transform is None else torch.uint8
        return [torch.empty(n, size, size, 3, dtype=kind) for size in planner.sizes]

    def put(self, out: list[torch.Tensor], i: int, photo: Photo, plan: ViewPlan) -> None:
        """Fill in sample i, which is of this photo."""
        for v in range(len(out)):
            out[v][i] = _view(photo, self.batches.planner, plan, i, v, self.colour)

    def together(self, plan: ViewPlan, asked: ViewPlan, out: list[torch.Tensor]) -> Views:
        """Return the batch, filled in."""
        planner = self.batches.planner
        kind = self.dtype if planner.transform is None else torch.uint8
        return assemble(planner, plan, asked, [o.permute(0, 3, 1, 2).to(kind) for o in out])


def _view(photo: Photo, planner: ViewPlanner, plan: ViewPlan, i: int, v: int, colour: str) -> torch.Tensor:
    """Return one view (S, S, 3): float32, normalised, or its bytes where they are for the user's own function."""
    size, augment = planner.sizes[v], planner.augment[v]
    small = photo.view(plan.windows[i, v].tolist(), size, augment.interpolation)
    if planner.transform is not None:
        return torch.from_numpy(np.array(small))
    how = plan.decisions(i, v), augment.mean, augment.std
    if colour == "pil":
        return colour_pil(small, *how).permute(1, 2, 0)
    pixels = torch.from_numpy(np.array(small)).permute(2, 0, 1)
    return colour_reference(pixels, *how).permute(1, 2, 0)


def assemble(planner: ViewPlanner, plan: ViewPlan, asked: ViewPlan, views: list[torch.Tensor]) -> Views:
    """Return the batch of these view tensors, with rows, labels and substitutions filled in from the plans."""
    return Views(
        views=tuple(views),
        index=torch.from_numpy(plan.row),
        requested=torch.from_numpy(asked.row),
        labels=torch.from_numpy(planner.catalog.label_matrix(plan.row)),
        plan=plan,
        substituted=torch.from_numpy(plan.sample != asked.sample),
        boxes=planner.boxes_in_views(plan),
    )
