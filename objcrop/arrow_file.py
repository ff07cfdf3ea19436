"""Catalogs and box tables on disk: Arrow IPC, uncompressed and memory-mapped, or Parquet; and what can be wrong."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from objcrop.errors import ObjcropError, UsageError
from objcrop.whole_file import StrPath, regular_file, whole_file


def write_table(table: pa.Table, kind: str, version: int, facts: dict[str, Any], path: StrPath) -> None:
    """Write a table whole or not at all (a temporary file, then a rename).

    Args:
        table: the columns.
        kind: "catalog" or "boxes"; goes into the schema's metadata with the version and the facts.
        version: of the format.
        facts: what a reader must know, as JSON can hold it.
        path: `.arrow` or `.parquet`.

    Raises:
        UsageError: another suffix.
        ObjcropError: the folder is missing, or writing failed.
    """
    target = Path(path)
    if target.suffix not in (".arrow", ".parquet"):
        raise UsageError(f"The name of the {kind} file '{target}' must end in .arrow or .parquet.")
    if not target.parent.is_dir():
        raise ObjcropError(f"The folder {target.parent} for the {kind} file is not there; make it first.")
    facts = {"kind": kind, "version": version} | facts
    table = table.combine_chunks().replace_schema_metadata({b"objcrop": json.dumps(facts).encode()})
    try:
        with whole_file(target) as part:
            if target.suffix == ".arrow":
                with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
                    writer.write_table(table)
            else:
                import pyarrow.parquet as pq

                pq.write_table(table, part, compression="zstd")
    except OSError as error:
        raise ObjcropError(f"{target} cannot be written ({error.strerror or error}); check space, rights.") from error


def read_table(
    path: StrPath,
    kind: str,
    version: int,
    facts: Mapping[str, type],
    schema: pa.Schema,
    remake: str,
    nullable: Sequence[str] = (),
) -> tuple[pa.Table, dict[str, Any]]:
    """Open a file; return its columns (`.arrow`: mapped, nothing is read yet) and the facts `write_table` got.

    What costs nothing is checked here: types, lengths, that nothing is missing. What takes a look at every row
    (offsets, UTF-8, the numbers) is checked by whoever uses the row, so that ten million of them open at once.

    Args:
        path: `.arrow` or `.parquet`.
        kind: what the file must be.
        version: that this code reads.
        facts: names that must be there, and the type of each.
        schema: the columns that must be there.
        remake: the command that makes such a file, for the error's way out.
        nullable: columns whose entries may be missing; of lists those inside.

    Raises:
        UsageError: the suffix is neither .arrow nor .parquet.
        ObjcropError: the file is missing, truncated, damaged, of another kind or version.
    """
    file = Path(path)
    if file.suffix not in (".arrow", ".parquet"):
        raise UsageError(f"The {kind} file '{file}' must end in .arrow or .parquet; make one with `{remake}`.")
    regular_file(file, f"{kind} file", f"make it with `{remake}`")
    try:
        table = _opened(file)
        names, metadata = table.column_names, table.schema.metadata or {}
    except Exception as error:  # a damaged file can raise anything in pyarrow; MemoryError for a length that is none
        cause = next(iter(str(error).splitlines()), type(error).__name__)
        raise ObjcropError(f"{file} is truncated or not {file.suffix[1:]} ({cause}); make it again.") from error
    try:
        found = json.loads(metadata[b"objcrop"])
        found_kind = found["kind"]
    except (KeyError, ValueError, TypeError, RecursionError):
        raise ObjcropError(f"{file} is not an objcrop {kind} file; make one with `{remake}`.") from None
    if found_kind != kind:
        raise ObjcropError(f"{file} is an objcrop file of kind '{found_kind}', not {kind}; make one with `{remake}`.")
    if not isinstance(found.get("version", 0), int):
        raise ObjcropError(f"{file} has the version {found['version']!r} in its metadata; remake it with `{remake}`.")
    if found.get("version", 0) > version:
        raise ObjcropError(f"{file} was made by a newer objcrop (version {found['version']}); upgrade, or remake it.")
    if found.get("version", 0) < version:
        raise ObjcropError(
            f"{file} was made by an older objcrop (version {found.get('version', 0)}); {_again(remake)}."
        )
    lacking = set(facts) - set(found)
    if lacking:
        raise ObjcropError(f"{file} lacks {', '.join(sorted(lacking))} in its metadata; remake it with `{remake}`.")
    for name, of in facts.items():
        if not isinstance(found[name], of):
            raise ObjcropError(f"{file} has no {of.__name__} as {name} in its metadata; remake it with `{remake}`.")
    _refuse_other_columns(table, names, schema, file, remake)
    table = table.select(schema.names)
    for field in schema:
        what = _missing(table.column(field.name), field.name in nullable)
        if what:
            raise ObjcropError(f"{file} is damaged: {what} of the column '{field.name}' is missing; {_again(remake)}.")
    logging.getLogger("objcrop").info("Read the %s %s: %s rows.", kind, file, f"{table.num_rows:,}")
    return table, found


def _opened(file: Path) -> pa.Table:
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(file)
        table.validate(full=True)  # all of it is in memory anyway
        return table
    table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    # `write_table` writes one chunk. Several are put together before use, and what is put together must be sound.
    table.validate(full=any(column.num_chunks > 1 for column in table.columns))
    return table


def _refuse_other_columns(table: pa.Table, names: list[str], schema: pa.Schema, file: Path, remake: str) -> None:
    for field in schema:
        if names.count(field.name) != 1:
            lacks = "lacks" if field.name not in names else "repeats"
            raise ObjcropError(f"{file} {lacks} the column '{field.name}'; {_again(remake)}.")
        found = table.schema.field(field.name).type
        if found != field.type:
            raise ObjcropError(f"In {file} the column '{field.name}' is {found}, not {field.type}; {_again(remake)}.")


def _missing(column: pa.ChunkedArray, nullable: bool) -> str:
    """Return what of a column is missing that must be there, "" where nothing is."""
    if nullable and not pa.types.is_list(column.type):
        return ""
    for chunk in column.chunks:
        inner, what = chunk, "a row"
        while True:
            if inner.null_count:
                return what
            if not hasattr(inner, "values") or (nullable and pa.types.is_list(inner.type)):
                break
            inner, what = inner.values, "an entry"
    return ""


def damaged(file: str, what: str, remake: str) -> ObjcropError:
    """Return the error of a file whose rows are not what they must be, met while using them.

    Args:
        file: its name, or what stands for it.
        what: what is wrong, the row named.
        remake: the command that makes such a file.
    """
    return ObjcropError(f"{file} is damaged: {what}; {_again(remake)}.")


def _again(remake: str) -> str:
    return f"make it again with `{remake}`"


def first_disorder(offsets: npt.NDArray[np.integer], values: int) -> int | None:
    """Return the first row whose list does not lie in 0 to `values`, or ends before it begins; None where all are fine.

    Args:
        offsets: integers (N + 1,) where each row's list begins and ends.
        values: how many entries there are.
    """
    for begin in range(0, len(offsets) - 1, 1 << 20):  # in parts: a hundred million rows take no memory of their own
        part = offsets[begin : begin + (1 << 20) + 1]
        wrong = (part[1:] < part[:-1]) | (part[:-1] < 0) | (part[1:] > values)
        if wrong.any():
            return begin + int(wrong.argmax())
    return None


def sound_texts(strings: pa.StringArray, begin: int, end: int) -> pa.StringArray:
    """Return entries of a string array, looked at: with damaged offsets, pyarrow reads past the file's end.

    Raises:
        ValueError: one is not UTF-8, or lies outside the file.
    """
    part = strings.slice(begin, end - begin)
    part.validate(full=True)
    return part


def sound_texts_at(strings: pa.StringArray, rows: Sequence[int]) -> list[str]:
    """Return entries at any rows of a string array without nulls, looked at as `sound_texts` does, and no others.

    Raises:
        ValueError: as of `sound_texts`.
    """
    _, offsets, text = strings.buffers()
    data = memoryview(text or b"")
    at = strings.offset + np.asarray(rows, np.int64)
    bounds = np.frombuffer(offsets, np.int32)[at[:, None] + [0, 1]]
    if (bounds < 0).any() or (bounds[:, 1] < bounds[:, 0]).any() or (bounds > len(data)).any():
        raise ValueError("it does not lie in the file")
    return [str(data[begin:end], "utf-8") for begin, end in bounds.tolist()]
