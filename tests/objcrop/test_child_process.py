"""A child that crashes, raises or hangs is a sentence, and the next call has a new one."""

import atexit
import ctypes
import multiprocessing
import operator
import os
import pathlib
import signal
import threading

import pytest

from objcrop.child_process import Child, ChildDied, alive, in_a_line


def wait_for_ever(really):
    if really:
        threading.Event().wait()


def walk(n):
    return [(os.getpid(), item) for item in alive(range(n))]


def test_calls_go_to_one_process_until_it_dies():
    with Child(ctypes.string_at) as child:
        with pytest.raises(ChildDied, match=r"^killed by SIGSEGV$"):
            child(0)
        said = child.said()
        assert child(b"next") == b"next"
    assert "Segmentation fault" in said and "string_at" in said  # where it was
    with Child(walk) as child:
        one, other = child(2), child(3)
    (pid,) = {pid for pid, _ in one + other}
    assert pid != os.getpid() and [item for _, item in other] == [0, 1, 2]


@pytest.mark.parametrize(
    ("function", "arguments", "words"),
    [
        (operator.truediv, (1, 0), "division by zero"),
        (os._exit, (3,), "ended with exit code 3"),
        (signal.raise_signal, (signal.SIGABRT,), "killed by SIGABRT"),
    ],
)
def test_how_it_ended(function, arguments, words):
    with Child(function) as child, pytest.raises(ChildDied) as died:
        child(*arguments)
    assert str(died.value) == words


def test_one_that_hangs_is_ended():
    with Child(wait_for_ever) as child:
        child(False)  # it is up
        child.quiet = 0.5
        with pytest.raises(ChildDied, match="no word for 0"):
            child(True)
        assert child._process is None and "wait_for_ever" in child.said()  # where it was


def start_method():
    return multiprocessing.get_start_method()


def test_its_own_children_start_as_elsewhere():
    """Once a loader's workers were spawned there, which takes ten seconds each."""
    with Child(start_method) as child:
        assert child() == multiprocessing.get_start_method()


def at_exit(file):
    atexit.register(pathlib.Path(file).touch)


def test_one_that_is_no_longer_needed_ends_as_others_do(tmp_path):
    with Child(at_exit) as child:
        child(tmp_path / "ended")
        process = child._process
    assert process.exitcode == 0 and (tmp_path / "ended").exists()


def test_in_no_child_alive_only_yields():
    assert list(alive("ab")) == ["a", "b"]


@pytest.mark.parametrize(
    ("said", "line"),
    [
        ("first\nsecond", "first"),
        ("", "RuntimeError"),
        (
            "Critical error in pipeline:\nwhich was used\n\nencountered:\n\nFailed to decode sample #2 :\nno longer",
            "Failed to decode sample #2 :",
        ),
    ],
)
def test_an_error_in_a_line(said, line):
    assert in_a_line(RuntimeError(said)) == line
