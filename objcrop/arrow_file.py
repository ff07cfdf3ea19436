"""Catalogs and box tables on disk: Arrow IPC, uncompressed and memory-mapped, or Parquet; and what can be wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from objcrop.errors import ObjcropError, UsageError
from objcrop.whole_file import whole_file


def write_table(table: pa.Table, kind: str, version: int, facts: dict[str, Any], path: str | os.PathLike[str]) -> None:
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
    path: str | os.PathLike[str], kind: str, version: int, facts: Sequence[str], remake: str
) -> tuple[pa.Table, dict[str, Any]]:
    """Open a file; return its table (`.arrow`: mapped, nothing is read yet) and the facts `write_table` got.

    Args:
        path: `.arrow` or `.parquet`.
        kind: what the file must be.
        version: the newest that this code reads.
        facts: names that must be there.
        remake: the command that makes such a file, for the error's way out.

    Raises:
        UsageError: the suffix is neither .arrow nor .parquet.
        ObjcropError: the file is missing, truncated, of another kind or from a newer version.
    """
    file = Path(path)
    if file.suffix not in (".arrow", ".parquet"):
        raise UsageError(f"The {kind} file '{file}' must end in .arrow or .parquet; make one with `{remake}`.")
    if not file.is_file():
        raise ObjcropError(f"The {kind} file {file} is not there; make it with `{remake}`.")
    try:
        if file.suffix == ".parquet":
            import pyarrow.parquet as pq

            table = pq.read_table(file)
        else:
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
    except (pa.ArrowException, OSError) as error:
        cause = str(error).splitlines()[0]
        raise ObjcropError(f"{file} is truncated or not {file.suffix[1:]} ({cause}); make it again.") from error
    try:
        found = json.loads((table.schema.metadata or {})[b"objcrop"])
        found_kind = found["kind"]
    except (KeyError, ValueError, TypeError):
        raise ObjcropError(f"{file} is not an objcrop {kind} file; make one with `{remake}`.") from None
    if found_kind != kind:
        raise ObjcropError(f"{file} is an objcrop file of kind '{found_kind}', not {kind}; make one with `{remake}`.")
    if found.get("version", 0) > version:
        raise ObjcropError(f"{file} was made by a newer objcrop (version {found['version']}); upgrade, or remake it.")
    lacking = set(facts) - set(found)
    if lacking:
        raise ObjcropError(f"{file} lacks {', '.join(sorted(lacking))} in its metadata; remake it with `{remake}`.")
    return table, found


def refuse_other_columns(table: pa.Table, schema: pa.Schema, path: str | os.PathLike[str], remake: str) -> None:
    """Raise an `ObjcropError` that names the first column of `schema` that is missing or of another type in `table`."""
    for field in schema:
        if field.name not in table.column_names:
            raise ObjcropError(f"{path} lacks the column '{field.name}'; make it again with `{remake}`.")
        found = table.schema.field(field.name).type
        if found != field.type:
            raise ObjcropError(
                f"In {path} the column '{field.name}' is {found}, not {field.type}; make it again with `{remake}`."
            )
