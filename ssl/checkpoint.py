"""Checkpoints: everything a run needs to go on, written whole or not at all, read without running code.

The one before is kept as previous.pt, and found where last.pt is damaged or a kill fell between the two.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from objcrop.errors import ObjcropError
from objcrop.whole_file import whole_file

VERSION = 2


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
        raise ObjcropError(
            f"the checkpoint {path} cannot be written ({error}); free some space and go on with --resume: the one "
            "before is kept."
        ) from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a checkpoint onto the CPU.

    Raises:
        ObjcropError: it is missing, truncated or no objcrop checkpoint.
    """
    file = Path(path)
    if not file.is_file():
        raise ObjcropError(f"the checkpoint {file} is not there; `objcrop pretrain` writes last.pt in its run folder.")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch each have their own
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        raise ObjcropError(f"{file} is truncated or no checkpoint ({reason}).") from None
    if not isinstance(content, dict) or content.get("kind") != "objcrop checkpoint":
        raise ObjcropError(f"{file} is not a checkpoint of objcrop.")
    if content["version"] != VERSION:
        older = "an older" if content["version"] < VERSION else "a newer"
        raise ObjcropError(f"{file} was written by {older} objcrop (format {content['version']}, not {VERSION}).")
    return content


def load_newest(path: Path) -> dict[str, Any]:
    """Read the checkpoint at `path`, or the one before it where that is damaged or missing.

    A damaged one is set aside as damaged.pt, lest it becomes "the one before" at the next save.

    Raises:
        ObjcropError: neither can be read; the sentence is about the first.
    """
    try:
        return load_checkpoint(path)
    except ObjcropError as error:
        try:
            content = load_checkpoint(previous(path))
        except ObjcropError:
            raise error from None
        with suppress(FileNotFoundError):  # missing, or another rank was here first
            os.replace(path, path.with_name("damaged.pt"))
        logging.getLogger("objcrop").warning("%s Going on from %s.", error, previous(path))
        return content
