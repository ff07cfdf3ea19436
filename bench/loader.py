"""Claim: on a CPU, `dali` yields at least 3 times the images per processor second of `torch` with colour="pil".

    objcrop bench loader --catalog voc.arrow --boxes gt.arrow -o bench/results/cpu_loader.json
    objcrop bench loader --device cuda --batch-size 64 --images 2048 …        on a GPU
    objcrop bench loader --where …        one loader, stage by stage: bench/where.py

Our loaders make the same two moco-v2 views of the same images, from the same plan; rivals make theirs of the same
files, which bench/rivals says more about. Each is warmed up by eight batches or two a worker, then measured `repeats`
times in turn with the others, so that a busy minute hits all alike; medians are reported, and processor time counts
worker processes. Beside them stand ceilings (bench/ceilings.py). Whatever cannot run here is named with the reason:
also what crashes, since all is measured in a process of its own. Ratios within one run are what to trust.

GPU memory is what the device has less of after a measurement than before the loader was made (torch.cuda.mem_get_info:
DALI and PyTorch both keep what they once took, so that is their peak; another program on the device would count in).
"""

from __future__ import annotations

import gc
import os
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from objcrop.bench.ceilings import CEILINGS
from objcrop.bench.machine import installed
from objcrop.bench.rivals.batch_decoded import nvimgcodec_v2, torchcodec_v2
from objcrop.bench.rivals.dali_torchvision import dali_torchvision
from objcrop.bench.rivals.ffcv import ffcv
from objcrop.bench.rivals.solo_dali import solo_dali
from objcrop.bench.rivals.torchvision_v2 import torchvision_v2
from objcrop.bench.rivals.wanted import Wanted
from objcrop.bench.stopwatch import Stopwatch
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.child_process import QUIET, Child, ChildDied, alive
from objcrop.dali_pipes.crop_policy import crop_policy
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.views import Views
from objcrop.devices import device_kind
from objcrop.errors import one_of, refuse_without_gpu
from objcrop.extras import from_extra
from objcrop.whole_file import save_picture

Batches = Callable[[Wanted], Generator[Any, None, None]]
WARM_UP = 8  # batches: workers started, code compiled, queues in their rhythm
SLOWEST = 20  # images a second that any machine decodes
QUICKER = 8  # times as many images are measured of those that work on a GPU


def our(wanted: Wanted, *, made_on: str | None = None, **options: Any) -> Generator[Views, None, None]:
    """Yield batches of one of our loaders without end, made on `made_on` and handed out on the device wanted."""
    with wanted.loader(**options, **({"device": made_on} if made_on else {})) as loader:
        for views in endless_views(loader):
            yield views.to(wanted.device)


@dataclass(frozen=True)
class Contender:
    """One that is measured.

    Attributes:
        batches: gives them without end.
        needs_gpu: makes its views on one.
        package: that must be installed.
        ours: made from the plan; the others are rivals.
        processes: it works in processes of its own, each of which takes batches to begin.
    """

    batches: Batches
    needs_gpu: bool = False
    package: str | None = None
    ours: bool = False
    processes: bool = True

    def left_out(self, device: str) -> str | None:
        """Return why it cannot be measured, None where it can."""
        if self.package is not None and not installed(self.package):
            return "not installed"
        if self.needs_gpu and device != "cuda":
            return "needs --device cuda" if torch.cuda.is_available() else "needs a GPU"
        return None


CONTENDERS: dict[str, Contender] = {
    "torch, colour=pil": Contender(partial(our, backend="torch", colour="pil"), ours=True),
    "torch, colour=float": Contender(partial(our, backend="torch", colour="float"), ours=True),
    "dali, cpu": Contender(partial(our, backend="dali", made_on="cpu"), ours=True, processes=False),
    "dali, cuda": Contender(partial(our, backend="dali"), needs_gpu=True, ours=True, processes=False),
    "dali, cpu, cache=host": Contender(
        partial(our, backend="dali", made_on="cpu", cache="host"), ours=True, processes=False
    ),
    "dali, cuda, cache=host": Contender(
        partial(our, backend="dali", cache="host"), needs_gpu=True, ours=True, processes=False
    ),
    "dali, cuda, cache=device": Contender(
        partial(our, backend="dali", cache="device"), needs_gpu=True, ours=True, processes=False
    ),
    "torchvision v2": Contender(torchvision_v2),
    "nvImageCodec, torchvision v2": Contender(partial(nvimgcodec_v2, device="cpu"), package="nvidia.nvimgcodec"),
    "nvImageCodec, torchvision v2, gpu": Contender(
        partial(nvimgcodec_v2, device="cuda"), needs_gpu=True, package="nvidia.nvimgcodec"
    ),
    "torchcodec, torchvision v2, gpu": Contender(
        partial(torchcodec_v2, device="cuda"), needs_gpu=True, package="torchcodec"
    ),
    "dali's torchvision, gpu": Contender(
        partial(dali_torchvision, device="gpu"), needs_gpu=True, package="nvidia.dali.experimental.torchvision"
    ),
    "solo-learn's dali, cpu": Contender(partial(solo_dali, device="cpu")),
    "solo-learn's dali, gpu": Contender(partial(solo_dali, device="gpu"), needs_gpu=True),
    "ffcv, no colour": Contender(ffcv, package="ffcv"),
}


