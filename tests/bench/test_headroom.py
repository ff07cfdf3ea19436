"""The arithmetic of waiting, by a fake clock, and by a fake GPU whose work goes on while the host waits."""

import types

import pytest
import torch
from gpu_clock import Clock, pretend_gpu

import objcrop
from objcrop.bench import headroom as room


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(room, "time", types.SimpleNamespace(perf_counter=lambda: clock.now))
    return clock


@pytest.fixture
def gpu(clock, monkeypatch):
    pretend_gpu(clock, monkeypatch)
    return clock


def loader(clock, waits, end=0.0):
    for wait in waits:
        clock.now += wait
        yield wait
    clock.now += end


def near(*values):
    return tuple(pytest.approx(value) for value in values)


def test_on_a_cpu(clock):
    said = []
    loop = objcrop.headroom(loader(clock, [5, 1, 0, 2], end=1), said.append)
    batches = []
    for batch in loop:
        batches.append(batch)
        clock.now += 3
    assert batches == [5, 1, 0, 2]
    # From the first batch on: four steps of 3 s, waits of 1, 0, 2, and 1 for the end.
    assert (loop.batches, loop.first, loop.seconds, loop.waited) == (4, *near(5, 16, 4))
    assert (loop.share, loop.speed_up) == near(4 / 16, 16 / 12)
    (sentence,) = said
    assert "4 batches in 16.0 s, 4.0 s of them (25.0%)" in sentence and "1.33 times as fast (start: 5.0 s" in sentence


def test_walks_add_up_and_what_lies_between_them_does_not(clock, capsys):
    class Epochs:
        def __len__(self):
            return 2

        def __iter__(self):
            return loader(clock, [4, 1])

    loop = objcrop.headroom(Epochs())
    assert len(loop) == 2
    for _ in range(2):
        for _ in loop:
            clock.now += 2
        clock.now += 100  # validation
    # The second epoch's first batch is waited for as any other.
    assert (loop.batches, loop.first, loop.seconds, loop.waited) == (4, *near(4, 5 + 9, 1 + 5))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_a_break_ends_it(clock):
    said = []
    loop = objcrop.headroom(loader(clock, [1, 2, 2]), said.append)
    for batch in loop:
        clock.now += 3
        if batch == 2:
            break
    assert (loop.seconds, loop.waited) == near(3 + 2 + 3, 2) and len(said) == 1


@pytest.mark.parametrize(
    ("wait", "lost"),
    [(1, 0), (4, 0), (6, 2)],  # of a step of 4 s on the GPU the host waits for a batch as long as it does, or longer
)
def test_on_a_gpu_only_idle_time_is_lost(gpu, wait, lost):
    loop = objcrop.headroom(loader(gpu, [10, *[wait] * 8]), lambda sentence: None)
    for _ in loop:
        gpu.launch(4)
    assert (loop.first, loop.seconds, loop.waited) == near(10, 9 * 4 + 8 * lost, 8 * lost)
    assert gpu.now == gpu.busy_until or lost  # the last step's work is in the loop's time
    assert not loop._gaps


def test_a_loop_that_synchronises(gpu):
    """Then the GPU is idle all the while that the host waits."""
    loop = objcrop.headroom(loader(gpu, [10, 1, 1, 1]), lambda sentence: None)
    for _ in loop:
        gpu.launch(4)
        gpu.now = gpu.busy_until
    assert (loop.seconds, loop.waited) == near(4 * 4 + 3, 3)


def test_a_gpu_that_a_loader_wakes(clock, monkeypatch, gpu):
    """Before it no event can be recorded; the host's clock does."""
    woken = iter([False, True])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: next(woken, True))
    loop = objcrop.headroom(loader(gpu, [10, 6]), lambda sentence: None)
    for _ in loop:
        gpu.launch(4)
    assert (loop.first, loop.seconds, loop.waited) == near(10, 10, 2)


def test_a_loader_that_does_nothing_but_wait(clock):
    loop = objcrop.headroom(loader(clock, [1, 1]), lambda sentence: None)
    list(loop)
    assert loop.speed_up == float("inf") and "inf times" in str(loop)
    assert objcrop.headroom([]).share == 0
