"""Tars of images, as WebDataset has them: members that share a name up to the first dot are a sample.

    photos/0001.jpg  photos/0001.cls  photos/0001.json

Labels lie beside an image: `.cls` holds a class, a name or a number; `.json` an object of which these keys are read,
all of them optional: `label` (a class) or `labels` (a list of them), and `boxes`, a list of objects with `box` ([x0,
y0, x1, y1], half-open pixels of the stored frame), `label`, `difficult` and `crowd`. Another member's text is the label
where the format names its ending (`webdataset:txt`); most `.txt` are captions, so that they are not read unasked. The
classes of its boxes are an image's labels too.

Only headers are read, of the tar and of the images in it; nothing is unpacked.
"""

from __future__ import annotations

import json
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from objcrop.catalog import Catalog
from objcrop.catalog_table import Ranges
from objcrop.errors import ObjcropError, printable, shown
from objcrop.formats import FlatBoxes, FlatLabels, IndexReport, catalog_of, folder_at, inside_of
from objcrop.formats.plain_values import ONE_CLASS, BadValue, class_name, number, yes_or_no
from objcrop.formats.source import Source
from objcrop.formats.tar_members import BadTar, Member, tar_members
from objcrop.formats.visible_files import visible_files, visible_objects
from objcrop.formats.zip_members import BadZip
from objcrop.image_bytes import IN_FLIGHT, open_place, source_at
from objcrop.object_storage import refuse_credentials
from objcrop.place import Place, SourceFile, is_address, root_of, under
from objcrop.progress import tracked

MembersOf = Callable[[Callable[[int, int], bytes], int], Iterator[Member]]
LABELS = ("cls", "json")  # endings of the members that are read unasked
NO_IMAGES = (*LABELS, "txt")


