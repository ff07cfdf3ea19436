"""Child processes in tests: how they are started, waited for and ended.

A test waits for progress, never for the clock: on a machine with ten other busy processes a second of work takes a
minute, and nothing is wrong. So no test sets a limit of its own (`timeout=`, "no step in a minute"). What is left is
the hang: the `timeout` of pyproject.toml, or of a test's mark, is for how many seconds a test and its children may
get nothing done (`pytest_timeout_set_timer`), however long they take in all.

    with running([sys.executable, "-m", "objcrop", …]) as child:
        until(lambda: metrics.exists(), child)   # fails at once with what the child said if it ends before
        child.kill()

`subprocess.run(…)` needs nothing of this where it only waits for the end. Children find this checkout's objcrop first
(conftest.py sets PYTHONPATH), and their temporary files go with the test session's.
"""

import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress

import pytest_timeout

from objcrop.bench.stopwatch import cpu_seconds, descendants

ROOT = pathlib.Path(__file__).resolve().parents[1]
IDLE = 0.02  # of one processor: two agents of torchrun take as much just looking whether their ranks live
ENDLESS = 20  # processors' worth of one limit, in one test: a loop without end


@contextmanager
def running(command, **options):
    """Start a child whose outputs are read as text; at the end of the block it and its own children are killed."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)
    try:
        yield child
    finally:
        for pid in (*descendants(child.pid), child.pid) if child.poll() is None else ():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        child.communicate()


def until(happened, child):
    """Return as soon as `happened()` is true, however long that takes; fail with its words if the child ends before."""
    while not happened():
        if child.poll() is not None and not happened():
            said, errors = child.communicate()
            raise AssertionError(f"the child ended with {child.returncode} before that: {said[-500:]} {errors[-3000:]}")
        time.sleep(0.02)


def torchrun(*script, ranks=2):
    """Return the command that runs a script, or `-m module`, with its arguments as so many ranks on this machine."""
    # A free port that the store itself holds, by an address that no name server has to know.
    launch = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", str(ranks)]
    return [sys.executable, "-m", "torch.distributed.run", *launch, *map(str, script)]


def machine(port, *script, host="127.0.0.1", here="127.0.0.1", known=""):
    """Return the command of one machine, of one rank, in a run of one or two; they meet at `host`, and come and go."""
    quick = "last_call_timeout=1,keep_alive_interval=1,keep_alive_max_attempt=3" + known
    meet = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:{port}", "--rdzv-conf", quick, "--rdzv-id", "1"]
    launch = ["--nnodes", "1:2", "--nproc-per-node", "1", "--max-restarts", "3", "--local-addr", here]
    return [sys.executable, "-m", "torch.distributed.run", *launch, *meet, *map(str, script)]


def process_of_rank(launcher, rank):
    """Return the process id of a rank that torchrun, a child, has started."""
    for pid in descendants(launcher.pid):
        if f"\0RANK={rank}\0".encode() in b"\0" + pathlib.Path(f"/proc/{pid}/environ").read_bytes():
            return pid
    raise LookupError(f"no rank {rank}")


def free_port():
    """Return a port for those who must know it before anyone listens, from below those that the system deals out."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def pytest_timeout_set_timer(item, settings):
    """Let a test's limit end those that hang: they and their children use no processor, or very much of it."""
    began = before = cpu_seconds()

    def look(*_):
        nonlocal before
        __tracebackhide__ = True
        now = cpu_seconds()
        used, before = abs(now - before), now  # less than before where a child's children ended with it
        if used >= IDLE * settings.timeout and now - began < ENDLESS * settings.timeout:
            return
        if pytest_timeout.is_debugging():
            return
        for pid in descendants(os.getpid()):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGABRT)  # each says where it was, see conftest.py
        pytest_timeout.timeout_sigalrm(item, settings)

    def cancel():
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    item.cancel_timeout = cancel
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, settings.timeout, settings.timeout)
    return True
