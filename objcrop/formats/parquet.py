"""Parquet files of encoded images, as the Hugging Face hub has them.

Where a file holds the images as they are, as `datasets` 5 writes it, each is a range of the file; where it compresses
them, an image is found by its row, and read with the group of rows that it is compressed in.
"""

from __future__ import annotations

import mmap
import os

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from objcrop.catalog import Catalog
from objcrop.errors import ObjcropError, printable
from objcrop.formats import IndexReport
from objcrop.formats.arrow import index_arrow_files, path_of
from objcrop.formats.columns import ColumnFile, catalog_of_columns, refuse_unknown_words
from objcrop.formats.image_columns import ImageColumns, image_columns
from objcrop.formats.source import Source
from objcrop.formats.table_files import table_files
from objcrop.image_bytes import source_at
from objcrop.parquet_values import values_of
from objcrop.progress import tracked
from objcrop.whole_file import whole_file

Places = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
ROWS = 64  # read at a time
LARGEST = 1 << 30  # bytes of a group that an image may be compressed in


def read_parquet(source: Source) -> tuple[Catalog, IndexReport]:
    """Index the rows of a Parquet file, or of a folder's; columns and options are those of `read_arrow`.

    Args:
        source: as of `read_arrow`; unpack is a folder that gets an uncompressed Arrow file for each Parquet file, where
            the catalog's images then lie.

    Raises:
        UsageError: a split or column that is not there, or keys or box_format is none of its words.
        ObjcropError: nothing is there, a file is damaged or has no images, images are compressed in groups too large to
            unpack for one, `unpack` cannot be written, and as of `catalog_of_columns`.
    """
    refuse_unknown_words(source)
    report = IndexReport(strict=source.strict)
    root, names = table_files(source, ".parquet", report)
    if source.unpack is not None:
        folder = os.path.abspath(source.unpack)
        return index_arrow_files(source, folder, _unpacked(root, names, folder, source, report), report)
    files: list[ColumnFile] = []
    columns = None
    for name in tracked(names, len(names), "reading Parquet"):
        path = os.path.join(root, name)
        schema = _opened(path).schema_arrow
        found = image_columns(schema, path, source, report)
        if columns is not None and found != columns:
            first = files[0].source.name
            raise ObjcropError(f"{path} has other columns or classes than {first}; index each by itself.")
        columns = found
        files.append(_column_file(root, name, columns))
    assert columns is not None
    _remark(root, files, report)
    return catalog_of_columns(source, root, files, columns, report), report


def _column_file(root: str, name: str, columns: ImageColumns) -> ColumnFile:
    path, column = os.path.join(root, name), f"{columns.image}.bytes" if columns.nested else columns.image
    source = source_at(root, name)
    try:
        file = _opened(path)
        places = _ranges(file, path, column)
        if places is None:
            source = source._replace(column=column)
            places = _rows(file, path, column)
        beside = [f"{columns.image}.path"] if columns.nested else []
        table = file.read(columns=[*beside, *columns.annotations])
        table.validate(full=True)
        paths = path_of(table.column(columns.image)) if beside and columns.image in table.column_names else None
        if paths is None:
            paths = pa.nulls(len(places[0]), pa.string())
    except (pa.ArrowException, OSError) as error:
        raise _damaged(path, error) from None
    return ColumnFile(source, paths, *places, table.select(columns.annotations))


