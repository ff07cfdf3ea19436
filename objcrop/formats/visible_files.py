"""A walk through a folder that loses nothing without a word: what cannot be read, and what is no file, is listed."""

from __future__ import annotations

import os
from functools import partial

from objcrop.exif import why_unreadable
from objcrop.formats.index_report import IndexReport
from objcrop.read_file import PASSING, patiently


def visible_files(folder: str, base: str, report: IndexReport, *, ending: str = "") -> list[str]:
    """Return the regular files below a folder, at any depth, as sorted POSIX paths relative to `base`.

    Names that begin with a dot are passed over. Links to folders are followed, once each and after all that is no
    link, so that a file has the name of its own folder. Pipes, sockets, devices, links to nothing and folders that
    cannot be read are listed in the report.

    Args:
        folder: absolute path; need not be there.
        base: absolute path of a folder above, or `folder` itself.
        report: gets what is left out.
        ending: only files whose name ends so, in any case.

    Raises:
        ObjcropError: the file system fails for long, or the report is strict.
    """
    found: list[str] = []
    seen: set[tuple[int, int]] = set()
    waiting = [folder] if os.path.isdir(folder) else []
    links: list[str] = []
    while waiting or links:
        here = waiting.pop() if waiting else links.pop(0)
        try:
            place = patiently(here, partial(os.stat, here))
            if place.st_ino and (place.st_dev, place.st_ino) in seen:  # a link back to a folder above, or a second one
                continue
            seen.add((place.st_dev, place.st_ino))
            entries = patiently(here, partial(_entries, here))
        except OSError as error:
            report.leave_out_file(_relative(here, base), f"the folder cannot be read: {why_unreadable(error)}")
            continue
        for name, kind in sorted(entries):
            path = os.path.join(here, name)
            if kind in ("folder", "link"):
                (waiting if kind == "folder" else links).append(path)
            elif name.lower().endswith(ending):
                if kind == "file":
                    found.append(_relative(path, base))
                else:
                    report.leave_out_file(_relative(path, base), kind)
    return sorted(found)


def visible_objects(address: str, prefix: str, *, ending: str = "") -> list[str]:
    """Return the names of the objects under an address, behind `prefix`, sorted; what is hidden is passed over.

    Args:
        address: of a folder in a bucket.
        prefix: of the address below the root, "" where it is the root.
        ending: only objects whose name ends so, in any case.

    Raises:
        ObjcropError: the storage cannot be reached or refuses.
    """
    from objcrop.object_storage import listing

    names = (name for name, facts in listing(address) if name.lower().endswith(ending) and facts.size)
    visible = (name for name in names if not any(part.startswith(".") for part in name.split("/")))
    return sorted(f"{prefix}/{name}" if prefix else name for name in visible)


def _entries(folder: str) -> list[tuple[str, str]]:
    """Return (name, "file", "folder", "link" to a folder, or what else it is) of each visible entry."""
    with os.scandir(folder) as entries:
        return [(entry.name, _kind(entry)) for entry in entries if not entry.name.startswith(".")]


def _kind(entry: os.DirEntry[str]) -> str:
    try:
        if entry.is_file():
            return "file"
        if entry.is_dir():
            return "link" if entry.is_symlink() else "folder"
        return "a link to nothing" if entry.is_symlink() and not os.path.exists(entry.path) else "not a regular file"
    except OSError as error:
        if error.errno in PASSING:
            raise
        return why_unreadable(error)


def _relative(path: str, base: str) -> str:
    return os.path.relpath(path, base).replace(os.sep, "/")
