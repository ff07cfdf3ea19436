"""How much faster a training loop would be, did its loader never let it wait."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

Batch = TypeVar("Batch")


class Headroom(Generic[Batch]):
    """The loader that `headroom` wraps; walked like the loader itself, again and again too, all walks added up.

    Attributes:
        batches: handed out.
        first: seconds until the very first batch was there, the loader's start; these count nowhere else.
        seconds: of the loop, from the first batch on; what lies between two walks is left out.
    """

    def __init__(self, loader: Iterable[Batch], say: Callable[[str], object] = print) -> None:
        self.loader, self.say = loader, say
        self.batches, self.first, self.seconds, self._waited = 0, 0.0, 0.0, 0.0
        self._gaps: deque[tuple[_Mark, _Mark]] = deque()

    def __len__(self) -> int:
        return len(cast(Sized, self.loader))

    @property
    def waited(self) -> float:
        """Seconds of the loop that the device had nothing to do for want of a batch, as far as it has come."""
        self._settle()
        return self._waited

    @property
    def share(self) -> float:
        """The share of the loop's time that is spent waiting, 0 to 1."""
        return self.waited / self.seconds if self.seconds else 0.0

    @property
    def speed_up(self) -> float:
        """How many times as fast the loop would be with a loader that never waits; infinite for one that only waits."""
        worked = self.seconds - self.waited
        return self.seconds / worked if worked > 0 else float("inf")

    def __iter__(self) -> Iterator[Batch]:
        began = asked = _mark()
        batches = iter(self.loader)
        try:
            for batch in batches:
                come = _mark()
                if self.batches:
                    self._gaps.append((asked, come))
                else:
                    come.wait()
                    self.first, began = asked.until(come), come
                self.batches += 1
                self._settle()
                yield batch
                asked = _mark()
            self._gaps.append((asked, _mark()))
        except GeneratorExit:  # the loop was left by a `break`
            pass
        end = _mark()
        end.wait()
        self.seconds += began.until(end)
        self.say(str(self))

    def __str__(self) -> str:
        return (
            f"{self.batches} batches in {self.seconds:.1f} s, {self.waited:.1f} s of them ({self.share:.1%}) waiting: "
            f"with a loader that never waits the loop would be {self.speed_up:.2f} times as fast "
            f"(start: {self.first:.1f} s, not counted)."
        )

    def _settle(self) -> None:
        """Add up the waits that the device has passed; so no event is kept for longer than its queue of work is."""
        while self._gaps and self._gaps[0][1].passed():
            asked, come = self._gaps.popleft()
            self._waited += asked.until(come)


def headroom(loader: Iterable[Batch], say: Callable[[str], object] = print) -> Headroom[Batch]:
    """Measure what a training loop would gain from a loader that never waits.

        for batch in objcrop.headroom(loader):
            …

    Whatever yields batches may be wrapped, and nothing else of the loop changes. On a CPU the time is counted from
    asking for a batch to having it. On a GPU that would be too much: its steps are launched, not done, when the host
    asks for the next batch, and while the host waits it works on. So two CUDA events are recorded on the current
    device's current stream, one at the question and one at the answer. The GPU reaches the first when its work is done,
    and the second when, besides, the batch is there: between them it had nothing to do. Nothing is synchronised but the
    first batch and the end, so that the loop keeps its pace, and a loop that synchronises by itself (`loss.item()`) is
    measured as rightly.

    What the loader itself puts on the stream before it hands out a batch counts as waiting; copying a batch to the GPU
    in the loop does not. The gain is of waiting alone: a loader that works beside the step also takes cores, memory and
    power from it, which `objcrop bench train` measures (slow-down).

    Args:
        loader: any iterable of batches.
        say: gets a sentence at the end of each walk, also of one left by `break`; `logger.info` as well as `print`.

    Returns:
        An iterable over the same batches, with `share` (of the time, spent waiting), `speed_up` (how many times as fast
        the loop would be), `seconds`, `waited`, `first` (seconds to the first batch, counted apart) and `batches`.
    """
    return Headroom(loader, say)


@dataclass(frozen=True)
class _Mark:
    """A moment: of the host, and of the current stream where the process uses a GPU."""

    host: float
    event: Any

    def passed(self) -> bool:
        return self.event is None or self.event.query()

    def wait(self) -> None:
        if self.event is not None:
            self.event.synchronize()

    def until(self, later: _Mark) -> float:
        """Return the seconds to a later mark, of the stream where both know it."""
        if self.event is None or later.event is None:
            return later.host - self.host
        return self.event.elapsed_time(later.event) / 1000


def _mark() -> _Mark:
    import torch

    event = torch.cuda.Event(enable_timing=True) if torch.cuda.is_initialized() else None
    if event is not None:
        event.record()
    return _Mark(time.perf_counter(), event)
