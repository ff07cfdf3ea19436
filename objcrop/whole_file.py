"""Files written whole or not at all: whoever reads one meets the old content or the new, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Give an empty file beside `path` to write to; it becomes `path` when the block ends, and is removed if it fails.

    Args:
        path: the file to make or replace.

    Raises:
        OSError: it cannot be made or renamed; what was there stays.
    """
    target = Path(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    part = Path(name)
    try:
        os.close(handle)
        yield part
        part.chmod(0o644)  # mkstemp's files are for their owner alone
        os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)
