"""Proposals that look at the images: part by part, in worker processes or on a cluster, resumable, shared over ranks.

The catalog is cut into parts of a fixed number of rows. A part is what a worker takes, what is written to disk at once
and what a broken run goes on from; which worker, rank or day makes it does not change it. Images that cannot be read
get no boxes and are listed.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.read_image import BadImage, open_upright
from objcrop.errors import ObjcropError
from objcrop.parts import run_parts
from objcrop.progress import tracked
from objcrop.ranks import process_group, rank_and_world_size, share_of_ranks
from objcrop.ray_cluster import cluster_at_hand
from objcrop.whole_file import refuse_unwritable, regular_file, whole_file

Image = npt.NDArray[np.uint8]
Found = tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]
# From upright RGB images (H, W, 3) to boxes (k, 4), in pixels of the image, and scores (k,) of each, best first.
Proposer = Callable[[Sequence[Image]], Sequence[Found]]
NO_BOXES: Found = np.zeros((0, 4), np.float32), np.zeros(0, np.float32)
# Of a part: boxes and scores of every image, and why an image has none ("" where it was read).
Outcome = tuple[list[Found], list[str]]


def propose_from_images(
    catalog: Catalog,
    method: str,
    parameters: dict[str, Any],
    make: Callable[[], Proposer],
    *,
    parts: str | os.PathLike[str] | None,
    rows: int,
    workers: int,
    walk: Callable[[Catalog, Sequence[range], Any], Iterator[Outcome]] | None = None,
) -> BoxTable:
    """Run a proposer over a catalog.

    Args:
        catalog: the images.
        method: its name, for the table.
        parameters: its options, for the table; boxes in `parts` that other options made are refused.
        make: makes the proposer, once in each worker; must be picklable where there are workers.
        parts: folder for finished parts, kept when the run breaks and removed when it is done; None for a temporary
            one, which no other process sees, so that each rank makes all boxes for itself.
        rows: of a part.
        workers: processes; 0 works in this one. Inside `ray_cluster` the cluster's own do the work.
        walk: how the parts (rows of each) are read and given to the proposer where there are no workers; None reads
            with PIL.

    Returns:
        The boxes, on rank 0; on other ranks, where `parts` is shared, the empty table of their share.

    Raises:
        ObjcropError: the folder holds parts of something else or cannot be written, a worker process died, or no more
            parts came from other ranks, which are joined to a process group where they are in none.
    """
    rank, world = rank_and_world_size() if parts is not None else (0, 1)
    with ExitStack() as stack:
        if world > 1:
            stack.enter_context(process_group("gloo"))
        folder = Path(parts or stack.enter_context(tempfile.TemporaryDirectory(prefix="objcrop-parts-")))
        _open(folder, {"method": method, "parameters": parameters, "catalog": catalog.fingerprint, "rows": rows})
        parts_rows = [range(begin, min(begin + rows, len(catalog))) for begin in range(0, len(catalog), rows)]
        count = len(parts_rows)
        mine = range(rank, count, world)
        missing = {part: parts_rows[part] for part in mine if not _is_whole(folder, part, parts_rows[part])}
        total, left = (sum(map(len, cut)) for cut in ([parts_rows[part] for part in mine], missing.values()))
        if workers or cluster_at_hand():
            done = _kept(run_parts(partial(_Worker, catalog, make), missing, workers), folder)
        else:
            done = finished_parts(catalog, make, missing, walk or propose_with_pil, folder)
        if world > 1:
            done = share_of_ranks(
                done,
                f"their parts are in {folder} (what is done is kept, and a process without WORLD_SIZE in its "
                "environment makes the rest)",
            )
        if rank == 0:
            done = tracked(done, total, method, done=total - left, size=lambda part: len(missing[part]))
        for _ in done:
            pass
        if rank:
            return BoxTable.from_arrays(catalog, [np.zeros((0, 4))] * len(catalog), method=method)
        table, bad = _joined(catalog, folder, parts_rows, method, parameters)
        if bad:
            _list_bad(Path(parts) if parts else None, catalog, bad)
        if parts is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return table


def finished_parts(
    catalog: Catalog,
    make: Callable[[], Proposer],
    parts: dict[int, range],
    walk: Callable[[Catalog, Sequence[range], Any], Iterator[Outcome]],
    folder: Path,
) -> Iterator[int]:
    """Make the parts in this process, each written as soon as it is there; yield their numbers.

    Args:
        catalog: the images.
        make: makes the proposer.
        parts: rows of each part, by number.
        walk: see `propose_from_images`.
        folder: where they are written.
    """
    if parts:
        for part, (found, reasons) in zip(parts, walk(catalog, list(parts.values()), make())):
            _write(folder, part, found, reasons)
            yield part


def propose_with_pil(catalog: Catalog, parts: Sequence[range], proposer: Proposer) -> Iterator[Outcome]:
    """Propose for parts of a catalog, the next one read by threads meanwhile; see `propose_from_images`."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as readers, ThreadPoolExecutor(1) as ahead:
        reading: Future[Any] | None = None
        for rows, following in zip(parts, [*parts[1:], None]):
            batch = reading.result() if reading else read_images(catalog, rows, readers.map)
            reading = None if following is None else ahead.submit(read_images, catalog, following, readers.map)
            yield found_in(proposer, batch)


class _Worker:
    """Proposes for the images of a part, in a process of its own."""

    def __init__(self, catalog: Catalog, make: Callable[[], Proposer]) -> None:
        self.catalog, self.proposer = catalog, make()

    def __call__(self, rows: range) -> Outcome:
        return found_in(self.proposer, read_images(self.catalog, rows))


