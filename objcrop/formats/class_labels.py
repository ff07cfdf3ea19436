"""Data sets of one class an image: the catalog of their labels, and subsets of so many classes and images of each.

A subset is drawn by names alone: classes in the order of a hash of seed and class, images in that of seed and key. So
one seed gives a set's train and test parts the same classes, on any machine, and a larger subset holds a smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from objcrop.catalog import Catalog
from objcrop.errors import UsageError, shown
from objcrop.formats import FlatBoxes, FlatLabels, IndexReport, catalog_of
from objcrop.formats.image_names import key_below
from objcrop.formats.plain_values import BadValue
from objcrop.formats.source import Source


def labelled_catalog(
    source: Source,
    base: str,
    pairs: Iterable[tuple[str, str]],
    classes: Sequence[str],
    report: IndexReport,
    box_of: Mapping[str, tuple[float, float, float, float]] | None = None,
) -> Catalog:
    """Read the headers of images that have one class each.

    Args:
        source: its classes, per_class, seed and limit say which of them. An image that was drawn and cannot be used is
            listed, and no other taken for it.
        base: image folder.
        pairs: key, a path relative to `base`, and class of each image; a key that comes again is listed.
        classes: class names in the catalog's order; of a subset the catalog has those that were drawn.
        report: filled in as files are met.
        box_of: x0,y0,x1,y1 of the object, by key, where there is one; half-open pixels of the stored frame.

    Raises:
        UsageError: classes or per_class is out of range, or there is a seed without either.
        ObjcropError: no image is left.
    """
    class_of: dict[str, str] = {}
    for name, label in pairs:
        try:
            key = key_below(name)
            if key in class_of:
                raise BadValue(f"it is listed again, of the class {shown(label)}")
            class_of[key] = label
        except BadValue as error:
            report.leave_out_entry(name, str(error))
    classes, class_of = _subset(source, classes, class_of, report)
    keys = sorted(class_of)[: source.limit]
    number = {name: i for i, name in enumerate(classes)}
    ids = [number[class_of[key]] for key in keys]
    boxes = None
    if box_of is not None:
        boxed = [i for i, key in enumerate(keys) if key in box_of]
        corners, no = [box_of[keys[i]] for i in boxed], [False] * len(boxed)
        boxes = FlatBoxes(boxed, corners, [ids[i] for i in boxed], no, no, boxed, lambda i: keys[i])
    labels = FlatLabels(range(len(keys)), ids)
    return catalog_of(base, keys, report, verify=source.verify, classes=classes, boxes=boxes, labels=labels)


def _subset(
    source: Source, classes: Sequence[str], class_of: dict[str, str], report: IndexReport
) -> tuple[Sequence[str], dict[str, str]]:
    """Return the classes and the images that the source asks for."""
    if source.classes is None and source.per_class is None:
        if source.seed is not None:
            raise UsageError("--seed draws --classes or --per-class; give one of them with it, or leave it out.")
        return classes, class_of
    if source.classes is not None and not 1 <= source.classes <= len(classes):
        raise UsageError(f"--classes is {source.classes}, but {source.path} has {len(classes)} classes.")
    if source.per_class is not None and source.per_class < 1:
        raise UsageError(f"--per-class is {source.per_class}, but it must be at least 1.")
    chosen = set(_in_drawn_order(classes, source)[: source.classes])
    keys_of: dict[str, list[str]] = {name: [] for name in classes if name in chosen}
    for key, name in class_of.items():
        if name in chosen:
            keys_of[name].append(key)
    drawn = {}
    for name, keys in keys_of.items():
        if source.per_class is not None and len(keys) < source.per_class:
            report.remark(name, f"the class has {len(keys)} images, fewer than --per-class {source.per_class}")
        drawn.update(dict.fromkeys(_in_drawn_order(keys, source)[: source.per_class], name))
    return list(keys_of), drawn


def _in_drawn_order(names: Iterable[str], source: Source) -> list[str]:
    def rank(name: str) -> tuple[bytes, str]:
        text = f"{source.seed or 0} {name}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest(), name

    return sorted(names, key=rank)
