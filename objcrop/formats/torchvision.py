"""Data sets that torchvision knows, where they lie on disk: its own classes read their lists (pytorch.org/vision)."""

from __future__ import annotations

import inspect
import os
import re
from collections.abc import Iterable
from typing import Any

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, UsageError, printable
from objcrop.formats import IndexReport, folder_at
from objcrop.formats.class_labels import labelled_catalog
from objcrop.formats.source import Source


def read_torchvision(source: Source) -> tuple[Catalog, IndexReport]:
    """Index a data set of one class an image as torchvision lays it out; nothing is downloaded.

    Tried are Caltech101, Country211, DTD, EuroSAT, FGVCAircraft, Flowers102, Food101, GTSRB, OxfordIIITPet,
    RenderedSST2, StanfordCars and SUN397; others do that keep images in files and list them in the same way. Classes
    have torchvision's names and order, or its numbers for names where it has no names (GTSRB).

    Args:
        source: its path is the `root` that torchvision is told; argument the name of torchvision's class; split one of
            its parts; classes, per_class and seed as in `labelled_catalog`.

    Raises:
        UsageError: torchvision has no such data set or part, or an option of the subset is out of range.
        ObjcropError: the data set is not there or not whole, it is none of images in files with one class each, no
            image is left, or something is left out and the source is strict.
    """
    folder = folder_at(source.path, "folder of data sets")
    report = IndexReport(strict=source.strict)
    data = _data_set(source.argument, folder, source.split)
    samples = list(_samples(data, source.argument))
    names = list(map(str, getattr(data, "wnids", None) or getattr(data, "classes", [])))  # ImageNet's are folders
    names += map(str, range(len(names), 1 + max((label for _, label in samples), default=0)))
    pairs = [(os.path.relpath(path, folder).replace(os.sep, "/"), names[label]) for path, label in samples]
    return labelled_catalog(source, folder, pairs, list(dict.fromkeys(names)), report), report


def _data_set(name: str, folder: str, split: str | None) -> Any:
    from torchvision import datasets

    made = getattr(datasets, name, None)
    if not (inspect.isclass(made) and issubclass(made, datasets.VisionDataset)):
        way = "write the name of its class, as in torchvision:Flowers102"
        raise UsageError(f"torchvision has no data set '{printable(name)}'; {way}.")
    parameters = inspect.signature(made).parameters
    needed = {p.name for p in parameters.values() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    if needed - {"root"}:  # annotations, for one
        raise _not_such_a_set(name)
    has_split = "split" in parameters
    if split is not None and not has_split:
        raise UsageError(f"torchvision's {name} has no parts; leave out --split.")
    if name == "Caltech101" and not os.path.isdir(os.path.join(folder, "caltech101")):  # which its class would make
        raise ObjcropError(f"There is no {name} in {folder}, which must hold the folder caltech101; check the path.")
    try:
        return getattr(datasets, name)(folder, **({"split": split or ""} if has_split else {}))
    except ImportError as error:
        raise ObjcropError(
            f"torchvision cannot read {name} without {error.name}; `pip install {error.name}`."
        ) from None
    except Exception as error:  # whatever a damaged list makes it raise
        said = " ".join(str(error).split())
        if "argument split" in said:
            parts = ", ".join(re.findall("'([^']+)'", said.partition("alid values")[2]))
            raise UsageError(f"--split must say which part of {name}, one of: {parts}.") from None
        reason = said.partition(". ")[0].rstrip(".") or type(error).__name__
        raise ObjcropError(
            f"torchvision finds no whole {name} in {folder} ({reason}); give the folder that torchvision calls root."
        ) from None


def _samples(data: Any, name: str) -> Iterable[tuple[str, int]]:
    """Return the path and class of each image: torchvision's classes have them, under one of a few names."""
    if name == "Caltech101":
        folders = [os.path.join(data.root, "101_ObjectCategories", category) for category in data.categories]
        data.classes = data.categories
        return [(f"{folders[y]}/image_{i:04d}.jpg", y) for y, i in zip(data.y, data.index, strict=True)]
    for files, labels in (("_image_files", "_labels"), ("_images", "_labels")):
        if hasattr(data, files) and hasattr(data, labels):
            return zip(map(os.fspath, getattr(data, files)), getattr(data, labels), strict=True)
    for samples in ("samples", "_samples", "imgs"):
        found = getattr(data, samples, [])
        if found and isinstance(found[0][0], (str, os.PathLike)):
            return found
    raise _not_such_a_set(name)


def _not_such_a_set(name: str) -> ObjcropError:
    return ObjcropError(
        f"torchvision's {name} does not keep images in files with one class each; write them to a folder a class and "
        "take --format imagefolder."
    )