def _ranges(file: pq.ParquetFile, path: str, column: str) -> Places | None:
    """Return where the values of a column lie in the file, offset and length, or None where it does not hold them.

    Plainly encoded, a value stands behind four bytes of its length; it is looked for from the end of the one before on,
    over the head of the next page where there is one, and what is found is what pyarrow read.
    """
    offsets, lengths = [], []
    with open(path, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as data:
        for group in range(file.num_row_groups):
            facts = _facts(file, group, column)
            if facts.compression != "UNCOMPRESSED" or not {*facts.encodings} <= {"PLAIN", "RLE", "BIT_PACKED"}:
                return None
            at = facts.data_page_offset
            end = at + facts.total_compressed_size
            for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
                for value in values_of(batch, column).to_pylist():
                    if value is None:
                        offsets.append(-1)
                        lengths.append(-1)
                        continue
                    stands = len(value).to_bytes(4, "little") + value
                    if data[at : at + len(stands)] != stands:
                        at = data.find(stands, at, end)
                        if at < 0:
                            return None
                    offsets.append(at + 4)
                    lengths.append(len(value))
                    at += len(stands)
    return np.array(offsets, np.int64), np.array(lengths, np.int64)


def _rows(file: pq.ParquetFile, path: str, column: str) -> Places:
    """Return as offsets the rows themselves, -1 for null, and -1 as lengths."""
    there = []
    for group in range(file.num_row_groups):
        facts = _facts(file, group, column)
        if facts.total_uncompressed_size > LARGEST:
            raise ObjcropError(
                f"{path} compresses {facts.total_uncompressed_size / 1e9:.1f} GB of images together, all unpacked to "
                "read one; give --unpack FOLDER, which writes Arrow files in which each is read by itself."
            )
        rows = file.metadata.row_group(group).num_rows
        if facts.is_stats_set and facts.statistics.has_null_count and facts.statistics.null_count == 0:
            there.append(np.ones(rows, bool))
            continue
        for batch in file.iter_batches(ROWS, row_groups=[group], columns=[column], use_threads=False):
            there.append(values_of(batch, column).is_valid().to_numpy(zero_copy_only=False))
    has = np.concatenate([np.zeros(0, bool), *there])
    return np.where(has, np.arange(len(has)), -1), np.full(len(has), -1)


def _remark(root: str, files: list[ColumnFile], report: IndexReport) -> None:
    packed = [file.source for file in files if file.source.column and (file.offset >= 0).any()]
    if not packed:
        return
    rows, size = 0, 0
    for source in packed:
        opened = _opened(os.path.join(root, source.name))
        for group in range(opened.num_row_groups):
            rows = max(rows, opened.metadata.row_group(group).num_rows)
            size = max(size, _facts(opened, group, source.column).total_uncompressed_size)
    report.remark(
        printable(root),
        f"up to {rows} images or {size / 1e6:.1f} MB are compressed together, all unpacked to read one; to train in "
        "random order, index with --unpack FOLDER, which writes Arrow files in which each is read by itself",
    )


def _unpacked(root: str, names: list[str], folder: str, source: Source, report: IndexReport) -> list[str]:
    """Write the rows of Parquet files as uncompressed Arrow files into a folder; return their names."""
    written = []
    for name in tracked(names, len(names), "unpacking"):
        path = os.path.join(root, name)
        written.append(f"{os.path.splitext(name)[0]}.arrow")
        target = os.path.join(folder, written[-1])
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            file = _opened(path)
            columns = image_columns(file.schema_arrow, path, source, IndexReport())
            schema = pa.schema([file.schema_arrow.field(name) for name in (columns.image, *columns.annotations)])
            schema = schema.with_metadata(file.schema_arrow.metadata)
            with (
                whole_file(target) as part,
                pa.OSFile(str(part), "wb") as sink,
                pa.ipc.new_file(sink, schema) as writer,
            ):
                for batch in file.iter_batches(ROWS, columns=schema.names, use_threads=False):
                    writer.write_batch(batch)
        except pa.ArrowException as error:
            raise _damaged(path, error) from None
    return written


def _opened(path: str) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(path, memory_map=True)
    except Exception as error:  # a damaged file can raise anything in pyarrow
        raise _damaged(path, error) from None


def _facts(file: pq.ParquetFile, group: int, column: str) -> pq.ColumnChunkMetaData:
    facts = file.metadata.row_group(group)
    chunks = (facts.column(i) for i in range(facts.num_columns))
    return next(chunk for chunk in chunks if chunk.path_in_schema == column)


def _damaged(path: str, error: Exception) -> ObjcropError:
    cause = next(iter(str(error).splitlines()), type(error).__name__)
    return ObjcropError(f"{path} is truncated, damaged or no Parquet file ({printable(cause[:200])}); get it again.")
