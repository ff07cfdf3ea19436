"""Claim: from a bucket 30 ms away images come at 90 % of a folder's speed or more, from a disk cache at all of it.

The latency is hidden; what remains is processor time of the loader's own process: a request takes some .25 ms of the 3
ms that an image takes in all. To put an image into the disk cache takes .12 ms more, once: with one core for the
loader, 92 % were seen of the epoch that fills it on a quiet machine, and 84 to 90 % beside other work.

    objcrop bench sources --catalog voc.arrow -o bench/results/cpu_sources.json

The same views by the DALI loader from a folder, a tar, a real S3 server on this machine (SeaweedFS) behind a network
that delays every answer (bench/s3_server.py), with no cache, with an empty disk cache and with a full one. One core
belongs to server and network, which a real bucket would not need here, the others to the loader, for every source
alike. On that core a process of the lowest priority takes what is left, lest a folder be measured beside a core at rest
and a bucket beside one at work: cores may share a clock, caches and execution units. Each source is measured `repeats`
times in turn with the others, from a new loader's first batch to the last; a share is the median of the shares of each
turn. Processor time is that of the loader's process; on a busy machine its share is what to trust.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

from objcrop.bench.loader import load_or_draw
from objcrop.bench.s3_server import s3_server
from objcrop.bench.stopwatch import Stopwatch
from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError
from objcrop.extras import from_extra
from objcrop.formats import index
from objcrop.image_bytes import IN_FLIGHT
from objcrop.progress import tracked

SPEEDS = ("images_per_s", "images_per_s_min", "images_per_s_max")


def bench_sources(
    catalog: str | os.PathLike[str] | None = None,
    *,
    images: int = 512,
    batch_size: int = 64,
    size: int = 224,
    delay: float = 0.03,
    repeats: int = 5,
) -> dict[str, Any]:
    """Return images a second by source, and the share of a folder's.

    Args:
        catalog: file of images that are files on this machine; None draws scenes for the purpose.
        images: of each measurement, from the beginning of the catalog.
        batch_size: images in a batch.
        size: side of the views, pixels.
        delay: seconds that each answer of the server is late.
        repeats: measurements of each source.

    Raises:
        ObjcropError: the server is not installed, there is one core only, or there are too few images.
    """
    with tempfile.TemporaryDirectory(prefix="objcrop-bench-") as name:
        here = Path(name)
        photos, _ = load_or_draw(catalog, None, here, images)
        images = min(images, len(photos)) // batch_size * batch_size
        if not images:
            raise ObjcropError(f"there are {len(photos)} images, fewer than a batch of {batch_size}; give more.")
        with _far_away(here, delay) as cores:
            sources = _laid_out(photos.take(range(images)), here)
            watches = {source: Stopwatch() for source in sources}
            cpu: dict[str, list[float]] = {source: [] for source in sources}
            for turn in tracked(range(repeats), repeats, "turns"):
                for source, watch in watches.items():
                    chosen = sources[source]
                    if "empty" in source:
                        chosen = chosen.cached_on_disk(here / f"empty{turn}", 100)
                    options: dict[str, Any] = {"size": size, "batch_size": batch_size, "rank": 0, "world_size": 1}
                    with load_views(chosen, **options, device="cpu", threads=cores) as loader:
                        before = time.process_time()
                        watch.lap(islice(iter(loader), len(loader)))
                        cpu[source].append(time.process_time() - before)
    rows = {name: {key: watch.summary()[key] for key in SPEEDS} for name, watch in watches.items()}
    for name, row in rows.items():
        row["share_of_folder"] = _share(watches["folder"].seconds, watches[name].seconds)
        row["cpu_ms_per_image"] = round(statistics.median(cpu[name]) * 1000 / images, 3)
        row["cpu_share_of_folder"] = _share(cpu["folder"], cpu[name])
        raw = {"seconds": watches[name].seconds, "cpu_seconds": cpu[name]}
        row["turns"] = {key: [round(value, 5) for value in values] for key, values in raw.items()}
    settings = {"images": images, "batch_size": batch_size, "size": size, "delay_s": delay, "repeats": repeats}
    return {**settings, "in_flight": IN_FLIGHT, "loader_cores": cores, "sources": rows}


def _share(of_folder: list[float], of_source: list[float]) -> float:
    return round(statistics.median(folder / source for folder, source in zip(of_folder, of_source)), 3)


@contextmanager
def _far_away(folder: Path, delay: float) -> Iterator[int]:
    """Run server and network on a core of their own, the environment pointing there; give the number of the others."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise ObjcropError("bench sources needs two cores, one of them for the server; there is one.")
    (folder / "server").mkdir()
    before = dict(os.environ)
    os.sched_setaffinity(0, cores[-1:])
    try:
        with s3_server(folder / "server") as server:
            command = [sys.executable, "-m", "objcrop.bench.s3_server", str(server.port), str(delay)]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as network:
                assert network.stdout is not None and network.stdin is not None
                os.environ.update(server.environment(int(network.stdout.readline())))
                with subprocess.Popen([sys.executable, "-c", "import os; os.nice(19)\nwhile True: pass"]) as at_work:
                    os.sched_setaffinity(0, cores[:-1])
                    try:
                        yield len(cores) - 1
                    finally:
                        at_work.kill()
                network.stdin.close()
    finally:
        os.sched_setaffinity(0, cores)
        os.environ.clear()
        os.environ.update(before)


def _laid_out(photos: Catalog, folder: Path) -> dict[str, Catalog]:
    """Put the images into a tar and the bucket, and return the catalog of each source."""
    from_url = from_extra("obstore.store").from_url
    plain: Any = {"client_options": {"allow_http": True}}
    bucket = from_url("s3://bucket", **plain)
    with tarfile.open(folder / "photos.tar", "w") as tar:
        for row in range(len(photos)):
            data = photos.image_bytes(row)
            info = tarfile.TarInfo(photos.key(row))
            info.size = len(data)
            with open(photos.path(row), "rb") as file:
                tar.addfile(info, file)
            bucket.put(f"photos/{photos.key(row)}", data)
    far = Catalog(photos.table, "s3://bucket/photos", photos.classes, photos.fingerprint)
    full = far.cached_on_disk(folder / "full", 100)
    for row in range(len(full)):
        full.image_bytes(row)
    tarred, _ = index(folder / "photos.tar", "webdataset")
    bucket_names = {"bucket": far, "bucket, empty disk cache": far, "bucket, full disk cache": full}
    return {"folder": photos, "tar": tarred, **bucket_names}