def _kept(made: Iterator[tuple[int, Outcome]], folder: Path) -> Iterator[int]:
    """Write each part as soon as it is made; yield its number."""
    for part, outcome in made:
        _write(folder, part, *outcome)
        yield part


def read_images(catalog: Catalog, rows: range, over: Callable[..., Any] = map) -> list[Image | str]:
    """Return each row's upright image, or why it cannot be read; `over` maps a function over the rows."""

    def one(row: int) -> Image | str:
        try:
            return np.asarray(open_upright(catalog, row))
        except BadImage as error:
            return str(error)

    catalog.image_bytes.ahead(rows)
    return list(over(one, rows))


def found_in(proposer: Proposer, batch: list[Image | str]) -> Outcome:
    """Propose for the images of a part that could be read."""
    found = iter(proposer([image for image in batch if not isinstance(image, str)]))
    results = [NO_BOXES if isinstance(image, str) else next(found) for image in batch]
    return results, [image if isinstance(image, str) else "" for image in batch]


def _file(folder: Path, part: int) -> Path:
    return folder / f"{part:07d}.npz"


def _open(folder: Path, facts: dict[str, Any]) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        said = folder / "made_by.json"
        text = json.dumps(facts, sort_keys=True) + "\n"
        refuse_unwritable(said)
        if said.exists() and said.read_text(encoding="utf-8", errors="replace") != text:
            raise ObjcropError(
                f"{folder} holds parts that another method, option or catalog made; delete it, or name another -o."
            )
        with whole_file(said) as part:
            part.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ObjcropError(f"{folder} cannot be written ({error.strerror}); name another -o.") from None


def _write(folder: Path, part: int, found: list[Found], reasons: list[str]) -> None:
    try:
        with whole_file(_file(folder, part)) as unfinished, unfinished.open("wb") as file:
            np.savez(
                file,
                boxes=np.concatenate([boxes for boxes, _ in found]).astype(np.float32),
                scores=np.concatenate([scores for _, scores in found]).astype(np.float32),
                counts=np.array([len(boxes) for boxes, _ in found]),
                reasons=np.array(reasons),
            )
    except OSError as error:
        raise ObjcropError(
            f"{folder} cannot be written ({error.strerror}); free some space and run the same command again: what is "
            "done is kept."
        ) from None


def _read(folder: Path, part: int, rows: range) -> tuple[npt.NDArray, npt.NDArray, npt.NDArray, list[str]]:
    """Return what `_write` wrote: boxes (m, 4), scores (m,), the number of boxes of each row, and why it has none.

    Raises:
        ObjcropError: the part is damaged.
    """
    file = regular_file(_file(folder, part), "part", "run the same command again, on a disk that all ranks see")
    try:
        with np.load(file) as held:
            boxes, scores, counts, reasons = (held[name] for name in ("boxes", "scores", "counts", "reasons"))
        if (
            (boxes.dtype, scores.dtype, counts.dtype.kind, reasons.dtype.kind) != (np.float32, np.float32, "i", "U")
            or boxes.shape != (len(scores), 4)
            or not counts.shape == reasons.shape == (len(rows),)
            or (counts < 0).any()
            or counts.sum() != len(boxes)
        ):
            raise ValueError("its arrays do not fit each other")
    except Exception as error:  # zip, zlib and NumPy each have their own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise ObjcropError(f"the part {file} is damaged ({reason}); run the same command again.") from None
    return boxes, scores, counts, reasons.tolist()


def _is_whole(folder: Path, part: int, rows: range) -> bool:
    """Whether a broken run left this part, so that it need not be made again."""
    if not os.path.lexists(_file(folder, part)):
        return False
    try:
        _read(folder, part, rows)
    except ObjcropError as error:
        logging.getLogger("objcrop").warning("%s; it is made again.", str(error).split(";")[0])
        with suppress(OSError):
            _file(folder, part).unlink()  # others wait until it is there
        return False
    return True


def _joined(
    catalog: Catalog, folder: Path, parts: Sequence[range], method: str, parameters: dict[str, Any]
) -> tuple[BoxTable, dict[int, str]]:
    boxes, scores, counts, reasons = [], [], [], []
    for part, of_part in enumerate(parts):
        held = _read(folder, part, of_part)
        boxes.append(held[0])
        scores.append(held[1])
        counts.append(held[2])
        reasons += held[3]
    rows = np.repeat(np.arange(len(catalog)), np.concatenate(counts)) if counts else np.zeros(0, np.int64)
    flat = np.concatenate(boxes) if boxes else np.zeros((0, 4), np.float32)
    flat_scores = np.concatenate(scores) if scores else np.zeros(0, np.float32)
    table = BoxTable.from_flat(catalog, rows, flat, flat_scores, method, parameters)
    return table, {row: reason for row, reason in enumerate(reasons) if reason}


def _list_bad(parts: Path | None, catalog: Catalog, bad: dict[int, str]) -> None:
    """Say how many images have no boxes for being unreadable, and list them beside the output."""
    where = ""
    if parts is not None:
        listing = parts.with_suffix(".bad.txt")
        with suppress(OSError):
            lines = (f"{catalog.table['key'][row].as_py()}\t{reason}\n" for row, reason in bad.items())
            with whole_file(listing) as part:
                part.write_text("".join(lines), encoding="utf-8")
            where = f"; they are listed in {listing}"
    first = next(iter(bad))
    logging.getLogger("objcrop").warning(
        "%d images cannot be read and have no boxes (the first: %s %s)%s.",
        len(bad),
        catalog.key(first),
        bad[first],
        where,
    )
