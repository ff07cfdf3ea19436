"""Which image a name means: names as annotation tools write them, against the images that are there."""

from __future__ import annotations

import os
import posixpath
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from urllib.parse import unquote

from PIL import Image

from objcrop.errors import shown
from objcrop.formats.index_report import IndexReport
from objcrop.formats.plain_values import BadValue
from objcrop.formats.visible_files import visible_files
from objcrop.read_file import patiently


class AmbiguousName(BadValue):
    """A name that may mean two images; the message names both."""


class ImageNames:
    """Finds the image that a name means.

    A name means, the first that is there: the image of exactly that path; the same with `./`, backslashes for slashes,
    spaces around it, `%20` and the like, or the image folder's own name (or path) in front; the same with an ending of
    another case, with accents composed otherwise, or without its ending; and, where `anywhere`, the only image whose
    path ends so.

    Args:
        keys: POSIX paths, relative to the image folder, of the images that are there.
        folder: absolute path of the image folder.
        anywhere: whether a name may leave out the folders in front.
    """

    def __init__(self, keys: Iterable[str], folder: str, *, anywhere: bool = False) -> None:
        self.keys = set(keys)
        self.folder = folder.replace(os.sep, "/").rstrip("/")
        self.anywhere = anywhere
        self._loose: dict[str, list[str]] | None = None

    def find(self, name: str) -> str | None:
        """Return the key of the image that `name` means, None where it is not there.

        Raises:
            AmbiguousName: it may mean two images.
        """
        if name in self.keys:
            return name
        spellings = list(dict.fromkeys(self._spellings(name)))
        for spelling in spellings:
            if spelling in self.keys:
                return spelling
        for spelling in spellings:
            found = self._only(_folded(spelling), name)
            if found is not None:
                return found
        if self.anywhere:
            for spelling in spellings:
                found = self._only("/" + _folded(spelling), name)
                if found is not None:
                    return found
        return None

    def _spellings(self, name: str) -> Iterator[str]:
        slashed = name.replace("\\", "/")
        for written in dict.fromkeys((name, slashed, slashed.strip(), unquote(slashed))):
            spelling = posixpath.normpath(written)
            yield spelling
            while spelling.startswith("../"):
                spelling = spelling[3:]
            # The folder's last name, its last two, … all of its path.
            parts = self.folder.split("/")
            for first in range(len(parts) - 1, -1, -1):
                front = "/".join(parts[first:]) + "/"
                if spelling.startswith(front):
                    yield spelling[len(front) :]

    def _only(self, folded: str, name: str) -> str | None:
        if self._loose is None:
            self._loose = defaultdict(list)
            for key in self.keys:
                path = _folded(key)
                stem = _folded(posixpath.splitext(path)[0])
                tails = {path, stem}
                if self.anywhere:
                    tails |= {p[i:] for p in (f"/{path}", f"/{stem}") for i, c in enumerate(p) if c == "/"}
                for tail in tails:
                    self._loose[tail].append(key)
        found = self._loose.get(folded, [])
        images = [key for key in found if is_image_name(key)] if len(found) > 1 else found
        if len(found) > 1 and len(images) != 1:
            one, two = sorted(images or found)[:2]
            raise AmbiguousName(f"{shown(name)} may be {shown(one)} or {shown(two)}")
        return images[0] if images else None


def key_finder(names: Iterable[str], folder: str) -> Callable[[str], str]:
    """Return the function from a name to the key of the image that it means.

    It raises a `BadValue` for a name that may mean two images, or leads out of the image folder. A name whose image is
    not there is its own key. Only where a name is not there as it stands is all of the folder looked through.

    Args:
        names: all that will be asked for.
        folder: absolute path of the image folder, or its address.
    """
    key_of = {name: posixpath.normpath(name.removeprefix(f"{folder}/")) for name in names}
    there = _there(folder, set(key_of.values()))
    all_names: list[ImageNames] = []

    def find(name: str) -> str:
        if key_of[name] in there:
            return key_of[name]
        if not all_names:
            all_names.append(ImageNames(visible_files(folder, folder, IndexReport()), folder))
        return all_names[0].find(name) or key_below(name.removeprefix(f"{folder}/").replace("\\", "/"))

    return find


def _there(base: str, keys: set[str]) -> set[str]:
    """Return those of the keys that lie below the image folder; each folder that they name is listed once."""
    there = set()
    folders: dict[str, set[str]] = {}
    for key in keys:
        folder, name = posixpath.split(key)
        if posixpath.isabs(key) or key.startswith("../") or not name:
            continue
        if folder not in folders:
            path = os.path.join(base, folder)
            try:
                folders[folder] = set(patiently(path, lambda path=path: os.listdir(path)))  # type: ignore[misc]
            except (OSError, ValueError):  # no such folder, or no name of one: the images below it will be missed
                folders[folder] = set()
        if name in folders[folder]:
            there.add(key)
    return there


def key_below(name: str) -> str:
    """Return a file name as a key below the image folder, `./` and the like taken out.

    Raises:
        BadValue: it is empty, or leads out of the folder.
    """
    key = posixpath.normpath(name) if name.strip() else "."
    if key.startswith(("/", "../")) or key in ("..", ".") or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:[\\/]", key):
        raise BadValue(f"{shown(name)} must lie below the image folder")
    return key


def _folded(path: str) -> str:
    stem, ending = posixpath.splitext(path)
    return unicodedata.normalize("NFC", stem) + ending.lower()


def is_image_name(key: str) -> bool:
    """Whether a name has the ending of an image format that Pillow knows."""
    return posixpath.splitext(key)[1].lower() in Image.registered_extensions()
