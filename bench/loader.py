"""Claim: on a CPU, `dali` yields at least 3 times the images per processor second of `torch` with colour="pil".

    objcrop bench loader --catalog voc.arrow --boxes gt.arrow -o bench/results/cpu_loader.json
    objcrop bench loader --device cuda --batch-size 64 --images 2048 …        on a GPU
    objcrop bench loader --only PIL --only "dali, cpu" …              only these
    objcrop bench loader --where …        one loader, stage by stage: bench/where.py

Our loaders make the same two moco-v2 views of the same images, from the same plan; rivals make theirs of the same
files, which bench/rivals says more about. Each is warmed up by eight batches or two a worker, then measured `repeats`
times in turn with the others, so that a busy minute hits all alike; medians are reported, and processor time counts
worker processes. Beside them stand ceilings (bench/ceilings.py). Whatever cannot run here is named with the reason:
also what crashes, since all is measured in a process of its own. Ratios within one run are what to trust.

Speed is worth what is fed: with `--sameness` each contender is audited, too (bench/audit.py), and the result says how
many of its checks the contender passes and which it fails.

The start is from making the loader to its first batch, in a new process that has imported PyTorch and not the
contender's own library. Memory is of all processes of the contender: what each has alone, and once what they share,
after the last batch. GPU memory is what the device has less of after a measurement than before the loader was made
(torch.cuda.mem_get_info: DALI and PyTorch both keep what they once took, so that is their peak; another program on the
device would count in).
"""

from __future__ import annotations

import gc
import os
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from objcrop.bench.audit import VERDICTS, bench_audit
from objcrop.bench.contenders import CONTENDERS
from objcrop.bench.rivals.wanted import Wanted
from objcrop.bench.stopwatch import Stopwatch, memory_of_all
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.child_process import QUIET, Child, ChildDied, alive
from objcrop.dali_pipes.crop_policy import crop_policy
from objcrop.dali_pipes.view_loader import ViewLoader
from objcrop.dali_pipes.views import Views
from objcrop.devices import device_kind
from objcrop.errors import one_of, refuse_without_gpu
from objcrop.extras import from_extra
from objcrop.progress import tracked
from objcrop.whole_file import save_picture

Batches = Callable[[Wanted], Generator[Any, None, None]]
WARM_UP = 8  # batches: workers started, code compiled, queues in their rhythm
SLOWEST = 20  # images a second that any machine decodes
QUICKER = 8  # times as many images are measured of those that work on a GPU
LONG = 10  # seconds after which a measurement ends, however few its images: not all that work on a GPU are quick


@dataclass
class Taken:
    """What was measured of a contender or ceiling, once.

    Attributes:
        watch: the time its batches took.
        start: the same of its first batch: from making the loader to having that.
        memory: of all its processes after the last batch, PyTorch's own included, bytes; 0 where it cannot be read.
        gpu_memory: that the device has less of than before, bytes.
        convert: seconds that writing files of its own took, 0 where it needs none or has them.
    """

    watch: Stopwatch = field(default_factory=Stopwatch)
    start: Stopwatch = field(default_factory=Stopwatch)
    memory: int = 0
    gpu_memory: int = 0
    convert: float = 0.0


