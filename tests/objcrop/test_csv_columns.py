"""Blocks of a CSV against its lines split at commas, whatever the size of a block."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from objcrop.errors import ObjcropError
from objcrop.formats import csv_columns
from objcrop.formats.csv_columns import blocks
from objcrop.formats.index_report import IndexReport

CELL = st.text(st.sampled_from('a7.é"\0 -猫'), max_size=5)


def read(path, needed=("Name", "Value"), wanted=(), **strict):
    """The rows as (line, name, value), and what was left out, of the blocks put together."""
    report = IndexReport(**strict)
    rows = []
    for block in blocks(str(path), "list", report, needed, wanted):
        texts, which = block.texts("Name")
        wrong = {}
        values = block.numbers("Value", wrong)
        good = block.good(wrong, report)
        rows += [(block.lines[i], texts[which[i]], values[i]) for i in np.flatnonzero(good)]
    return rows, report.bad_entries


@given(rows=st.lists(st.lists(CELL, min_size=0, max_size=4), max_size=30), size=st.sampled_from([64, 200, 1 << 20]))
def test_rows_are_the_lines_split_at_commas(tmp_path_factory, rows, size):
    folder = tmp_path_factory.mktemp("csv")
    text = "\n".join(["Other,NAME,value", *(",".join(row) for row in rows)])
    (folder / "a.csv").write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(csv_columns, "BLOCK", size)
        found, left_out = read(folder / "a.csv")
    expected, odd = [], []
    for line, row in enumerate(text.split("\n")[1:], 2):
        cells = row.split(",")
        if len(cells) != 3:
            odd += [line] if row else []
            continue
        if not any(cells[1:]):
            continue
        try:
            value = float(cells[2]) if cells[2].strip() else np.nan
            expected.append((line, cells[1].strip(), value))
        except ValueError:
            odd.append(line)
    np.testing.assert_equal(sorted(found), sorted(expected))
    assert sorted(int(place.split()[-1]) for place, _ in left_out) == odd


def test_quotes_count_where_the_first_line_has_them(tmp_path):
    (tmp_path / "a.csv").write_text('"Name","Value"\n"a, ""b""","1"\n"c","2.5"\n', newline="\r\n")
    assert read(tmp_path / "a.csv") == ([(2, 'a, "b"', 1.0), (3, "c", 2.5)], [])
    (tmp_path / "a.csv").write_text('Name,Value\n"c,1\nd,2\n"\ne,3\n')
    assert read(tmp_path / "a.csv") == (
        [(2, '"c', 1.0), (3, "d", 2.0), (5, "e", 3.0)],
        [("a.csv line 4", "it has 1 cells, the first line 2")],
    )


def test_what_is_no_such_csv_is_a_sentence(tmp_path):
    path = tmp_path / "a.csv"

    def error(data):
        path.write_bytes(data)
        with pytest.raises(ObjcropError) as raised:
            read(path)
        return str(raised.value)

    assert error(b"") == f"{path} lacks the column Name, Value in its first line; is it the list?"
    assert "lacks the column Value" in error(b"Name,Other\na,1\n")
    assert "has the column Name twice" in error(b"Name,Value,NAME\na,1,b\n")
    assert "lacks the column" in error("Name,Value\na,1\n".encode("utf-16"))
    assert "is no CSV" in error(b'"Name",Value\n' + b'"a,1\n' * 3_000_000)
    path.unlink()
    with pytest.raises(ObjcropError, match="cannot be read"):
        read(path)


def test_bytes_that_are_no_text_spoil_their_row_only(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfName,Value\n\xff,1\n\xff\nb,\xff\0\n" + "é,2\n".encode() + b"c,\n")
    found, left_out = read(path)
    np.testing.assert_equal(found, [(2, "\udcff", 1.0), (5, "é", 2.0), (6, "c", np.nan)])
    assert [place for place, _ in left_out] == ["a.csv line 3", "a.csv line 4"]
    with pytest.raises(ObjcropError, match="line 3: it has 1 cells, the first line 2; correct it"):
        read(path, strict=True)


def test_a_file_of_its_first_line_only_has_no_rows(tmp_path):
    for text in ("Name,Value", "Name,Value\n", "Name,Value\n\n\n"):
        (tmp_path / "a.csv").write_text(text)
        assert read(tmp_path / "a.csv") == ([], [])
