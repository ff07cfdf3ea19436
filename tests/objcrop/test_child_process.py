"""A child that crashes, raises or hangs is a sentence, and the next call has a new one."""

import ctypes
import multiprocessing
import operator
import os
import signal
import threading

import pytest

from objcrop.child_process import Child, ChildDied, alive


def wait_for_ever():
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
    with Child(wait_for_ever, quiet=0.5) as child:
        with pytest.raises(ChildDied, match="no word for 0"):
            child()
        assert child._process is None


def start_method():
    return multiprocessing.get_start_method()


def test_its_own_children_start_as_elsewhere():
    """Once a loader's workers were spawned there, which takes ten seconds each."""
    with Child(start_method) as child:
        assert child() == multiprocessing.get_start_method()


def test_in_no_child_alive_only_yields():
    assert list(alive("ab")) == ["a", "b"]