def bench_loader(wanted: Wanted, *, repeats: int, images: int) -> dict[str, Any]:
    """Measure every contender and ceiling.

    Args:
        wanted: the data and the views, see `asked_for`.
        repeats: measurements of each.
        images: in each measurement; below ten batches a worker the rhythm of the workers shows.

    Returns:
        `loaders` and `ceilings`: for each name what `row_of` returns; `left_out`: name to reason; `verdict`.
    """
    left_out = {name: why for name, contender in CONTENDERS.items() if (why := contender.left_out(wanted.device))}
    lineup = [name for name in (*CONTENDERS, *CEILINGS) if name not in left_out]
    watches = {name: Stopwatch() for name in lineup}
    memory: dict[str, float] = dict.fromkeys(lineup, 0.0)
    # Some decode the whole catalog before their first batch, without a word.
    with Child(measure, QUIET + len(wanted.catalog) / SLOWEST) as child:
        for _ in range(repeats):
            for name in lineup:
                if name not in left_out:
                    try:
                        watch, taken = child(wanted, name, max(images // wanted.batch_size, 1))
                        watches[name].add(watch)
                        memory[name] = max(memory[name], taken)
                    except ChildDied as died:
                        left_out[name] = str(died)
    views = {name: len(crop_policy(wanted.crops).views) if CONTENDERS[name].ours else 2 for name in CONTENDERS}
    rows = {name: row_of(watches[name], views.get(name, 0), memory[name]) for name in lineup if name not in left_out}
    result = {
        **wanted.told(),
        "loaders": {name: row for name, row in rows.items() if name in CONTENDERS},
        "ceilings": {name: row for name, row in rows.items() if name in CEILINGS},
        "left_out": left_out,
        "verdict": [],
    }
    if {"torch, colour=pil", "dali, cpu"} <= rows.keys():
        pil, dali = (rows[name]["images_per_cpu_s"] for name in ("torch, colour=pil", "dali, cpu"))
        result["dali_over_pil_per_cpu_s"] = round(dali / pil, 2)
        result["verdict"] = [
            f"dali on the CPU: {dali / pil:.1f} times the images per processor second of the PIL chain."
        ]
    return result


def measure(wanted: Wanted, name: str, count: int) -> tuple[Stopwatch, float]:
    """Be a child: return the time that batches of a contender or ceiling took, and the GPU memory, MiB.

    Args:
        wanted: what is asked for.
        name: of the contender or ceiling.
        count: batches; of what is fast enough more are taken, for a clock to tell.
    """
    warm_up = WARM_UP
    if name in CEILINGS:
        begin, times = CEILINGS[name]
    else:
        contender = CONTENDERS[name]
        begin, times = contender.batches, QUICKER if contender.needs_gpu else 1
        if contender.processes:
            warm_up = max(warm_up, 2 * wanted.workers)
    watch = Stopwatch()
    memory = lap(watch, begin, wanted, times * count, warm_up)
    return watch, memory


def lap(watch: Stopwatch, begin: Batches, wanted: Wanted, count: int, warm_up: int = WARM_UP) -> float:
    """Take the time of `count` batches after a warm-up of so many; return the GPU memory taken, MiB."""
    on_gpu = wanted.device == "cuda"
    # Also before workers are forked: a pipeline of DALI that a child inherits and destroys would hang it.
    free_before = free_memory(on_gpu)
    with closing(begin(wanted)) as batches:
        for _ in alive(islice(batches, warm_up)):
            pass
        watch.lap(_until_done(alive(islice(batches, count)), on_gpu))
        return (free_before - torch.cuda.mem_get_info()[0]) / 2**20 if on_gpu else 0.0


def _until_done(batches: Iterator[Any], on_gpu: bool) -> Iterator[Any]:
    """Yield the batches; the end comes when the device has made the last one."""
    yield from batches
    if on_gpu:
        torch.cuda.synchronize()


def free_memory(on_gpu: bool) -> int:
    """Let go of what loaders before left behind; return the bytes free on the GPU, 0 without one."""
    from nvidia.dali.backend import ReleaseUnusedMemory  # type: ignore[attr-defined]

    gc.collect()
    if not on_gpu:
        return 0
    ReleaseUnusedMemory()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def row_of(watch: Stopwatch, views: int, memory: float) -> dict[str, float | int]:
    """Return the stopwatch's summary, and of a contender views a second.

    Also CPU seconds per 1,000 images, and of one on a GPU the memory it took, MiB.
    """
    row = watch.summary()
    if views:
        row["views_per_s"] = round(views * row["images_per_s"], 1)
    row["cpu_s_per_1000_images"] = round(1000 / row["images_per_cpu_s"], 3)
    if memory:
        row["gpu_memory_mib"] = round(memory)
    return row


def endless_views(loader: ViewLoader) -> Generator[Views, None, None]:
    """Yield batches epoch after epoch."""
    while True:
        yield from loader


@contextmanager
def asked_for(
    catalog: str | os.PathLike[str] | None = None,
    boxes: str | os.PathLike[str] | None = None,
    *,
    crops: str = "obj-obj+dilate",
    size: int = 224,
    batch_size: int = 32,
    device: str = "auto",
    workers: int | None = None,
    threads: int | None = None,
    images: int = 256,
) -> Iterator[Wanted]:
    """Load the catalog and the boxes, or draw scenes, up to 256 or two batches, in a folder that is gone afterwards.

    Args:
        catalog: file of the images; None draws scenes for the purpose.
        boxes: file of their boxes.
        crops: policy.
        size: side of the views, pixels.
        batch_size: images in a batch.
        device: "auto", "cpu" or "cuda": where the views must lie in the end.
        workers: processes of loaders that work in processes; None for one a core.
        threads: of those that work in threads; None for one a core.
        images: in each measurement.

    Raises:
        UsageError: no GPU for "cuda".
    """
    refuse_without_gpu(one_of(device, ("auto", "cpu", "cuda"), "device"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory(prefix="objcrop-bench-") as name:
        photos, table = load_or_draw(catalog, boxes, Path(name), max(min(images, 256), 2 * batch_size))
        yield Wanted(
            photos,
            table,
            crops,
            size,
            batch_size,
            device_kind(device),
            cores if workers is None else workers,
            cores if threads is None else threads,
            Path(name),
            name_of_data(catalog),
        )


def name_of_data(catalog: str | os.PathLike[str] | None) -> str:
    """Return what a result says of where its images are from."""
    return "drawn scenes, 500×375" if catalog is None else Path(catalog).name


def load_or_draw(
    catalog: str | os.PathLike[str] | None, boxes: str | os.PathLike[str] | None, folder: Path, n: int
) -> tuple[Catalog, BoxTable | None]:
    """Return a catalog and its boxes; of n scenes drawn in the folder where no catalog is named."""
    if catalog is None:
        return drawn_scenes(folder, n)
    photos = Catalog.load(catalog)
    return photos, None if boxes is None else BoxTable.load(boxes, photos)


def drawn_scenes(folder: Path, n: int) -> tuple[Catalog, BoxTable]:
    """Draw n sample scenes; return their catalog and ground-truth boxes."""
    from objcrop.formats import index
    from objcrop.proposals import propose
    from objcrop.sample_scenes import draw_scenes

    draw_scenes(folder, n)
    catalog, _ = index(folder, "scenes")
    return catalog, propose(catalog, "gt")


def plot_loader(result: dict[str, Any], path: Path) -> None:
    """Draw images a second and processor seconds per 1,000 images, a bar a contender, a grey one a ceiling.

    Lines are the smallest and the largest of the repeats. A ceiling far above all contenders is written, not drawn.
    """
    Figure = from_extra("matplotlib.figure").Figure

    loaders = result["loaders"]
    highest = max(row["images_per_s_max"] for row in loaders.values())
    drawn = {name: row for name, row in result["ceilings"].items() if row["images_per_s"] <= 4 * highest}
    rows = {**loaders, **drawn}
    names = list(rows)[::-1]
    figure = Figure(figsize=(9, 1.2 + 0.35 * len(names)), layout="constrained")
    speed, cost = figure.subplots(1, 2, sharey=True)
    colours = ["#bbbbbb" if name in drawn else "#1f6fb2" if CONTENDERS[name].ours else "#e0a458" for name in names]
    rate = [rows[name]["images_per_s"] for name in names]
    low, high = ([rows[name][f"images_per_s_{end}"] for name in names] for end in ("min", "max"))
    speed.barh(names, rate, color=colours)
    speed.hlines(names, low, high, color="#222222", linewidth=1)
    price = [rows[name]["cpu_s_per_1000_images"] for name in names]
    cost.barh(names, price, color=colours)
    for ax, values, ends, label in (
        (speed, rate, high, "images/s"),
        (cost, price, price, "processor seconds per 1,000 images"),
    ):
        for place, (value, end) in enumerate(zip(values, ends)):
            ax.text(end, place, f"  {value:,.0f}" if value >= 10 else f"  {value:.1f}", va="center", fontsize=8)
        ax.set(xlabel=label, xlim=(0, 1.18 * max(ends)))
        ax.spines[["top", "right"]].set_visible(False)
    above = [
        f"not drawn: {n}, {r['images_per_s']:,.0f} images/s" for n, r in result["ceilings"].items() if n not in drawn
    ]
    figure.suptitle("\n".join(["blue: objcrop, orange: others, grey: ceilings", *above]), fontsize=9, x=0.01, ha="left")
    save_picture(figure, path)
