"""Checkpoints: everything a run needs to go on, written whole or not at all, read without running code.

The one before is kept as previous.pt, and found where last.pt is damaged or a kill fell between the two.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from objcrop.errors import ObjcropError, way_out
from objcrop.ranks import gather_ranks, wait_for_ranks
from objcrop.whole_file import regular_file, whole_file

VERSION = 2
BACKBONE = ("recipe", "method")  # what a probe or an export needs
PARTS = {"step": int, "method": dict, "optimiser": dict, "loader": dict, "watch": dict, "recipe": dict}


def previous(path: Path) -> Path:
    """Return where the checkpoint before the one at `path` is kept."""
    return path.with_name("previous.pt")


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, lists, dicts); the file that was there becomes `previous(path)`.

    Raises:
        ObjcropError: it cannot be written; what was there stays.
    """
    try:
        with whole_file(path) as part:
            with part.open("wb") as file:
                torch.save({"kind": "objcrop checkpoint", "version": VERSION, **content}, file)
                file.flush()
                os.fsync(file.fileno())
            if path.exists():
                os.replace(path, previous(path))
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        way = way_out("go on with --resume", "resume the run")
        raise ObjcropError(
            f"the checkpoint {path} cannot be written ({reason}); free some space and {way}: the one before is kept."
        ) from error


def load_checkpoint(path: str | os.PathLike[str], needs: Iterable[str] = ()) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Args:
        path: the file.
        needs: what it must hold, of `PARTS`.

    Raises:
        ObjcropError: it is missing, truncated, damaged or no objcrop checkpoint.
    """
    file = regular_file(path, "checkpoint", "`objcrop pretrain` writes last.pt in its run folder")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ObjcropError(f"{file} is truncated or no checkpoint ({reason}).") from None
    if not isinstance(content, dict) or content.get("kind") != "objcrop checkpoint":
        raise ObjcropError(f"{file} is not a checkpoint of objcrop.")
    if content.get("version") != VERSION:
        raise ObjcropError(f"{file} was written by another objcrop (format {content.get('version')}, not {VERSION}).")
    for name in needs:
        if name not in content:
            raise ObjcropError(f"{file} is damaged: it holds no {name}.")
    wrong = [name for name, of in PARTS.items() if name in content and not isinstance(content[name], of)]
    recipe = content.get("recipe", {"arch": "", "size": 0})
    if wrong or not (isinstance(recipe.get("arch"), str) and type(recipe.get("size")) is int):
        raise ObjcropError(f"{file} is damaged: its {(wrong or ['recipe'])[0]} is not what it must be.")
    if not all(isinstance(value, torch.Tensor) for value in content.get("method", {}).values()):
        raise ObjcropError(f"{file} is damaged: its method holds something that is no tensor.")
    logging.getLogger("objcrop").info("Read the checkpoint %s.", file)
    return content


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Turn what torch and others raise when a checkpoint's parts do not fit into a sentence.

    Raises:
        ObjcropError: something does not fit.
    """
    try:
        yield
    except (RuntimeError, KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ObjcropError(
            f"{path} does not fit this run ({what}); resume with what the run began with, or name another folder."
        ) from None


def load_newest(path: Path) -> dict[str, Any]:
    """Read the checkpoint at `path`, whole, or the one before it where that is damaged or missing.

    A damaged one is set aside as damaged.pt, lest it becomes "the one before" at the next save.

    Raises:
        ObjcropError: neither can be read; the sentence is about the first.
    """
    try:
        return load_checkpoint(path, PARTS)
    except ObjcropError as error:
        try:
            content = load_checkpoint(previous(path), PARTS)
        except ObjcropError:
            raise error from None
        with suppress(OSError):  # missing, or another rank was here first
            os.replace(path, path.with_name("damaged.pt"))
        logging.getLogger("objcrop").warning("%s Going on from %s.", error, previous(path))
        return content


def read_by_all(path: Path, step: int, device: torch.device) -> None:
    """Return once every rank has read the checkpoint at `path`.

    Args:
        path: the checkpoint, for the error.
        step: that this rank read.
        device: of this rank.

    Raises:
        ObjcropError: the ranks read different steps.
    """
    wait_for_ranks("all have read the checkpoint")
    steps = gather_ranks(torch.tensor(step, device=device)).tolist()
    if min(steps) != max(steps):
        seen = " and ".join(map(str, sorted(set(steps))))
        raise ObjcropError(
            f"the ranks read steps {seen} from {path}: let the run folder lie on a disk that all machines share."
        )
