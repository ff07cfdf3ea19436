"""The Arrow or Parquet files that make up a source: one file, or a folder's, of one split where it holds several.

Layouts of Hugging Face `datasets`: what `save_to_disk` writes (a folder a split, whose `state.json` names the files),
its cache (`NAME-train-00000-of-00002.arrow`) and the hub's (`data/train-00000-of-00010.parquet`).
"""

from __future__ import annotations

import json
import os
import re
from typing import Any

from objcrop.errors import ObjcropError, UsageError, printable, shown
from objcrop.formats.index_report import IndexReport
from objcrop.formats.source import Source
from objcrop.formats.visible_files import visible_files
from objcrop.place import is_address, root_of
from objcrop.read_file import read_file

# Words of splits as `datasets` knows them by file names ("Structure your repository" in its documentation).
_WORDS = ("train", "training", "validation", "valid", "val", "dev", "test", "testing", "eval", "evaluation")
_SHARD = re.compile(r"-\d+-of-\d+(-[0-9a-f]+)?$")


def table_files(source: Source, ending: str, report: IndexReport) -> tuple[str, list[str]]:
    """Return the folder and the files in it, relative to it, sorted.

    Args:
        source: its path is a file or a folder, searched at any depth; split says of which split.
        ending: ".arrow" or ".parquet"; of a file that is named it may be another.
        report: gets what is left out.

    Raises:
        UsageError: there is no such split, a file and a split are named, or the path is an address.
        ObjcropError: nothing is there, no file has the ending, or there are several splits and none is named.
    """
    path = root_of(source.path)
    if is_address(path):
        raise UsageError(f"{printable(path)} is far away, and {ending} files are read from a disk; copy it here.")
    if os.path.isfile(path):
        if source.split is not None:
            raise UsageError(f"--split takes files of a folder, but {printable(path)} is a file; leave it out.")
        return os.path.dirname(path), [os.path.basename(path)]
    if not os.path.isdir(path):
        raise ObjcropError(f"The file or folder '{printable(path)}' is not there; check the path.")
    names = _as_saved(path, visible_files(path, path, report, ending=ending), report)
    if not names:
        raise ObjcropError(f"{printable(path)} holds no {ending} file; check the path, or take another --format.")
    splits = {name: _split_of(name) for name in names}
    found = sorted(set(splits.values()), key=lambda split: (not _is_known(split), split != "train", split))
    if source.split is not None:
        chosen = [name for name in names if source.split in (splits[name], *name.split("/")[:-1])]
        if not chosen:
            raise UsageError(
                f"--split is {shown(source.split)}, but {printable(path)} holds {printable(', '.join(found))}."
            )
        return path, chosen
    if len(found) > 1 and _is_known(found[0]):
        raise ObjcropError(
            f"{printable(path)} holds the splits {printable(', '.join(found))}; index each by itself, with "
            f"--split {printable(found[0])} the first."
        )
    return path, names


def _split_of(name: str) -> str:
    """Return the split that a file belongs to: of `a/train/data-00000-of-00001.arrow` train."""
    *folders, stem = os.path.splitext(name)[0].split("/")
    shard = _SHARD.search(stem)
    if shard is not None:
        stem = stem[: shard.start()].rpartition("-")[2]  # the name of the set may stand before it
        if _is_known(stem):
            return stem  # "train_1k" is none of "train"
    words = (*reversed(_words(stem)), *reversed(folders))
    return next((word for word in words if word.lower() in _WORDS), stem)


def _is_known(split: str) -> bool:
    return any(word.lower() in _WORDS for word in _words(split))


def _words(text: str) -> list[str]:
    return re.split(r"[-._ 0-9]+", text)


def _as_saved(folder: str, names: list[str], report: IndexReport) -> list[str]:
    """Return the files that belong to the set: those that `state.json` names, where there is one, and no caches."""
    taken = []
    listed: dict[str, set[str] | None] = {}
    for name in names:
        here, base = os.path.split(name)
        if here not in listed:
            listed[here] = _named_in_state(os.path.join(folder, here))
        of_state = listed[here]
        if of_state is not None and base not in of_state:
            report.leave_out_file(name, "state.json beside it does not name it")
        elif of_state is None and re.match(r"(cache|tmp)[-_0-9a-z]*\.", base):
            report.leave_out_file(name, "a cache of `datasets`, by its name")
        else:
            taken.append(name)
    for here, of_state in listed.items():
        for base in sorted(of_state or ()):
            if os.path.join(here, base) not in names:
                report.miss(os.path.join(here, base))
    return taken


def _named_in_state(folder: str) -> set[str] | None:
    """Return the names of the files that a `state.json` lists, None where there is none.

    Raises:
        ObjcropError: it cannot be read, or keeps a selection of rows, as `datasets` before 2.0 did.
    """
    path = os.path.join(folder, "state.json")
    try:
        state: Any = json.loads(read_file(path))
        files = {file["filename"] for file in state["_data_files"]}
        chosen = state.get("_indices_files") or state.get("_indices_data_files")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        raise ObjcropError(f"{path} is not what `save_to_disk` writes; mend it, or move it away.") from None
    if chosen:
        raise ObjcropError(f"{path} selects rows of the files; save the set again with `datasets` 2.0 or later.")
    return files