def read_webdataset(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the images in tars; an image's key is its name in the tar.

    Hidden members (names that begin with a dot) are passed over; what is no image is listed as left out. Of a tar that
    ends too early all whole images are taken.

    Args:
        source: its path is a tar, a folder of tars at any depth, or the address of either, in which `{000..127}` stands
            for numbers (WebDataset's notation); argument is the ending of the member that holds the label, "" for
            `.cls` and `.json`; root is a folder above that the tars' names are relative to.

    Raises:
        UsageError: the root does not hold the path, or an address holds credentials.
        ObjcropError: there is no tar or no image in them, one is compressed or no tar, two hold the same image, the
            storage cannot be reached, or something is left out and the source is strict.
    """
    return read_packs(source, ".tar", tar_members)


def read_packs(source: Source, ending: str, members_of: MembersOf) -> tuple[Catalog, IndexReport]:
    """Index the images in files whose names end so and whose members this function finds; see `read_webdataset`."""
    report = IndexReport(strict=source.strict)
    root, names = packs_of(source, ending, report)
    endings = (source.argument.lstrip("."),) if source.argument else LABELS
    samples = _Samples(report, endings)
    files: list[SourceFile] = []
    with ThreadPoolExecutor(IN_FLIGHT if is_address(root) else 1) as pool:
        walks = pool.map(lambda name: _walked(root, name, endings, members_of), names)
        for file, members, trouble in tracked(walks, len(names), f"{ending[1:]}s"):
            samples.add(len(files), file, members)
            files.append(file)
            if trouble:
                report.leave_out_entry(file.name, trouble)
    return samples.catalog(root, files, source), report


def packs_of(source: Source, ending: str, report: IndexReport) -> tuple[str, list[str]]:
    """Return the root and the names of such files relative to it, sorted; errors as of `read_webdataset`."""
    path = root_of(source.path)
    far = is_address(path)
    if far:
        refuse_credentials(path)
    if path.endswith(ending) and (far or not os.path.isdir(path)):
        folder, _, pattern = path.rpartition("/")
        names = numbered(pattern)
        missing = [name for name in names if not far and not os.path.exists(f"{folder}/{name}")]
        if missing:
            raise ObjcropError(f"The {ending[1:]} {folder}/{missing[0]} is not there; check the path.")
    else:
        folder = folder_at(path, f"folder of {ending[1:]}s")
        names = visible_objects(path, "", ending=ending) if far else visible_files(path, path, report, ending=ending)
        if not names:
            raise ObjcropError(f"{folder} holds no {ending}; check the path.")
    base = folder if source.root is None else folder_at(source.root, "root folder")
    inside = inside_of(base, folder)
    return base, [f"{inside}/{name}" if inside else name for name in names]


def numbered(pattern: str) -> list[str]:
    """Return the names that `shard-{000..127}.tar` stands for."""
    found = re.fullmatch(r"(.*?)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    if found is None:
        return [pattern]
    before, first, last, after = found.groups()
    return [name for i in range(int(first), int(last) + 1) for name in numbered(f"{before}{i:0{len(first)}}{after}")]


class _Found(NamedTuple):
    """A member, and its text where it is a label."""

    member: Member
    text: bytes | None


def _walked(
    root: str, name: str, endings: Iterable[str], members_of: MembersOf
) -> tuple[SourceFile, list[_Found], str]:
    """Return a file as it is, its members with the text of labels, and what is wrong with its end.

    Raises:
        ObjcropError: nothing in it can be read.
    """
    path = under(root, name)
    source = source_at(root, name)
    found: list[_Found] = []
    with open_place(Place(path, name, source, 0, source.size)) as file:

        def read(at: int, length: int) -> bytes:
            file.seek(at)
            return file.read(length)

        try:
            for member in members_of(read, source.size):
                label = _ending(member.name) in endings and not member.reason
                found.append(_Found(member, read(member.offset, member.length) if label else None))
        except (BadTar, BadZip) as error:
            if not found:
                raise ObjcropError(f"{path} cannot be indexed: {error}.") from None
            return source, found, str(error)
    return source, found, ""


def _sample(key: str) -> str:
    """Return a member's name up to the first dot behind the last slash."""
    folder, name = posixpath.split(key)
    return posixpath.join(folder, name.split(".", 1)[0])


def _ending(name: str) -> str:
    return posixpath.basename(name).partition(".")[2].lower()


class _Samples:
    """Images with the labels beside them, gathered file by file."""

    def __init__(self, report: IndexReport, endings: Iterable[str]) -> None:
        self.report, self.endings = report, endings
        self.file_of: dict[str, tuple[int, Member]] = {}
        self.facts: dict[str, dict[str, Any]] = {}
        self.names: list[str] = []

    def add(self, number: int, file: SourceFile, found: Iterable[_Found]) -> None:
        """Take in the members of a file."""
        self.names.append(file.name)
        for member, text in found:
            key = posixpath.normpath(member.name).lstrip("/")
            if any(part.startswith(".") for part in key.split("/")):
                continue
            if member.reason:
                self.report.leave_out_file(f"{file.name}:{key}", member.reason)
            elif text is not None:
                self._label(_sample(key), _ending(key), text, f"{file.name}:{key}")
            elif _ending(key) not in NO_IMAGES:
                if key in self.file_of:
                    other = self.names[self.file_of[key][0]]
                    where = (
                        f"{file.name} holds {printable(key)} twice"
                        if other == file.name
                        else (f"{other} and {file.name} both hold {printable(key)}")
                    )
                    raise ObjcropError(f"{where}, but an image's name is its key; rename it, or index them apart.")
                self.file_of[key] = number, member

    def _label(self, sample: str, ending: str, text: bytes, place: str) -> None:
        """Keep what a label's member says: `label`, `labels`, `boxes`."""
        try:
            content = text.decode("utf-8-sig").strip()
            facts = _object(content) if ending == "json" else {"label": content}
        except (UnicodeDecodeError, BadValue) as error:
            reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else str(error)
            self.report.leave_out_entry(place, reason)
            return
        self.facts.setdefault(sample, {}).update({**facts, "place": place})

    def catalog(self, root: str, files: list[SourceFile], source: Source) -> Catalog:
        """Return the catalog of the images in key order."""
        if not self.file_of:
            raise ObjcropError(f"{source.path} holds no image to index; check the path.")
        keys = sorted(self.file_of)[: source.limit]
        numbers, members = zip(*(self.file_of[key] for key in keys))
        ranges = Ranges(files, numbers, [m.offset for m in members], [m.length for m in members])
        labels: list[tuple[int, str]] = []
        boxes: list[tuple[int, str, _Box, str]] = []
        for row, key in enumerate(keys):
            facts = self.facts.get(_sample(key), {})
            place = facts.get("place", "")
            for value in _labels(facts):
                name = self._class(value, place)
                labels += [(row, name)] if name is not None else []
            for i, value in enumerate(_list(facts, "boxes")):
                try:
                    boxes.append((row, _class_of(value), _box_of(value), f"{place}, box {i + 1}"))
                except BadValue as error:
                    self.report.leave_out_entry(f"{place}, box {i + 1}", str(error))
        classes = _in_order({name for _, name in labels} | {name for _, name, _, _ in boxes})
        number_of = {name: i for i, name in enumerate(classes)}
        flat_labels = FlatLabels([row for row, _ in labels], [number_of[name] for _, name in labels])
        flat = FlatBoxes(
            image=[row for row, *_ in boxes],
            corners=[box.corners for _, _, box, _ in boxes],
            classes=[number_of[name] for _, name, _, _ in boxes],
            difficult=[box.difficult for _, _, box, _ in boxes],
            crowd=[box.crowd for _, _, box, _ in boxes],
            place=[place for *_, place in boxes],
            place_of=str,
        )
        more: dict[str, Any] = {"boxes": flat if boxes else None, "labels": flat_labels if labels else None}
        return catalog_of(root, keys, self.report, verify=source.verify, classes=classes, ranges=ranges, **more)

    def _class(self, value: Any, place: str) -> str | None:
        try:
            return class_name(value)
        except BadValue as error:
            self.report.leave_out_entry(place, str(error))
            return None


class _Box(NamedTuple):
    corners: tuple[float, float, float, float]
    difficult: bool
    crowd: bool


def _object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadValue(f"it is broken JSON ({str(error).splitlines()[0]})") from None
    if not isinstance(content, dict):
        raise BadValue(f"it holds {shown(content)} and no object")
    return {name: content[name] for name in ("label", "labels", "boxes") if name in content}


def _list(facts: dict[str, Any], name: str) -> list[Any]:
    value = facts.get(name)
    return value if isinstance(value, list) else [] if value is None else [value]


def _labels(facts: dict[str, Any]) -> Iterator[Any]:
    yield from ([facts["label"]] if facts.get("label") not in (None, "") else [])
    yield from _list(facts, "labels")


def _class_of(value: Any) -> str:
    label = value.get("label") if isinstance(value, dict) else None
    return ONE_CLASS if label is None else class_name(label)


def _box_of(value: Any) -> _Box:
    corners = value.get("box") if isinstance(value, dict) else None
    if not isinstance(corners, list) or len(corners) != 4:
        raise BadValue(f"{shown(value)} has no box of four numbers")
    x0, y0, x1, y1 = map(number, corners)
    return _Box((x0, y0, x1, y1), yes_or_no(value.get("difficult")), yes_or_no(value.get("crowd")))


def _in_order(names: set[str]) -> list[str]:
    """Return class names in order, numbers as numbers."""
    if all(re.fullmatch(r"-?[0-9]{1,18}", name) for name in names):
        return sorted(names, key=int)
    return sorted(names)
