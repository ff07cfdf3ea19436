"""CSVs as people and spreadsheets write them: commas, semicolons, tabs or bars, decimal commas, any encoding."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Collection, Iterator

from objcrop.errors import ObjcropError
from objcrop.formats.index_report import IndexReport
from objcrop.formats.text_file import read_text


def csv_rows(
    path: str,
    what: str,
    report: IndexReport,
    *,
    needed: Collection[str] = (),
    numbers: Collection[str] = (),
    way_out: str = "check the path",
) -> tuple[list[str], Iterator[tuple[int, dict[str, str]]]]:
    """Return the names in the first line, in lower case, and of each row its line and its cells by these names.

    Empty lines are passed over, cells have no spaces around, and those that a line lacks are "".

    Args:
        path: file.
        what: names it in the error.
        report: gets the lines that are no CSV.
        needed: columns that must be there.
        numbers: columns whose decimal commas become points, where no commas stand between the columns.
        way_out: ends the error of a file that cannot be read.

    Raises:
        ObjcropError: the file cannot be read, or lacks a column.
    """
    text = read_text(path, what, way_out)
    told = re.match(r"\s*sep=(.)\r?\n", text)  # a line that Excel writes and reads
    if told:
        text = "\n" + text[told.end() :]
    delimiter = told.group(1) if told else _delimiter(text)
    lines = _lines(text, delimiter, os.path.basename(path), report)
    names = [name.lower() for name in next(lines, (0, []))[1]]
    lacking = set(needed) - set(names)
    if lacking:
        raise ObjcropError(f"{path} lacks the column {', '.join(sorted(lacking))} in its first line.")
    commas = set() if delimiter == "," else set(numbers) & set(names)

    def rows() -> Iterator[tuple[int, dict[str, str]]]:
        for at, cells in lines:
            row = dict(zip(names, cells + [""] * (len(names) - len(cells))))
            for name in commas:
                if row[name].count(",") == 1 and "." not in row[name]:
                    row[name] = row[name].replace(",", ".")
            yield at, row

    return names, rows()


def _lines(text: str, delimiter: str, short: str, report: IndexReport) -> Iterator[tuple[int, list[str]]]:
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    while True:
        try:
            cells = [cell.strip() for cell in next(lines)]
        except StopIteration:
            return
        except csv.Error as error:
            report.leave_out_entry(f"line {lines.line_num} of {short}", str(error))
            continue
        if any(cells):
            yield lines.line_num, cells


def _delimiter(text: str) -> str:
    """Return what stands between the names of the columns."""
    head = next((line for line in text.splitlines() if line.strip()), "")
    counts = {mark: head.count(mark) for mark in ",;\t|"}
    return max(counts, key=lambda mark: counts[mark])
