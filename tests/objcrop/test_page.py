"""The page that reports, reproduced tables and the demo are put on."""

import io

import pytest
from html_page import Page
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from objcrop.page import (
    Html,
    bullets,
    column_each,
    drawn,
    figure,
    folded,
    heading,
    link,
    listing,
    page,
    paragraph,
    picture,
    row_each,
    strong,
    table,
)

NASTY = "<script>alert('x')</script> & \"δ\" <b>"
WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=30)


def png(width, height):
    file = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(file, "PNG")
    return file.getvalue()


@given(WORDS, st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
def test_whatever_is_said_is_text(words, rows):
    seen = Page(page(words, words, heading(words), bullets([words]), listing([words]), table([words, words], rows)))
    assert seen.text.count(words) >= 6
    assert seen.tables == [[[words, words], *map(list, rows)]]


def test_pieces_are_kept_and_all_else_is_escaped():
    parts = [heading(NASTY, name="a"), link(NASTY, "a"), paragraph(NASTY), folded(NASTY, NASTY), strong(NASTY)]
    seen = Page(page(NASTY, NASTY, *parts, picture(png(7, 5), NASTY)))
    assert seen.ids == ["a"] and seen.images[0].size == (7, 5)
    assert seen.text.count(NASTY) == 9
    assert Page(page("t", Html("<p>one</p>"))).text.split() == ["t", "t", "one"]


def test_tables_of_entries_have_what_any_of_them_holds():
    entries = [{"a": 1, "none": None}, {"b": 0.25, "a": 2}]
    assert Page(page("", row_each(entries))).tables == [[["a", "b"], ["1", ""], ["2", "0.25"]]]
    (turned,) = Page(page("", column_each(["x", "y"], entries))).tables
    assert turned == [["", "x", "y"], ["a", "1", "2"], ["b", "", "0.25"]]
    assert Page(page("", row_each([]))).tables == [[[]]]


def test_columns_of_numbers_stand_to_the_right():
    rows = [["a", 1.0, "2 of 3", "x1", None], ["b", None, "10 %", "2", None]]
    html = str(table(["name", "float", "begins with one", "mixed", "empty"], rows))
    assert html.count('<th scope="col" class="number">') == 2 and html.count('<td class="number">') == 4


@pytest.mark.parametrize(
    ("value", "read"),
    [
        *((1234567, "1,234,567"), (0.123456, "0.1235"), (1234.6, "1,235"), (1.5e-6, "1.5e-06"), (1e20, "1e+20")),
        *((True, "yes"), (None, None), ("0.50", "0.50"), ([0.2, 1.0], "0.2, 1"), (float("nan"), "nan")),
    ],
)
def test_numbers_as_they_are_read(value, read):
    assert figure(value) == read


def test_a_picture_is_a_png():
    with pytest.raises(ValueError, match="curves: no PNG"):
        picture(b"\xff\xd8 a JPEG", "curves")
    with pytest.raises(ValueError, match="no PNG"):
        picture(png(7, 5)[:20], "curves")


def test_a_figure_is_drawn():
    from matplotlib.figure import Figure

    assert Page(page("", drawn(Figure((2, 1)), "nothing", dpi=50))).images[0].size == (100, 50)
