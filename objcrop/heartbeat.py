"""A machine that is gone without a word: every rank says that it lives, and ends when another has been silent for long.

A process that is killed closes its connections, which the others notice at once. A machine that loses its power or its
network closes nothing, and the others would wait in a collective for an hour. Once they have ended, torchrun can go on
with what is left.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from objcrop.waiting import listed

if TYPE_CHECKING:
    import torch

EVERY = 5.0  # seconds from one sign of life to the next
OVER = "over"  # said by a rank that is done
LOST_AFTER = 120.0  # seconds of silence; a rank whose threads get no turn for so long is as good as gone


@contextmanager
def heartbeat(store: torch.distributed.Store, rank: int, world: int) -> Iterator[None]:
    """Say that this rank lives while inside; end the process when another has been silent for `LOST_AFTER` seconds.

    Rank 0 listens to all, the others to rank 0, so that a store is asked little.

    Args:
        store: a connection of its own: one that waits for a key answers nothing else.
        rank: of this process.
        world: number of processes.
    """
    over = threading.Event()
    beating = threading.Thread(target=_beat, args=(store, rank, world, over), daemon=True, name="heartbeat")
    beating.start()
    try:
        yield
        over.set()
        beating.join()
        with suppress(RuntimeError):
            store.set(f"beat/{rank}", OVER)
    finally:
        over.set()
        beating.join(EVERY)  # a daemon that is inside the store as Python ends would take the process down


def _beat(store: torch.distributed.Store, rank: int, world: int, over: threading.Event) -> None:
    others = range(1, world) if rank == 0 else range(1)
    heard = {other: ("", time.monotonic()) for other in others}
    beats = 0
    while not over.wait(EVERY):
        with suppress(RuntimeError):  # a store that is out of reach is silent too
            store.set(f"beat/{rank}", str(beats := beats + 1))
            for other in others:
                said = store.get(f"beat/{other}").decode() if store.check([f"beat/{other}"]) else ""
                if said != heard[other][0]:
                    heard[other] = said, time.monotonic()
        now = time.monotonic()
        lost = [other for other, (said, at) in heard.items() if said != OVER and now - at > LOST_AFTER]
        if lost and not over.is_set():
            end(lost)


def end(lost: list[int]) -> None:
    """End this process, whose main thread may be in a collective that nothing else can end."""
    has = "has" if len(lost) == 1 else "have"
    print(
        f"objcrop: {listed(lost)} of this run {has} been silent for {LOST_AFTER:.0f} s; look at machine and network, "
        "and resume the run from its last checkpoint.",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
