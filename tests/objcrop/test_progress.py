"""How far long work is: a bar, lines, silence, and never two bars on one terminal."""

import itertools
import logging

import pytest

from objcrop import progress
from objcrop.progress import duration, quiet, terminal, tracked


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on two seconds whenever it is looked at."""
    monkeypatch.setattr(progress.time, "monotonic", itertools.count(0, 2.0).__next__)


@pytest.fixture
def on_a_terminal(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("COLUMNS", "100")


def test_lines_say_how_many_how_fast_and_how_long_yet(clock, capsys):
    assert list(tracked(iter("abcdefgh"), 8, "reading")) == list("abcdefgh")
    said = capsys.readouterr()
    assert not said.out and said.err.splitlines() == [
        "reading: 3 of 8, 0.5/s, 10 s left",
        "reading: 6 of 8, 0.5/s, 4.0 s left",
    ]


def test_what_was_done_before_counts_as_done_but_not_as_fast(clock, capsys):
    list(tracked([64, 64, 32], 1160, "bing", done=1000, size=lambda rows: rows))
    assert capsys.readouterr().err == "bing: 1160 of 1160, 27/s, 0.0 s left\n"


def test_a_bar_is_on_a_terminal_alone(on_a_terminal, capsys):
    for _ in tracked(range(3), 3, "outer"):
        assert terminal.locked()
        list(tracked(range(2), 2, "inner"))
        assert terminal.locked()
    assert not terminal.locked()
    said = capsys.readouterr().err
    assert "outer" in said and "3/3" in said and "/s" in said and "inner" not in said


def test_a_walk_that_is_left_lets_go_of_the_terminal(on_a_terminal):
    walk = tracked(range(3), 3, "left")
    next(walk)
    walk.close()
    assert not terminal.locked()
    with pytest.raises(ZeroDivisionError):
        list(tracked((1 // n for n in (1, 0)), 2, "broken"))
    assert not terminal.locked()


@pytest.mark.parametrize(("level", "silent"), [(logging.ERROR, True), (logging.WARNING, False), (logging.INFO, False)])
def test_the_loggers_level_says_how_loud(clock, capsys, caplog, level, silent):
    with caplog.at_level(level, "objcrop"):
        assert quiet() == silent
        assert list(tracked(range(5), 5, "reading")) == [*range(5)]
    assert (capsys.readouterr().err == "") == silent
    assert [record.getMessage() for record in caplog.records] == ["Reading took 14 s."] * (level == logging.INFO)


@pytest.mark.parametrize(
    ("seconds", "read"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (59.6, "1 min 0 s"), (3599.7, "1 h 0 min"), (90061, "25 h 1 min")],
)
def test_durations(seconds, read):
    assert duration(seconds) == read
