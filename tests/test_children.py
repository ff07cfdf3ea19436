"""The tests' own waiting: what computes is let be, what hangs is ended, and nothing outlives its block."""

import signal
import sys
from types import SimpleNamespace

import children
import pytest
import pytest_timeout
from children import descendants, running, until

SLEEPS = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(10_000)"]
STARTS_ONE = [sys.executable, "-c", f"import subprocess; print('up', flush=True); subprocess.run({SLEEPS})"]


class Ended(Exception):
    pass


@pytest.mark.parametrize(
    ("used", "ends"),
    [
        ([0, 100, 103, 200], False),  # slow is no hang
        ([0, 100, 20, 50], False),  # children ended, and what they used went with them
        ([0, 100, 101], True),
        ([0, 1], True),
        ([0, 1000, 1999, 2001], True),  # a loop without end
    ],
)
def test_a_limit_is_for_seconds_without_progress(monkeypatch, used, ends):
    def end(item, settings):
        raise Ended

    timer, alarm = signal.getitimer(signal.ITIMER_REAL), signal.getsignal(signal.SIGALRM)
    readings = iter(used)
    monkeypatch.setattr(children, "cpu_seconds", lambda: next(readings))
    monkeypatch.setattr(pytest_timeout, "timeout_sigalrm", end)
    with running(SLEEPS) as child:
        item = SimpleNamespace()
        children.pytest_timeout_set_timer(item, SimpleNamespace(timeout=100))
        look = signal.getsignal(signal.SIGALRM)
        try:
            for _ in used[1:-1]:
                look()
            if ends:
                with pytest.raises(Ended):
                    look()
                assert child.wait() == -signal.SIGABRT
            else:
                look()
                assert child.poll() is None
        finally:
            item.cancel_timeout()
            signal.signal(signal.SIGALRM, alarm)
            signal.setitimer(signal.ITIMER_REAL, *timer)


def test_until_something_happens_or_the_child_ends():
    with running(SLEEPS) as child:
        looks = iter([False, False, True])
        until(lambda: next(looks), child)
    with (
        running([sys.executable, "-c", "import sys; sys.exit('no luck')"]) as child,
        pytest.raises(AssertionError, match=r"ended with 1 before that: (.|\n)*no luck"),
    ):
        until(lambda: False, child)


def test_nothing_outlives_its_block():
    with running(STARTS_ONE) as child:
        until(lambda: len(descendants(child.pid)) == 1, child)
    assert child.returncode == -signal.SIGKILL  # and its own child is dead: else the outputs they share were still open
