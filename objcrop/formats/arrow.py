"""Arrow IPC files of encoded images, as Hugging Face `datasets` keeps them, or anybody: each image a range of its file.

A file is mapped and its batches are walked; where a value lies in the map is where it lies in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from objcrop.arrow_file import first_disorder
from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError
from objcrop.formats import IndexReport
from objcrop.formats.columns import ColumnFile, catalog_of_columns, refuse_unknown_words
from objcrop.formats.image_columns import ImageColumns, image_columns
from objcrop.formats.source import Source
from objcrop.formats.table_files import table_files
from objcrop.image_bytes import source_at

Places = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]


def read_arrow(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the rows of an Arrow file, or of a folder's; nothing is copied.

    The images are the column of type Image that `datasets` states, else the only one of bytes or of a struct with
    `bytes` and perhaps `path`; a row of a path alone is a file of its own, relative to the folder or absolute. Labels
    are the column label, labels or class, else the only ClassLabel; boxes those of a column with bbox and category in
    it (`objects`, a struct of lists or a list of structs). Rows without image are listed as left out.

    Args:
        source: its path is a file of either IPC format, or a folder as `table_files` describes; split, image_column,
            label_column, box_format and keys as `Source` has them.

    Raises:
        UsageError: a split or column that is not there, or keys or box_format is none of its words.
        ObjcropError: nothing is there, a file is damaged, compressed or has no images, and as of `catalog_of_columns`.
    """
    refuse_unknown_words(source)
    report = IndexReport(strict=source.strict)
    return index_arrow_files(source, *table_files(source, ".arrow", report), report)


def index_arrow_files(
    source: Source, root: str, names: Sequence[str], report: IndexReport
) -> tuple[Catalog, IndexReport]:
    """Index these Arrow files of a folder; the rest as of `read_arrow`."""
    files: list[ColumnFile] = []
    columns = None
    for name in names:
        path = os.path.join(root, name)
        schema = _read_schema(path)
        if b"objcrop" in (schema.metadata or {}):
            report.leave_out_file(name, "a table of objcrop's own")
            continue
        found = image_columns(schema, path, source, report)
        if columns is not None and found != columns:
            first = files[0].source.name
            raise ObjcropError(f"{path} has other columns or classes than {first}; index each by itself.")
        columns = found
        files.append(_column_file(root, name, schema, columns))
    if columns is None:
        raise ObjcropError(f"{root} has no Arrow file with images; check the path.")
    return catalog_of_columns(source, root, files, columns, report), report


def _column_file(root: str, name: str, schema: pa.Schema, columns: ImageColumns) -> ColumnFile:
    path, source = os.path.join(root, name), source_at(root, name)
    reader, begin = _opened(path)
    offsets, lengths, paths, annotations = [], [], [], []
    try:
        for batch in _batches(reader):
            column = batch.column(columns.image)
            values = pc.struct_field(column, "bytes") if columns.nested else column
            offset, length = _places(values, begin, source.size, path)
            offsets.append(offset)
            lengths.append(length)
            paths.append(path_of(column))
            annotations.append(batch.select(columns.annotations))
            for array in (paths[-1], *annotations[-1].columns):
                array.validate(full=True)
    except pa.ArrowException as error:
        raise _damaged(path, error) from None
    kept = pa.schema([schema.field(column) for column in columns.annotations])
    return ColumnFile(
        source,
        pa.concat_arrays([pa.nulls(0, pa.string()), *paths]),
        np.concatenate([np.zeros(0, np.int64), *offsets]),
        np.concatenate([np.zeros(0, np.int64), *lengths]),
        pa.Table.from_batches(annotations, kept),
    )


def path_of(column: pa.Array | pa.ChunkedArray) -> pa.Array | pa.ChunkedArray:
    """Return the `path` beside each image's bytes as text, null where there is none."""
    if pa.types.is_struct(column.type) and column.type.get_field_index("path") >= 0:
        return pc.struct_field(column, "path").cast(pa.string())
    return pa.nulls(len(column), pa.string())


def _places(values: pa.Array, begin: int, size: int, path: str) -> Places:
    """Return where the values of a binary array lie in the file mapped at the address `begin`: offset and length."""
    if isinstance(values, pa.DictionaryArray):
        offset, length = (np.append(of, -1) for of in _places(values.dictionary, begin, size, path))
        entry = values.indices.cast(pa.int64()).fill_null(-1).to_numpy(zero_copy_only=False)  # -1, the one appended
        return offset[entry], length[entry]
    values.validate()
    if not len(values):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    _, ends, data = values.buffers()
    kind = np.int64 if pa.types.is_large_binary(values.type) else np.int32
    bounds = np.frombuffer(ends, kind, values.offset + len(values) + 1)[values.offset :].astype(np.int64)
    many = data.size if data else 0
    if first_disorder(bounds, many) is not None:
        raise _damaged(path, ValueError("a value does not lie in the file"))
    first = data.address - begin if many else 0
    if not 0 <= first <= size - many:  # it was unpacked into memory
        raise ObjcropError(
            f"{path} is compressed, so that no image can be read by itself; write it anew without compression (as "
            "`datasets` does, and pyarrow by itself)."
        )
    null = values.is_null().to_numpy(zero_copy_only=False)
    offset, length = first + bounds[:-1], np.diff(bounds)
    return np.where(null, -1, offset), np.where(null, -1, length)


def _read_schema(path: str) -> pa.Schema:
    try:
        return _opened(path)[0].schema
    except Exception as error:  # a damaged file can raise anything in pyarrow
        raise _damaged(path, error) from None


def _batches(reader: Any) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def _opened(path: str) -> tuple[Any, int]:
    """Map a file of either format and return its reader, and the address at which the file begins in memory."""
    mapped = pa.memory_map(path)
    head = mapped.read_buffer(6)
    mapped.seek(0)
    whole = head.to_pybytes() == b"ARROW1"  # so begin files; streams do not
    return pa.ipc.open_file(mapped) if whole else pa.ipc.open_stream(mapped), head.address


def _damaged(path: str, error: Exception) -> ObjcropError:
    cause = next(iter(str(error).splitlines()), type(error).__name__)
    return ObjcropError(f"{path} is truncated, damaged or no Arrow file ({cause}); get it again.")
