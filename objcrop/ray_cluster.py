"""A Ray cluster as the place where parts of the work are made: `objcrop propose … --ray ADDRESS`.

Ray begins a task again whose machine died. A task carries its part and no image: those, and the catalog's file, every
machine reads from where all of them see it.
"""

from __future__ import annotations

import os
import secrets
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from itertools import islice
from typing import Any
from urllib.parse import urlsplit

from objcrop import __version__
from objcrop.errors import ObjcropError, UsageError
from objcrop.extras import from_extra
from objcrop.ranks import rank_and_world_size

TRIES = 5  # of a task after the first, for as many machines that die with it
_cluster: ContextVar[str | None] = ContextVar("cluster", default=None)


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """Let the work inside be done on a Ray cluster, where it is done in parts.

    A cluster that the program is connected to already is used and left alone.

    Args:
        address: HOST:PORT of the cluster's head, "auto" for the cluster that this machine belongs to, "local" for one
            of this machine alone that ends with the work; None for no cluster.

    Raises:
        UsageError: ray is not installed, or a launcher shares the work already.
        ObjcropError: no cluster answers there, or not one that this program may join.
    """
    if address is None:
        yield
        return
    if rank_and_world_size()[1] > 1:
        raise UsageError("ray shares the work over its own workers: run one process, without torchrun.")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray = from_extra("ray")
    own = not ray.is_initialized()
    if own:
        _join(address)
    token = _cluster.set(address)
    try:
        yield
    finally:
        _cluster.reset(token)
        if own:
            ray.shutdown()


def cluster_at_hand() -> bool:
    """Whether this is inside `ray_cluster`."""
    return _cluster.get() is not None


def _join(address: str) -> None:
    ray = from_extra("ray")
    quiet: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        quiet["include_dashboard"] = False
    try:
        if address not in ("auto", "local"):
            # Ray itself tries for minutes, and then ends the program.
            at = urlsplit(address if "://" in address else f"ray-head://{address}")
            if at.hostname is None or at.port is None:
                raise UsageError(f"the address of Ray is '{address}', but it must be HOST:PORT, auto or local.")
            socket.create_connection((at.hostname, at.port), 10).close()
        ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError) as error:  # no answer, no address, another version of Ray or Python
        reason = " ".join(str(error).split())[:200]
        if "AF_UNIX path length" in reason:
            raise ObjcropError(
                "the folder of temporary files has too long a name for Ray's sockets: let the variable RAY_TMPDIR name "
                f"a short one, such as /tmp/ray ({reason})."
            ) from None
        raise ObjcropError(
            f"there is no Ray cluster to join at '{address}' ({reason}); start one with `ray start --head`, name "
            "another, or take local."
        ) from None


def on_ray(make: Callable[[], Callable[[Any], Any]], parts: Mapping[int, Any]) -> Iterator[tuple[int, Any]]:
    """Make something of every part on the cluster; see `objcrop.parts.run_parts`.

    Raises:
        ObjcropError: a machine of the cluster cannot do the work, or all of them are gone.
    """
    ray = from_extra("ray")

    def there(packed: bytes, name: str, version: str, folder: str, part: bytes) -> tuple[Any, str, str]:
        """Run on a worker; sent as it stands here, and a part packed, since the worker may have no objcrop."""
        import ray

        address = ray.util.get_node_ip_address()
        try:
            from objcrop import __version__ as found
            from objcrop.ray_cluster import made_of
        except ImportError as error:
            return None, address, f"it has no objcrop ({error}); install objcrop {version} there"
        if found != version:
            return None, address, f"it has objcrop {found}; install {version} there"
        made, wrong = made_of(packed, name, folder, part)
        return made, address, wrong

    def free() -> int:
        return int(ray.cluster_resources().get("CPU", 0))

    task = ray.remote(num_cpus=1, max_retries=TRIES)(there)
    shared = (ray.put(ray.cloudpickle.dumps(make)), secrets.token_hex(8), __version__, os.getcwd())
    waiting: dict[Any, int] = {}
    upcoming = iter(parts.items())
    try:
        while True:
            for number, part in islice(upcoming, max(4 * free() - len(waiting), 0)):
                waiting[task.remote(*shared, ray.cloudpickle.dumps(part))] = number
            done, _ = ray.wait(list(waiting), timeout=60) if waiting else ([], [])
            if not done and not free():
                raise ObjcropError(f"no machine of the Ray cluster '{_cluster.get()}' has a processor to work with.")
            if not done and not waiting:
                return
            for each in done:
                number = waiting.pop(each)
                made, address, wrong = ray.get(each)
                if wrong:
                    raise ObjcropError(f"the machine {address} of the Ray cluster cannot do the work: {wrong}.")
                yield number, made
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ObjcropError(
            f"Ray gave a part of the work up after {TRIES + 1} tries ({reason}); look at its machines' memory and "
            "logs, and run the same command again."
        ) from None
    finally:
        for each in waiting:
            with suppress(Exception):
                ray.cancel(each, force=True)


_mine: dict[str, Callable[[Any], Any]] = {}  # what works in this worker process, by the name of the work


def made_of(packed: bytes, name: str, folder: str, part: bytes) -> tuple[Any, str]:
    """Return what a worker makes of a part, and what is wrong, "" for nothing.

    Args:
        packed: makes what works on a part, pickled.
        name: of the work.
        folder: the current one of the program that asks, to which paths may be relative.
        part: pickled.
    """
    import ray

    try:
        if name not in _mine:
            with suppress(OSError):
                os.chdir(folder)
            _mine.clear()
            _mine[name] = ray.cloudpickle.loads(packed)()
        return _mine[name](ray.cloudpickle.loads(part)), ""
    except ObjcropError as error:
        return None, str(error).rstrip(".")
