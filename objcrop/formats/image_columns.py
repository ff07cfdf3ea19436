"""Which columns of an Arrow or Parquet table hold the images, their labels and their boxes.

Hugging Face `datasets` says it in the schema's metadata: features of the types Image and ClassLabel. Where it says
nothing, types and usual names do.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyarrow as pa

from objcrop.errors import ObjcropError, one_of, printable
from objcrop.formats.index_report import IndexReport
from objcrop.formats.source import Source

_LABELS = ("label", "labels", "class", "classes")
_BOXES = ("bbox", "bboxes", "boxes")
_CATEGORIES = ("category", "categories", "category_id", "label", "labels", "class", "classes")
_SIZES = ("width", "height")


class ImageColumns(NamedTuple):
    """What is taken from a table.

    image: the column of the bytes; nested: it is a struct of `bytes` and `path`; label: the column of the image's
    classes, or None; label_names: their names, where the schema has them; boxes: the column of boxes, "" where the
    table itself has bbox and category, or None; box, category: names of the fields in it, category may be None;
    category_names: as label_names; sizes: ("width", "height") where there are such columns beside boxes.
    """

    image: str
    nested: bool
    label: str | None = None
    label_names: tuple[str, ...] | None = None
    boxes: str | None = None
    box: str = ""
    category: str | None = None
    category_names: tuple[str, ...] | None = None
    sizes: tuple[str, ...] = ()

    @property
    def annotations(self) -> list[str]:
        """Columns of the table that hold labels, boxes and sizes."""
        of_boxes = {None: [], "": [name for name in (self.box, self.category) if name]}.get(self.boxes, [self.boxes])
        return [name for name in dict.fromkeys([self.label, *of_boxes, *self.sizes]) if name]


def image_columns(schema: pa.Schema, file: str, source: Source, report: IndexReport) -> ImageColumns:
    """Return which columns of a file's schema are taken.

    Args:
        schema: of the file.
        file: its path.
        source: image_column and label_column may name columns.
        report: gets a remark where columns of labels are passed over.

    Raises:
        UsageError: a column that was named is not there, or cannot hold such a thing.
        ObjcropError: no column holds encoded images, or several do and none was named.
    """
    try:
        return _found(schema, file, source, report)
    except UnicodeDecodeError:
        raise ObjcropError(f"{file} is damaged, the name of a column is not UTF-8; get it again.") from None


def holds_bytes(kind: pa.DataType) -> bool:
    """Whether values of a type may be encoded images."""
    if pa.types.is_dictionary(kind):
        return holds_bytes(kind.value_type)
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _found(schema: pa.Schema, file: str, source: Source, report: IndexReport) -> ImageColumns:
    features = _features(schema)
    image = _image_column(schema, features, file, source.image_column)
    nested = pa.types.is_struct(schema.field(image).type)
    label = _label_column(schema, features, source.label_column, file, report)
    columns = ImageColumns(image, nested, label, _names(features.get(label or "")))
    for name, fields in _structs(schema):
        box = next((field for field in _BOXES if field in fields and _are_boxes(fields[field])), None)
        if box is not None:
            named = (field for field in _CATEGORIES if field in fields and _is_class(_flat(fields[field])))
            category = next((field for field in named if name or field != label), None)
            of_boxes = features if name == "" else _inner(features.get(name, {}))
            names = _names(_inner(of_boxes).get(category or ""))
            stated = all(name in schema.names and pa.types.is_integer(schema.field(name).type) for name in _SIZES)
            sizes = _SIZES if stated else ()
            return columns._replace(boxes=name, box=box, category=category, category_names=names, sizes=sizes)
    return columns


def _image_column(schema: pa.Schema, features: dict[str, Any], file: str, named: str | None) -> str:
    able = [
        field.name for field in schema if holds_bytes(_bytes_type(field.type)) and schema.names.count(field.name) == 1
    ]
    if named is not None:
        return one_of(named, able, "image_column")
    images = [name for name in able if _kind(features.get(name)) == "Image"] or able
    if len(images) == 1:
        return images[0]
    there = printable(", ".join(schema.names[:20])) or "none"
    if not images:
        raise ObjcropError(
            f"{file} has no column of encoded images, binary or a struct with `bytes` (its columns: {there}); take "
            "--format list where it has paths."
        )
    raise ObjcropError(f"{file} has several columns of images; name one with --image-column: {', '.join(images)}.")


def _bytes_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return kind.field("bytes").type
    return kind


def _label_column(
    schema: pa.Schema, features: dict[str, Any], named: str | None, file: str, report: IndexReport
) -> str | None:
    able = [field.name for field in schema if _is_class(_flat(field.type))]
    if named is not None:
        return one_of(named, able, "label_column")
    for name in _LABELS:
        if name in schema.names and name not in able:
            report.remark(file, f"no labels are taken from '{name}', which is {schema.field(name).type}")
    usual = [name for name in _LABELS if name in able]
    stated = [name for name in able if _names(features.get(name)) is not None]
    found = [name for name in usual if name in stated] or stated or usual
    if len(found) > 1 and found[0] not in _LABELS:
        report.remark(file, f"no labels are taken; name one with --label-column: {printable(', '.join(found))}")
        return None
    return found[0] if found else None


def _structs(schema: pa.Schema) -> Iterator[tuple[str, dict[str, pa.DataType]]]:
    """Yield the columns that are structs of lists or lists of structs with their fields; last "", the table itself."""
    for field in schema:
        kind, many = field.type, _is_list(field.type)
        kind = kind.value_type if many else kind
        if pa.types.is_struct(kind):
            fields = [kind.field(i) for i in range(kind.num_fields)]
            yield field.name, {f.name: pa.list_(f.type) if many else f.type for f in fields}
    yield "", {field.name: field.type for field in schema}


def _features(schema: pa.Schema) -> dict[str, Any]:
    """Return the features that `datasets` puts into the schema, none where it did not or they cannot be read."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, ValueError, TypeError, RecursionError):
        return {}
    return features if isinstance(features, dict) else {}


def _inner(feature: Any) -> Any:
    """Return what a list's feature is of: List, LargeList and Sequence of `datasets`, or a JSON list of one."""
    while True:
        if isinstance(feature, list) and len(feature) == 1:
            feature = feature[0]
        elif _kind(feature) in ("List", "LargeList", "Sequence"):
            feature = feature.get("feature")
        else:
            return feature if isinstance(feature, dict) else {}


def _kind(feature: Any) -> Any:
    return feature.get("_type") if isinstance(feature, dict) else None


def _names(feature: Any) -> tuple[str, ...] | None:
    """Return the class names of a ClassLabel or a list of them, None where it is none."""
    inner = _inner(feature)
    names = inner.get("names") if _kind(inner) == "ClassLabel" else None
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _are_boxes(kind: pa.DataType) -> bool:
    """Whether a type is a list of numbers, or a list of such lists."""
    inner = _flat(_flat(kind))
    return _is_list(kind) and bool(pa.types.is_integer(inner) or pa.types.is_floating(inner))


def _flat(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if _is_list(kind) else kind


def _is_class(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _is_class(kind.value_type)
    return bool(pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind))
