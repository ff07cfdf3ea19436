"""The loader contract: length, iteration, epochs and state, the same for every backend.

A backend fills in one method, `_stream`, an endless iterator of batches from a position (epoch, batch) on. Because it
runs on across the end of an epoch, prefetching never drains between epochs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.bad_images import BadImages
from objcrop.dali_pipes.crop_policy import CropPolicy
from objcrop.dali_pipes.epoch_order import batch_samples
from objcrop.dali_pipes.view_plan import ViewPlan, ViewPlanner
from objcrop.dali_pipes.views import Views
from objcrop.errors import ObjcropError, UsageError
from objcrop.ranks import rank_and_world_size

Position = tuple[int, int]  # epoch, global batch


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
    rank: int
    world: int

    def plan(self, position: Position) -> ViewPlan:
        """Return the plan of the global batch at (epoch, batch)."""
        epoch, batch = position
        seed, samples = self.planner.seed, self.planner.samples
        mine = batch_samples(
            samples, batch, self.batch_size, seed, epoch, shuffle=self.shuffle, rank=self.rank, world=self.world
        )
        return self.planner.plan(mine, epoch)


class ViewLoader(ABC):
    """Yields `Views`, one rank's part of each global batch.

    An `iter()` walks the current epoch from its start, or from where `load_state_dict` put it; an epoch walked to its
    end moves the loader to the next. `set_epoch` chooses another. Built by `load_views`.

    Attributes:
        epoch: the epoch that `iter()` walks next, or is walking.
        policy: the crop policy, scales resolved.
        classes: names of the columns of `Views.labels`.
        resolved: the options that were worked out, for the run's recipe.
        bad_images: what was found bad so far.
    """

    def __init__(
        self,
        planner: ViewPlanner,
        bad_images: BadImages,
        *,
        batch_size: int,
        shuffle: bool,
        drop_last: bool,
    ) -> None:
        self.planner, self.bad_images = planner, bad_images
        self.rank, self.world_size = rank_and_world_size()
        self.batch_size, self.drop_last = batch_size, drop_last
        self.batches = GlobalBatches(planner, batch_size, shuffle, self.rank, self.world_size)
        self.epoch, self._batch = 0, 0
        self._resuming = False
        self._running: Iterator[Views] | None = None
        self._next: Position | None = None
        self._check_length()

    def _check_length(self) -> None:
        if self.batch_size < 1 or self.batch_size % self.world_size:
            raise UsageError(
                f"batch_size is {self.batch_size}, the global batch, but it must be a multiple of the "
                f"{self.world_size} processes."
            )
        if len(self) == 0:
            raise UsageError(
                f"batch_size is {self.batch_size}, but an epoch has only {self.planner.samples} samples: take a "
                "smaller batch or more images."
            )

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
        return {"scale_min": self.planner.scale_min, "samples": self.planner.samples, "batches": len(self)}

    def __len__(self) -> int:
        whole, rest = divmod(self.planner.samples, self.batch_size)
        return whole if self.drop_last or not rest else whole + 1

    def __iter__(self) -> Iterator[Views]:
        if not self._resuming:
            self._batch = 0
        self._resuming = False
        while self._batch < len(self):
            here = (self.epoch, self._batch)
            if self._running is None or self._next != here:
                self._stop()
                self._running = self._stream(here)
            views = next(self._running)
            self._batch += 1  # consumed from the moment it is handed out
            self._next = self._after(here)
            yield views
        self.epoch, self._batch = self.epoch + 1, 0

    def _after(self, position: Position) -> Position:
        epoch, batch = position
        return (epoch, batch + 1) if batch + 1 < len(self) else (epoch + 1, 0)

    def _positions(self, start: Position) -> Iterator[Position]:
        while True:
            yield start
            start = self._after(start)

    def set_epoch(self, epoch: int) -> None:
        """Let the next `iter()` walk this epoch from its start."""
        self.epoch, self._batch, self._resuming = epoch, 0, False

    def set_boxes(self, boxes: BoxTable) -> None:
        """Draw from other boxes of the same catalog from the next `iter()` on; options already resolved stay."""
        if boxes.catalog_fingerprint != self.catalog.fingerprint:
            raise UsageError("set_boxes got boxes of another catalog; make them for this one with `objcrop propose`.")
        self._stop()
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

    def _identity(self) -> dict[str, Any]:
        boxes = self.planner.boxes
        return {
            "seed": self.planner.seed,
            "batch_size": self.batch_size,
            "crops": self.policy.name,
            "catalog": self.catalog.fingerprint,
            "boxes": None if boxes is None else boxes.fingerprint,
        }

    @abstractmethod
    def _stream(self, start: Position) -> Iterator[Views]:
        """Yield batches from a position on, without end."""

    def _stop(self) -> None:
        """Drop whatever was prefetched."""
        if self._running is not None and hasattr(self._running, "close"):
            self._running.close()
        self._running, self._next = None, None

    def close(self) -> None:
        """Stop workers and threads and free their memory."""
        self._stop()

    def __enter__(self) -> ViewLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
