"""Columns of a CSV of gigabytes, block by block: what lies in memory is a block, however long the file."""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from objcrop.errors import ObjcropError
from objcrop.formats.index_report import IndexReport
from objcrop.formats.plain_values import BadValue, number
from objcrop.progress import tracked

BLOCK = 4 << 20  # bytes; a line must fit into one


class Block:
    """Neighbouring rows of a CSV.

    Attributes:
        lines: int64 (n,), the line of each row in the file, from 1.
    """

    def __init__(self, columns: dict[str, pa.Array], lines: npt.NDArray[np.int64], short: str) -> None:
        self._columns = columns
        self._short = short
        self.lines = lines

    def has(self, name: str) -> bool:
        """Whether the file has the column."""
        return name in self._columns

    def texts(self, name: str) -> tuple[list[str], npt.NDArray[np.int32]]:
        """Return the different texts of a column, without spaces around, and which of them each row has, (n,)."""
        encoded = self._columns[name].dictionary_encode()
        texts = [text.encode("latin-1").decode("utf-8", "surrogateescape") for text in encoded.dictionary.to_pylist()]
        return [text.strip() for text in texts], encoded.indices.to_numpy()

    def numbers(self, name: str, wrong: dict[int, str]) -> npt.NDArray[np.float64]:
        """Return a column as numbers, (n,), NaN where there is none; `wrong` gets the rows of what is none, and why."""
        cells = self._columns[name]
        try:
            return cells.cast(pa.float64()).to_numpy()
        except pa.ArrowInvalid:  # of one cell at least
            return np.array([_number(name, cell, row, wrong) for row, cell in enumerate(cells.to_pylist())])

    def good(self, wrong: dict[int, str], report: IndexReport) -> npt.NDArray[np.bool_]:
        """Return which rows are not in `wrong`, (n,); those that are go to the report with their reasons."""
        good = np.ones(len(self.lines), bool)
        good[list(wrong)] = False
        for row in sorted(wrong):
            report.leave_out_entry(f"{self._short} line {self.lines[row]}", wrong[row])
        return good


def blocks(
    path: str, what: str, report: IndexReport, needed: Sequence[str], wanted: Sequence[str] = ()
) -> Iterator[Block]:
    """Yield the rows of a CSV, their columns found by the names in its first line, which may be in any case.

    The file is UTF-8 with commas. Quotes are quotes where the first line has some; elsewhere they are characters like
    all others, so that a stray one spoils its own row and no more. Empty lines are passed over, rows with too few or
    too many cells listed.

    Args:
        path: the file.
        what: names it in errors.
        report: gets the rows that are left out.
        needed: columns that must be there.
        wanted: columns that are read where they are there.

    Raises:
        ObjcropError: the file cannot be read, lacks a column, or is no CSV.
    """
    short = os.path.basename(path)
    try:
        with open(path, "rb") as file:
            first = file.readline(BLOCK)
    except OSError as error:
        reason = (error.strerror or type(error).__name__).lower()
        raise ObjcropError(f"The {what} {path} cannot be read ({reason}); check the path.") from None
    names = [cell.strip().strip('"').lower() for cell in first.decode("utf-8-sig", "replace").split(",")]
    lacking = [name for name in needed if name.lower() not in names]
    if lacking:
        raise ObjcropError(f"{path} lacks the column {', '.join(lacking)} in its first line; is it the {what}?")
    chosen = [name for name in (*needed, *wanted) if name.lower() in names]
    for name in chosen:
        if names.count(name.lower()) > 1:
            raise ObjcropError(f"{path} has the column {name} twice in its first line; take one out.")
    odd: deque[tuple[int, int]] = deque()

    def skip(row: pa_csv.InvalidRow) -> str:
        odd.append((row.number, row.actual_columns))
        return "skip"

    # By Latin-1 every byte is a character, so that one that is no UTF-8 ends nothing; `Block.texts` takes it back.
    numbered = [str(i) for i in range(len(names))]
    picked = [numbered[names.index(name.lower())] for name in chosen]
    read = pa_csv.ReadOptions(
        block_size=BLOCK, use_threads=False, skip_rows=1, column_names=numbered, encoding="latin-1"
    )
    parse = pa_csv.ParseOptions(
        quote_char='"' if b'"' in first else False, ignore_empty_lines=False, invalid_row_handler=skip
    )
    convert = pa_csv.ConvertOptions(include_columns=picked, column_types=dict.fromkeys(picked, pa.string()))
    line = 2  # of the next row
    size = os.path.getsize(path)
    try:
        if size == len(first):
            return
        with pa_csv.open_csv(path, read, parse, convert) as reader:
            # The end is a step too: rows may have been left out behind the last batch.
            for batch in chain(tracked(reader, -(-size // BLOCK), f"reading {short}"), [None]):
                rows = 0 if batch is None else len(batch)
                skipped: list[int] = []
                while odd and (batch is None or odd[0][0] <= line + rows + len(skipped)):
                    at, cells = odd.popleft()
                    skipped.append(at)
                    report.leave_out_entry(f"{short} line {at}", f"it has {cells} cells, the first line {len(names)}")
                if batch is None:
                    return
                lines = np.delete(np.arange(line, line + rows + len(skipped)), np.array(skipped, np.int64) - line)
                line += rows + len(skipped)
                columns = {name: batch.column(i) for i, name in enumerate(chosen)}
                empty = pc.equal(batch.column(0), "").to_numpy(zero_copy_only=False)
                for row in np.flatnonzero(empty):
                    empty[row] = not any(column[int(row)].as_py() for column in columns.values())
                if empty.any():
                    columns = {name: column.filter(pa.array(~empty)) for name, column in columns.items()}
                    lines = lines[~empty]
                yield Block(columns, lines, short)
    except (pa.ArrowInvalid, OSError) as error:
        raise ObjcropError(f"{path} is no CSV ({' '.join(str(error).split())[:200]}); is it the {what}?") from None


def _number(name: str, cell: str, row: int, wrong: dict[int, str]) -> float:
    try:
        return number(cell.strip() or None)
    except BadValue as error:
        wrong.setdefault(row, f"{name}: {error}")
        return math.nan
