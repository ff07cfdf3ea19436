"""Time, processor time and memory of a stretch of work, worker processes counted in."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


def cpu_seconds() -> float:
    """Return processor seconds of this process and of all its living and ended children.

    Worker processes that still run are read from /proc; where there is none, only ended ones count.
    """
    ended = os.times()  # of the children; in hundredths of a second, where process_time is exact
    used = time.process_time() + ended.children_user + ended.children_system
    return used + sum(_cpu_of(pid) for pid in descendants(os.getpid()))


def descendants(pid: int) -> list[int]:
    """Return the living children of a process, theirs behind each; none where there is no /proc."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                for child in map(int, file.read().split()):
                    found += [child, *descendants(child)]
    except OSError:
        pass
    return found


def _cpu_of(pid: int) -> float:  # and of its ended children
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def memory_of_all() -> int:
    """Return the memory of this process and its living children, bytes: what each has alone, and once what they share.

    0 where there is no /proc. Workers that were forked share most of their pages with their parent, so that the sum of
    what each is said to take would count those for every one.
    """
    alone, shared = 0, 0
    for pid in (os.getpid(), *descendants(os.getpid())):
        try:
            with open(f"/proc/{pid}/smaps_rollup") as file:
                lines = (line.split() for line in file.readlines()[1:])
        except OSError:  # it has ended
            continue
        kib = {name.rstrip(":"): int(value) for name, value, *_ in lines}
        alone += kib["Private_Clean"] + kib["Private_Dirty"]
        shared = max(shared, kib["Shared_Clean"] + kib["Shared_Dirty"])
    return 1024 * (alone + shared)


@dataclass
class Stopwatch:
    """Repeated measurements of one thing: `with watch(images): …` takes one.

    Attributes:
        seconds: wall-clock time of each.
        cpu: processor seconds of each.
        images: images handled in each.
    """

    seconds: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    images: list[int] = field(default_factory=list)

    def lap(self, batches: Iterable) -> None:
        """Walk `batches` to its end and take its time; an item's length is its number of images."""
        wall, cpu, images = time.perf_counter(), cpu_seconds(), 0
        for batch in batches:
            images += len(batch)
        self.seconds.append(time.perf_counter() - wall)
        self.cpu.append(cpu_seconds() - cpu)
        self.images.append(images)

    def add(self, other: Stopwatch) -> None:
        """Take over another's measurements."""
        self.seconds += other.seconds
        self.cpu += other.cpu
        self.images += other.images

    def summary(self) -> dict[str, Any]:
        """Return medians and spreads, images per second and per processor second, and of each turn what was measured.

        `confidence` is how likely the medians of endless turns lie between the smallest and the largest of these,
        whatever the distribution: all n fall on one side of it in 2 of 2ⁿ cases.
        """
        rate = [n / s for n, s in zip(self.images, self.seconds)]
        per_cpu = [n / max(c, 1e-9) for n, c in zip(self.images, self.cpu)]
        return {
            "images_per_s": round(statistics.median(rate), 1),
            "images_per_s_min": round(min(rate), 1),
            "images_per_s_max": round(max(rate), 1),
            "images_per_cpu_s": round(statistics.median(per_cpu), 1),
            "images_per_cpu_s_min": round(min(per_cpu), 1),
            "images_per_cpu_s_max": round(max(per_cpu), 1),
            "confidence": round(confidence(len(rate)), 4),
            "repeats": len(rate),
            "images": self.images[-1],
            "turns": {
                "seconds": [round(value, 5) for value in self.seconds],
                "cpu_seconds": [round(value, 5) for value in self.cpu],
                "images": self.images,
            },
        }


def confidence(turns: int) -> float:
    """Return how likely the smallest and the largest of so many measurements have the median between them."""
    return 1 - 2.0 ** (1 - turns)
