"""Data sets of one class an image: the catalog of their labels, and subsets of so many classes and images of each.

A subset is drawn by names alone: classes in the order of a hash of seed and class, images in that of seed and key. So
one seed gives a set's train and test parts the same classes, on any machine, and a larger subset holds a smaller one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from objcrop.catalog import Catalog
from objcrop.errors import UsageError
from objcrop.formats import FlatLabels, IndexReport, catalog_of
from objcrop.formats.source import Source


def labelled_catalog(
    source: Source, base: str, class_of: Mapping[str, str], classes: Sequence[str], report: IndexReport
) -> Catalog:
    """Read the headers of images that have one class each.

    Args:
        source: its classes, per_class, seed and limit say which of them. An image that was drawn and cannot be used is
            listed, and no other taken for it.
        base: image folder.
        class_of: the class of each key, a path relative to `base`.
        classes: class names in the catalog's order; of a subset the catalog has those that were drawn.
        report: filled in as files are met.

    Raises:
        UsageError: classes or per_class is out of range, or there is a seed without either.
        ObjcropError: no image is left.
    """
    if source.seed is not None and source.classes is None and source.per_class is None:
        raise UsageError("--seed draws --classes or --per-class; give one of them with it, or leave it out.")
    if source.classes is not None:
        if not 1 <= source.classes <= len(classes):
            raise UsageError(f"--classes is {source.classes}, but {source.path} has {len(classes)} classes.")
        drawn = set(_in_drawn_order(classes, source)[: source.classes])
        classes = [name for name in classes if name in drawn]
    keys_of: dict[str, list[str]] = {name: [] for name in classes}
    for key, name in class_of.items():
        if name in keys_of:
            keys_of[name].append(key)
    if source.per_class is not None:
        if source.per_class < 1:
            raise UsageError(f"--per-class is {source.per_class}, but it must be at least 1.")
        for name, keys in keys_of.items():
            if len(keys) < source.per_class:
                report.remark(name, f"the class has {len(keys)} images, fewer than --per-class {source.per_class}")
            keys_of[name] = _in_drawn_order(keys, source)[: source.per_class]
    number = {key: i for i, keys in enumerate(keys_of.values()) for key in keys}
    keys = sorted(number)[: source.limit]
    labels = FlatLabels(range(len(keys)), [number[key] for key in keys])
    return catalog_of(base, keys, report, verify=source.verify, classes=classes, labels=labels)


def _in_drawn_order(names: Iterable[str], source: Source) -> list[str]:
    def rank(name: str) -> tuple[bytes, str]:
        text = f"{source.seed or 0} {name}"
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest(), name

    return sorted(names, key=rank)
