"""Proposals that look at the images: part by part, in worker processes, resumable, sharded over ranks.

The catalog is cut into parts of a fixed number of rows. A part is what a worker takes, what is written to disk at once
and what a broken run goes on from; which worker, rank or day makes it does not change it. Images that cannot be read
get no boxes and are listed.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.bad_images import open_upright
from objcrop.errors import ObjcropError

Image = npt.NDArray[np.uint8]
Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
# From upright RGB images (H, W, 3) to boxes (k, 4), in pixels of the image, and scores (k,) of each, best first.
Proposer = Callable[[Sequence[Image]], Sequence[Found]]


def propose_from_images(
    catalog: Catalog,
    method: str,
    parameters: dict[str, Any],
    make: Callable[[], Proposer],
    *,
    parts: str | os.PathLike[str] | None,
    rows: int,
    workers: int,
) -> BoxTable:
    """Run a proposer over a catalog.

    Args:
        catalog: the images.
        method: its name, for the table.
        parameters: its options, for the table; boxes in `parts` that other options made are refused.
        make: makes the proposer, once in each worker; must be picklable where there are workers.
        parts: folder for finished parts, kept when the run breaks and removed when it is done; None for a temporary
            one, which is what a run that cannot be resumed wants.
        rows: of a part.
        workers: processes; 0 works in this one, where a proposer may use a GPU.

    Returns:
        The boxes, on rank 0; on other ranks the empty table of their share.

    Raises:
        ObjcropError: the folder holds parts of something else or cannot be written.
    """
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    with ExitStack() as stack:
        folder = Path(parts or stack.enter_context(tempfile.TemporaryDirectory(prefix="objcrop-parts-")))
        _open(folder, {"method": method, "parameters": parameters, "catalog": catalog.fingerprint, "rows": rows})
        count = -(-len(catalog) // rows)
        missing = [part for part in range(rank, count, world) if not _file(folder, part).exists()]
        bar = _bar(rank)
        stack.enter_context(bar)
        task = bar.add_task(method, total=len(catalog), completed=len(catalog) - len(missing) * rows)
        for _ in _run(catalog, make, missing, rows, workers, folder):
            bar.advance(task, rows)
        if rank:
            return BoxTable.from_arrays(catalog, [np.zeros((0, 4))] * len(catalog), method=method)
        while not all(_file(folder, part).exists() for part in range(count)):  # other ranks' shares
            time.sleep(0.2)
        table, bad = _joined(catalog, folder, count, method, parameters)
        if bad:
            _list_bad(Path(parts) if parts else None, catalog, bad)
        if parts is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return table


def _bar(rank: int) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns)
    bar.disable = rank > 0 or not bar.console.is_terminal
    return bar


def _run(
    catalog: Catalog, make: Callable[[], Proposer], parts: list[int], rows: int, workers: int, folder: Path
) -> Iterator[int]:
    """Make the parts, each written as soon as it is there; yield their numbers."""
    if not parts:
        return
    if workers == 0:
        proposer = make()
        with ThreadPoolExecutor(os.cpu_count() or 1) as readers:  # decoding leaves Python's lock
            reading: Future[Any] | None = None
            ranges = [range(part * rows, min((part + 1) * rows, len(catalog))) for part in parts]
            with ThreadPoolExecutor(1) as ahead:
                for number, part in enumerate(parts):
                    batch = reading.result() if reading else _read(catalog, ranges[number], readers.map)
                    if number + 1 < len(parts):
                        reading = ahead.submit(_read, catalog, ranges[number + 1], readers.map)
                    _write(folder, part, *_proposed(proposer, batch))
                    yield part
        return
    with ProcessPoolExecutor(workers, get_context("spawn"), _begin, (catalog, make, rows, folder)) as pool:
        waiting: set[Future[int]] = set()
        upcoming = iter(parts)
        try:
            while True:
                for part in upcoming:
                    waiting.add(pool.submit(_part, part))
                    if len(waiting) >= 2 * workers:
                        break
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        finally:
            pool.shutdown(cancel_futures=True)


_mine: dict[str, Any] = {}  # a worker's own catalog and proposer


def _begin(catalog: Catalog, make: Callable[[], Proposer], rows: int, folder: Path) -> None:
    import signal

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    _mine.update(catalog=catalog, proposer=make(), rows=rows, folder=folder)


def _part(part: int) -> int:
    catalog, rows = _mine["catalog"], _mine["rows"]
    batch = _read(catalog, range(part * rows, min((part + 1) * rows, len(catalog))), map)
    _write(_mine["folder"], part, *_proposed(_mine["proposer"], batch))
    return part


def _read(catalog: Catalog, rows: range, over: Callable[..., Any]) -> list[Image | str]:
    """Return each row's image, or why it cannot be read."""

    def one(row: int) -> Image | str:
        try:
            return np.asarray(open_upright(catalog.path(row), tuple(catalog.sizes[row])))
        except ObjcropError as error:
            return str(error)

    return list(over(one, rows))