def bench_loader(
    wanted: Wanted,
    *,
    repeats: int,
    images: int,
    sameness: bool = False,
    only: Sequence[str] = (),
    report: Callable[[dict[str, Any]], None] = lambda result: None,
) -> dict[str, Any]:
    """Measure every contender and ceiling.

    Args:
        wanted: the data and the views, see `asked_for`.
        repeats: measurements of each.
        images: in each measurement; below ten batches a worker the rhythm of the workers shows.
        sameness: whether each contender is audited, too (bench/audit.py).
        only: names of contenders and ceilings; none for all.
        report: is handed the result so far after each contender's first turn, each further turn, and each audit.

    Returns:
        `loaders` and `ceilings`: for each name what `row_of` returns; `left_out`: name to reason; `verdict`.

    Raises:
        UsageError: `only` names what there is not.
    """
    from objcrop.bench.ceilings import CEILINGS

    everything = (*CONTENDERS, *CEILINGS)
    asked = {one_of(name, everything, "only") for name in only} or set(everything)
    reasons = {name: CONTENDERS[name].left_out(wanted.device) for name in CONTENDERS if name in asked}
    left_out = {name: why for name, why in reasons.items() if why}
    lineup = [name for name in everything if name in asked and name not in left_out]
    taken: dict[str, list[Taken]] = {name: [] for name in lineup}
    same: dict[str, dict[str, Any]] = {}
    count = max(images // wanted.batch_size, 1)
    # Some decode the whole catalog before their first batch, without a word.
    quiet = QUIET + len(wanted.catalog) / SLOWEST

    def turn(child: Child, names: list[str]) -> None:
        for name in names:
            if name not in left_out:
                try:
                    taken[name].append(child(wanted, name, count))
                except ChildDied as died:
                    left_out[name] = str(died)
        report(_result(wanted, taken, left_out, same))

    # The first in a process of its own, whose memory and start are its alone.
    for name in tracked(lineup, len(lineup), "first turns"):
        with Child(measure, quiet) as child:
            turn(child, [name])
    with Child(measure, quiet) as child:
        for _ in tracked(range(repeats - 1), repeats - 1, "further turns"):
            turn(child, lineup)
    audited = [name for name in lineup if name in CONTENDERS and name not in left_out] if sameness else []
    for name in tracked(audited, len(audited), "audits"):
        same[name] = sameness_of(name, wanted.device)
        report(_result(wanted, taken, left_out, same))
    return _result(wanted, taken, left_out, same)


def _result(
    wanted: Wanted, taken: dict[str, list[Taken]], left_out: dict[str, str], same: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    """Return what `bench_loader` does, of what was taken so far."""
    views = len(crop_policy(wanted.crops).views)
    loaders, ceilings = {}, {}
    for name, turns in taken.items():
        if not turns or name in left_out:
            continue
        if name in CONTENDERS:
            ours = CONTENDERS[name].ours
            loaders[name] = {"ours": ours, **row_of(turns, views if ours else 2)}
            loaders[name] |= {"sameness": same[name]} if name in same else {}
        else:
            ceilings[name] = row_of(turns, 0)
    result = {**wanted.told(), "loaders": loaders, "ceilings": ceilings, "left_out": dict(left_out), "verdict": []}
    if {"torch, colour=pil", "dali, cpu"} <= loaders.keys():
        pil, dali = (loaders[name]["images_per_cpu_s"] for name in ("torch, colour=pil", "dali, cpu"))
        result["dali_over_pil_per_cpu_s"] = round(dali / pil, 2)
        result["verdict"] = [
            f"dali on the CPU: {dali / pil:.1f} times the images per processor second of the PIL chain."
        ]
    return result


def measure(wanted: Wanted, name: str, count: int) -> Taken:
    """Be a child: return what batches of a contender or ceiling took.

    Args:
        wanted: what is asked for.
        name: of the contender or ceiling.
        count: batches; of what is fast enough more are taken, for a clock to tell.
    """
    if name not in CONTENDERS:
        from objcrop.bench.ceilings import CEILINGS  # and with it DALI, whose memory would be that of every rival

        begin, times = CEILINGS[name]
        return lap(begin, wanted, times * count)
    contender = CONTENDERS[name]
    count *= QUICKER if contender.needs_gpu else 1
    warm_up = max(WARM_UP, 2 * wanted.workers) if contender.processes else WARM_UP
    ahead = 2 * max(wanted.workers, 1) + 8  # batches that a loader has begun when the last one is taken
    times = -(-(warm_up + count + ahead) * wanted.batch_size // len(wanted.catalog))
    asked = replace(wanted, folder=wanted.folder / name, times=times)
    convert = 0.0
    if contender.converts and not asked.folder.exists():
        began = time.perf_counter()
        asked.folder.mkdir()
        contender.convert(asked)
        convert = time.perf_counter() - began
    return replace(lap(contender.batches, asked, count, warm_up), convert=convert)


def lap(begin: Batches, wanted: Wanted, count: int, warm_up: int = WARM_UP) -> Taken:
    """Take the time of `count` batches after a warm-up of so many."""
    on_gpu = wanted.device == "cuda"
    # Also before workers are forked: a pipeline of DALI that a child inherits and destroys would hang it.
    free_before = free_memory(on_gpu)
    taken = Taken()
    with closing(begin(wanted)) as batches:
        taken.start.lap(_until_done(islice(batches, 1), on_gpu))
        for _ in alive(islice(batches, warm_up - 1)):
            pass
        taken.watch.lap(_until_done(alive(_not_too_long(batches, count)), on_gpu))
        taken.memory = memory_of_all()
        taken.gpu_memory = free_before - torch.cuda.mem_get_info()[0] if on_gpu else 0
    return taken


def sameness_of(name: str, device: str) -> dict[str, Any]:
    """Audit a contender in a process of its own.

    Returns:
        `passed` of `checks`, their numbers; `failed` and `cannot_tell`, name to what was seen; or `error`.
    """
    with Child(audit_contender, 5 * QUIET) as child:  # what was seen is read without a word
        try:
            checks = child(name, device)["checks"]
        except ChildDied as died:
            return {"error": str(died)}
    by = {
        verdict: {key: check["sentence"] for key, check in checks.items() if check["verdict"] == verdict}
        for verdict in VERDICTS
    }
    counts = {"passed": len(by["passed"]), "checks": len(checks)}
    return {**counts, "failed": by["failed"], "cannot_tell": by["cannot tell"]}


def audit_contender(name: str, device: str) -> dict[str, Any]:
    """Be a child: audit a contender."""
    return bench_audit(name, partial(CONTENDERS[name].audited, device=device))


def _until_done(batches: Iterator[Any], on_gpu: bool) -> Iterator[Any]:
    """Yield the batches; the end comes when the device has made the last one."""
    yield from batches
    if on_gpu:
        torch.cuda.synchronize()


def _not_too_long(batches: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield so many batches, fewer where they take too long."""
    ends = time.perf_counter() + LONG
    for batch in islice(batches, count):
        yield batch
        if time.perf_counter() > ends:
            return


def free_memory(on_gpu: bool) -> int:
    """Let go of what loaders before left behind; return the bytes free on the GPU, 0 without one."""
    gc.collect()
    if not on_gpu:
        return 0
    from nvidia.dali.backend import ReleaseUnusedMemory  # type: ignore[attr-defined]

    ReleaseUnusedMemory()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info()[0]


def row_of(taken: list[Taken], views: int) -> dict[str, Any]:
    """Return the stopwatch's summary, and of a contender views a second.

    Also CPU seconds per 1,000 images, seconds to the first batch and memory in MiB, both of the first turn, as is the
    time to write files of its own; and of one on a GPU the memory it took there.
    """
    watch = Stopwatch()
    for each in taken:
        watch.add(each.watch)
    row: dict[str, Any] = watch.summary()
    if views:
        row["views_per_s"] = round(views * row["images_per_s"], 1)
    row["cpu_s_per_1000_images"] = round(1000 / row["images_per_cpu_s"], 3)
    first = taken[0]
    row["start_s"], row["start_cpu_s"] = round(first.start.seconds[0], 3), round(first.start.cpu[0], 3)
    for key, value in (("memory_mib", first.memory), ("gpu_memory_mib", max(each.gpu_memory for each in taken))):
        if value:
            row[key] = round(value / 2**20)
    if first.convert:
        row["convert_s"] = round(first.convert, 3)
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
    colours = ["#bbbbbb" if name in drawn else "#1f6fb2" if rows[name]["ours"] else "#e0a458" for name in names]
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
