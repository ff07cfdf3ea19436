"""Work on rows part by part: in this process, in worker processes, or on the machines of a Ray cluster.

What is made of a part depends on the part alone, so that it may be made anywhere, in any order, and once more where a
worker died with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

from objcrop.errors import ObjcropError, way_out
from objcrop.ray_cluster import cluster_at_hand, on_ray

Part = TypeVar("Part")
Made = TypeVar("Made")


def run_parts(
    make: Callable[[], Callable[[Part], Made]], parts: Mapping[int, Part], workers: int = 0
) -> Iterator[tuple[int, Made]]:
    """Make something of every part; yield its number and what was made of it, in the order in which they are done.

    Inside `ray_cluster` the cluster does the work, else this machine.

    Args:
        make: makes what works on a part, once in each process; picklable where another process works.
        parts: the parts by their numbers; what one needs besides the files that all processes see.
        workers: processes of this machine; 0 works in this one.

    Raises:
        ObjcropError: a worker process was killed, or the cluster cannot do the work.
    """
    if not parts:
        return
    if cluster_at_hand():
        yield from on_ray(make, parts)
    elif workers:
        yield from _in_processes(make, parts, workers)
    else:
        work = make()
        for number, part in parts.items():
            yield number, work(part)


def _in_processes(
    make: Callable[[], Callable[[Part], Made]], parts: Mapping[int, Part], workers: int
) -> Iterator[tuple[int, Made]]:
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (make,)) as pool:
        waiting: dict[Future[Made], int] = {}
        upcoming = iter(parts.items())
        try:
            while True:
                for number, part in islice(upcoming, 2 * workers - len(waiting)):
                    waiting[pool.submit(_work, part)] = number
                if not waiting:
                    return
                for future in wait(waiting, return_when=FIRST_COMPLETED).done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            way = way_out(
                "give fewer --workers and run the same command again; what is done is kept", "end other programs"
            )
            raise ObjcropError(f"a worker process was killed, most often because memory ran out: {way}.") from None
        finally:
            pool.shutdown(cancel_futures=True)


_mine: list[Callable[[Any], Any]] = []  # what works in this worker process


def _begin(make: Callable[[], Callable[[Any], Any]]) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _mine.append(make())


def _work(part: Any) -> Any:
    return _mine[0](part)