def _proposed(proposer: Proposer, batch: list[Image | str]) -> tuple[list[Found], list[str]]:
    """Return boxes and scores, and the reason ("" for none) that there are none, of every image of a part."""
    found = iter(proposer([image for image in batch if not isinstance(image, str)]))
    nothing = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
    results = [nothing if isinstance(image, str) else next(found) for image in batch]
    return results, [image if isinstance(image, str) else "" for image in batch]


def _file(folder: Path, part: int) -> Path:
    return folder / f"{part:07d}.npz"


def _open(folder: Path, facts: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said = folder / "made_by.json"
        text = json.dumps(facts, sort_keys=True) + "\n"
        if said.exists() and said.read_text(encoding="utf-8") != text:
            raise ObjcropError(
                f"{folder} holds parts that another method, option or catalog made; delete it, or name another -o."
            )
        handle, part = tempfile.mkstemp(dir=folder, prefix=".made_by")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.replace(part, said)
    except OSError as error:
        raise ObjcropError(f"{folder} cannot be written ({error.strerror}); name another -o.") from None


def _write(folder: Path, part: int, found: list[Found], reasons: list[str]) -> None:
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=folder, prefix=".part")
        with os.fdopen(handle, "wb") as file:
            np.savez(
                file,
                boxes=np.concatenate([boxes for boxes, _ in found]).astype(np.float32),
                scores=np.concatenate([scores for _, scores in found]).astype(np.float32),
                counts=np.array([len(boxes) for boxes, _ in found]),
                reasons=np.array(reasons),
            )
        os.replace(temporary, _file(folder, part))
    except OSError as error:
        raise ObjcropError(
            f"{folder} cannot be written ({error.strerror}); free some space and run the same command again: what is "
            "done is kept."
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _joined(
    catalog: Catalog, folder: Path, count: int, method: str, parameters: dict[str, Any]
) -> tuple[BoxTable, dict[int, str]]:
    boxes, scores, counts, reasons = [], [], [], []
    for part in range(count):
        with np.load(_file(folder, part)) as held:
            boxes.append(held["boxes"])
            scores.append(held["scores"])
            counts.append(held["counts"])
            reasons += held["reasons"].tolist()
    rows = np.repeat(np.arange(len(catalog)), np.concatenate(counts)) if counts else np.zeros(0, np.int64)
    flat = np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32)
    flat_scores = np.concatenate(scores) if scores else np.zeros(0, np.float32)
    table = BoxTable.from_flat(catalog, rows, flat, flat_scores, method, parameters)
    return table, {row: reason for row, reason in enumerate(reasons) if reason}


def _list_bad(parts: Path | None, catalog: Catalog, bad: dict[int, str]) -> None:
    """Say how many images have no boxes for being unreadable, and list them beside the output."""
    import logging

    where = ""
    if parts is not None:
        listing = parts.with_suffix(".bad.txt")
        with suppress(OSError):
            lines = (f"{catalog.table['key'][row].as_py()}\t{reason}\n" for row, reason in bad.items())
            listing.write_text("".join(lines), encoding="utf-8")
            where = f"; they are listed in {listing}"
    first = next(iter(bad))
    logging.getLogger("objcrop").warning(
        "%d images cannot be read and have no boxes (the first: %s %s)%s.",
        len(bad),
        catalog.table["key"][first].as_py(),
        bad[first],
        where,
    )
