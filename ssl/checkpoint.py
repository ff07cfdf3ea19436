"""Checkpoints: everything a run needs to go on, written whole or not at all, read without running code."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

from objcrop.errors import ObjcropError

VERSION = 1


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write `content` (tensors, numbers, strings, lists, dicts); the file that was there stays until the end.

    Raises:
        ObjcropError: it cannot be written.
    """
    handle, part = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save({"kind": "objcrop checkpoint", "version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(part, 0o644)
        os.replace(part, path)
    except (OSError, RuntimeError) as error:
        raise ObjcropError(
            f"the checkpoint {path} cannot be written ({error}); free some space, the last one is kept."
        ) from error
    finally:
        Path(part).unlink(missing_ok=True)


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
    if content["version"] > VERSION:
        raise ObjcropError(f"{file} was written by a newer objcrop (version {content['version']}); upgrade to read it.")
    return content
