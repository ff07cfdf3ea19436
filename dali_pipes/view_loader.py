"""The loader contract: length, iteration, epochs and state, the same for every backend.

A backend fills in one method, `_stream`, an endless iterator of batches from a position (epoch, batch) on. Because it
runs on across the end of an epoch, prefetching never drains between epochs.

Which process this is, of how many, and on which GPU, is asked when iteration begins: loops build their loader before
torch.distributed is up, and Lightning starts its processes after that.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.crop_policy import CropPolicy
from objcrop.dali_pipes.epoch_order import batch_positions, permute
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner
from objcrop.dali_pipes.views import Views
from objcrop.devices import resolve_device
from objcrop.errors import ObjcropError, UsageError
from objcrop.ranks import known_rank

Position = tuple[int, int]  # epoch, global batch
PLANNED = 1024  # samples planned at once: 64 alone take a fifth of their time
log = logging.getLogger("objcrop")


@dataclass(frozen=True)
class GlobalBatches:
    """Plans one rank's part of any global batch; small enough to send to worker processes.

    Attributes:
        planner: samples to plans.
        batch_size: samples in a global batch, over all ranks.
        shuffle: False leaves catalog order.
        rank: this process.
        world: number of processes.
    """

    planner: ViewPlanner
    batch_size: int
    shuffle: bool
    rank: int = 0
    world: int = 1

    def plan(self, position: Position) -> ViewPlan:
        """Return the plan of the global batch at (epoch, batch)."""
        epoch, batch = position
        return self.plans(epoch, range(batch, batch + 1))[0]

    def plans(self, epoch: int, batches: range) -> list[ViewPlan]:
        """Return the plans of global batches of an epoch, made all at once: many arrays cost little more than few."""
        n, share = self.planner.samples, {"rank": self.rank, "world": self.world}
        positions = [batch_positions(n, batch, self.batch_size, **share) for batch in batches]
        samples = np.concatenate(positions)
        if self.shuffle:
            samples = permute(samples, n, self.planner.seed, epoch)
        plan = self.planner.plan(samples, epoch)
        ends = accumulate(map(len, positions))
        return [plan.take(slice(end - len(part), end)) for part, end in zip(positions, ends)]


class ViewLoader(ABC):
    """Yields `Views`, one rank's part of each global batch.

    An `iter()` walks the current epoch from its start, or from where `load_state_dict` put it; an epoch whose last
    batch was handed out moves the loader to the next. `set_epoch` chooses another. There is one walk at a time: a new
    `iter()` ends the one before. Built by `load_views`; one that is pickled into another process is built anew there.

    Attributes:
        device: where the views lie, a GPU with its index.
        rank: this process; settled when iteration begins.
        world_size: number of processes; settled when iteration begins.
        epoch: the epoch that `iter()` walks next, or is walking.
        policy: the crop policy, scales resolved.
        classes: names of the columns of `Views.labels`.
        resolved: the options that were worked out, for the run's recipe.
        bad_images: what was found bad so far.
    """

    _built_from: tuple[tuple[Any, ...], dict[str, Any]]

    def __init__(
        self,
        planner: ViewPlanner,
        bad_images: BadImages,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
        device: str | torch.device = "auto",
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        self.planner, self.bad_images = planner, bad_images
        self.batch_size, self.drop_last = batch_size, drop_last
        self.batches = GlobalBatches(planner, batch_size, shuffle)
        self._given, self._asked_device, self._built_in = _both(rank, world_size), device, os.getpid()
        self.device = resolve_device(device)
        self.epoch, self._batch = 0, 0
        self._resuming = False
        self._running: Iterator[Views] | None = None
        self._making: ViewLoader | None = None  # what runs, see `_maker`
        self._next: Position | None = None
        self._walk: object = None  # the one that may go on
        self._open: object = None  # the one that has not ended
        self._settled_in: int | None = None  # the process that asked for its rank, once it did
        self._firmly = False  # whether an epoch was walked or a state loaded with that rank
        if batch_size < 1:
            raise UsageError(f"batch_size is {batch_size}, but it must be 1 or more.")
        try:
            self._take_place(*self._who())
        except UsageError:
            raise
        except ObjcropError:  # not to be known yet
            self._check_length()

    def __new__(cls, *arguments: Any, **options: Any) -> ViewLoader:
        """Keep what the loader is built from: it is pickled as that and where it stands."""
        loader = super().__new__(cls)
        loader._built_from = arguments, options
        return loader

    def __reduce__(self) -> Any:
        where = {name: getattr(self, name) for name in ("epoch", "_batch", "_resuming", "_built_in")}
        return _rebuilt, (type(self), *self._built_from), where

    @property
    def rank(self) -> int:
        """This process."""
        return self.batches.rank

    @property
    def world_size(self) -> int:
        """Number of processes."""
        return self.batches.world

    def _who(self) -> tuple[int, int]:
        known = self._given or known_rank()
        if known is None and os.getpid() != self._built_in:
            raise ObjcropError(
                "this loader was built in another process, so that several may walk the same rows: initialise "
                "torch.distributed before iteration begins, or give load_views rank and world_size."
            )
        return known or (0, 1)

    def _take_place(self, rank: int, world: int) -> None:
        if self.batch_size % world:
            raise UsageError(
                f"batch_size is {self.batch_size}, the global batch, but it must be a multiple of the {world} "
                "processes (where machines come and go, of each number of them)."
            )
        self.batches = replace(self.batches, rank=rank, world=world)
        self._check_length()

    def _settle(self) -> None:
        """Ask who this process is as a walk begins; what was peeked at before does not count."""
        if self._settled_in is None:
            self.device = resolve_device(self._asked_device)
        elif self._settled_in != os.getpid():
            raise ObjcropError("iteration of this loader began in another process; build one in each process.")
        elif self._firmly:
            return self._refuse_another_place()
        place = self._who()
        if place != (self.rank, self.world_size):
            self._stop()
            self._take_place(*place)
        self._settled_in, self._firmly = os.getpid(), self._firmly or self._resuming

    def _refuse_another_place(self) -> None:
        rank, world = self._who()
        if (rank, world) != (self.rank, self.world_size):
            raise ObjcropError(
                f"this process was rank {self.rank} of {self.world_size} as iteration began and is rank {rank} of "
                f"{world} now: initialise torch.distributed before the first epoch, or give load_views rank and "
                "world_size."
            )

    def _check_length(self) -> None:
        if len(self) == 0:
            raise UsageError(
                f"batch_size is {self.batch_size}, but an epoch has only {self.planner.samples} samples: take a "
                "smaller batch or more images."
            )
        rest = self.planner.samples % self.batch_size
        if not self.drop_last and 0 < rest < self.world_size:
            raise UsageError(
                f"batch_size is {self.batch_size}, which leaves {rest} of {self.planner.samples} samples for the last "
                f"batch of {self.world_size} processes, each of which needs one: take another batch size."
            )

    def _transformed(self, views: Views) -> Views:
        """Return the batch with the user's own function of each view, where `augment` is one."""
        if self.planner.transform is None:
            return views
        made = []
        for v, pixels in enumerate(views.views):
            try:
                made.append(self.planner.transform(pixels))
            except Exception as error:
                what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                raise ObjcropError(
                    f"augment, your own function, failed on view {v + 1}, uint8 {tuple(pixels.shape)} ({what})."
                ) from error
        return replace(views, views=tuple(made))

    @property
    def catalog(self) -> Catalog:
        """The images."""
        return self.planner.catalog

    @property
    def policy(self) -> CropPolicy:
        """The crop policy, scales resolved."""
        return self.planner.policy

    @property
    def classes(self) -> list[str]:
        """Names of the label columns."""
        return self.planner.catalog.classes

    @property
    def resolved(self) -> dict[str, Any]:
        """The options that were worked out from the data."""
        solved = {} if self.planner.scale_min is None else {"scale_min": self.planner.scale_min}
        return {**solved, "samples": self.planner.samples, "batches": len(self)}

    def __len__(self) -> int:
        whole, rest = divmod(self.planner.samples, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[Views]:
        self._settle()
        if self._open is not None:  # within another walk, or that one was left and is still held somewhere
            log.warning("A walk of a loader begins while an earlier one is still open; that one ends here.")
        walk = self._walk = self._open = object()
        try:
            yield from self._batches(walk)
        finally:
            if self._open is walk:
                self._open = None

    def _batches(self, walk: object) -> Iterator[Views]:
        if not self._resuming:
            self._end_epoch()
            self._batch = 0
        self._resuming = False
        while self._batch < len(self):
            here = (self.epoch, self._batch)
            if self._running is None or self._next != here:
                self._stop()
                self._making = self._maker()
                self._running = self._making._stream(here)
            try:
                views = next(self._running)
            except BaseException:
                self._stop()
                raise
            self._batch += 1  # consumed from the moment it is handed out
            self._next = self._after(here)
            yield views
            if self._walk is not walk:
                raise ObjcropError(
                    "another walk of this loader began, or it was moved elsewhere, before this walk ended: build a "
                    "second loader for a walk within a walk."
                )
            self._refuse_another_place()
        self._end_epoch()

    def _end_epoch(self) -> None:
        """Move on from an epoch whose batches are all handed out; a loop that counts them never asks for one more."""
        if self._batch >= len(self):
            self.epoch, self._batch, self._firmly = self.epoch + 1, 0, True

    def _after(self, position: Position) -> Position:
        epoch, batch = position
        return (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)

    def _positions(self, start: Position) -> Iterator[Position]:
        while True:
            yield start
            start = self._after(start)

    def plans_from(self, start: Position) -> Iterator[tuple[Position, ViewPlan]]:
        """Yield positions without end, and the plans as asked for: of an epoch's next batches at once."""
        many = max(PLANNED * self.batches.world // self.batch_size, 1)
        while True:
            epoch, batch = start
            batches = range(batch, min(batch + many, len(self)))
            yield from zip(((epoch, each) for each in batches), self.batches.plans(epoch, batches))
            start = self._after((epoch, batches[-1]))

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` walk this epoch from its start."""
        self.epoch, self._batch, self._resuming, self._walk = epoch, 0, False, None

    def set_boxes(self, boxes: BoxTable) -> None:
        """Draw from other boxes of the same catalog from the next `iter()` on; options already resolved stay."""
        if boxes.catalog_fingerprint != self.catalog.fingerprint:
            raise UsageError("set_boxes got boxes of another catalog; make them for this one with `objcrop propose`.")
        if not self.policy.needs_boxes:
            raise UsageError(f"set_boxes cannot act here: crops '{self.policy.name}' are not drawn from boxes.")
        self._stop()
        self._end_epoch()
        self._walk = None
        self.planner.set_boxes(boxes)
        self._check_length()

    def state_dict(self) -> dict[str, Any]:
        """Return what was consumed so far (torchdata's stateful protocol), plain numbers and strings."""
        epoch, batch = (self.epoch, self._batch) if self._batch < len(self) else (self.epoch + 1, 0)
        return {"epoch": epoch, "batch": batch, **self._identity()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch that was consumed when `state` was taken.

        Raises:
            ObjcropError: the state is of another catalog, other boxes, seed, policy or global batch.
        """
        for name, mine in self._identity().items():
            if state.get(name) != mine:
                raise ObjcropError(
                    f"the loader's state was saved with {name}={state.get(name)!r}, but this loader has {mine!r}: "
                    "resume with what the run began with."
                )
        self.epoch, self._batch, self._resuming = int(state["epoch"]), int(state["batch"]), True
        self._walk = None

    def _identity(self) -> dict[str, Any]:
        boxes = self.planner.boxes
        return {
            "seed": self.planner.seed,
            "batch_size": self.batch_size,
            "crops": self.policy.name,
            "catalog": self.catalog.fingerprint,
            "boxes": None if boxes is None else boxes.fingerprint,
        }

    def _maker(self) -> ViewLoader:
        """Return a copy of this loader, to make batches: so that a loader which nobody holds goes at once.

        Threads and generators hold the copy. A loader that they held would outlive its last user, with its batches.
        """
        maker = object.__new__(type(self))
        vars(maker).update({**vars(self), "_running": None, "_making": None})
        return maker

    @abstractmethod
    def _stream(self, start: Position) -> Iterator[Views]:
        """Yield batches from a position on, without end."""

    def _ended(self) -> None:  # noqa: B027, most have nothing to wait for
        """Wait for what may still be at work once `_stream` was closed."""

    def _stop(self) -> None:
        """Drop whatever was prefetched."""
        if self._running is not None and hasattr(self._running, "close"):
            self._running.close()
        if self._making is not None:
            self._making._ended()
        self._running, self._making, self._next = None, None, None

    def close(self) -> None:
        """Stop workers and threads and free their memory."""
        self._stop()

    def __enter__(self) -> ViewLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _both(rank: int | None, world_size: int | None) -> tuple[int, int] | None:
    """Return rank and world size where both are given and fit."""
    if rank is None and world_size is None:
        return None
    if rank is None or world_size is None:
        raise UsageError("rank and world_size go together: give both, or neither.")
    if not 0 <= rank < world_size:
        raise UsageError(f"rank is {rank}, but it must be 0 to {world_size - 1}, world_size being {world_size}.")
    return rank, world_size


def _rebuilt(kind: type[ViewLoader], arguments: tuple[Any, ...], options: dict[str, Any]) -> ViewLoader:
    return kind(*arguments, **options)
