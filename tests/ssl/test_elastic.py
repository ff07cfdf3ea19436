"""Under torchrun a run goes on by itself: a rank dies, a machine goes or comes, and every step has its rows, once."""

import subprocess
import threading
from contextlib import ExitStack

import pytest
import torch
from children import free_port, machine, running, torchrun, until
from elastic_runs import ENVIRONMENT, check_rows, command, end_all_of, prepare, taken

from objcrop.bench.stopwatch import descendants
from objcrop.launcher import LAUNCHERS, Place
from objcrop.ranks import _meet


@pytest.fixture
def data(photos, tmp_path):
    prepare(photos, tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("what", "ranks"),
    [
        ("0:1:5:step", 2),
        pytest.param("0:0:6:checkpoint", 1, marks=pytest.mark.slow),  # which is half written
        # Rank 1 waits for the checkpoint of a rank 0 that is no more, until torchrun ends it after half a minute.
        pytest.param("0:1:0:step 1:0:2:checkpoint 2:1:5:step 3:0:8:checkpoint", 2, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_dies_is_started_again_and_no_row_is_lost(data, photos, what, ranks):
    run = torchrun("--max-restarts", what.count(":") // 3, "run.py", *command(10), ranks=ranks)
    ended = subprocess.run(run, cwd=data, env={**ENVIRONMENT, "WHAT": what}, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-3000:]
    assert set(check_rows(data, photos, 10)) == {ranks}


@pytest.mark.slow
def test_machines_go_and_come(data, photos):
    """One machine begins, another joins, dies, and a third takes its place; each waits at its step for that."""
    steps = 30
    for hold in ("1.4", "2.10", "1.20"):
        (data / f"hold.{hold}").touch()
    line = machine(free_port(), "run.py", *command(steps))

    with ExitStack() as stack:

        def starts(name):
            return stack.enter_context(running(line, cwd=data, env={**ENVIRONMENT, "MACHINE": name}))

        first = starts("first")
        until(lambda: taken(data, "first", 4, 1), first)
        second = starts("second")
        until(lambda: taken(data, "second", 5, 2), second)
        until(lambda: taken(data, "second", 10, 2) and taken(data, "first", 10, 2), first)
        end_all_of(second)
        (data / "hold.2.10").unlink()
        until(lambda: taken(data, "first", 20, 1), first)
        third = starts("third")
        _, errors = third.communicate()
        assert third.returncode == 0, errors[-3000:]
        until(lambda: not descendants(first.pid), first)  # the agent waits five minutes more for one that is gone
    worlds = check_rows(data, photos, steps)
    # The second died in step 10, before that was saved; the last checkpoint of both is that of step 8, or of the epoch,
    # at step 9, where the clock finds it worth writing.
    assert worlds in [[1] * 4 + [2] * (saved - 4) + [1] * (20 - saved) + [2] * 10 for saved in (8, 9)]


def test_processes_meet_in_a_store_that_others_met_in_before(monkeypatch):
    """torchrun's store outlives restarts, and the machines do not count the same number of them."""
    store = torch.distributed.TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for attempt in range(3):
        met = {}

        def meets(rank, met=met):
            met[rank] = _meet(Place(LAUNCHERS[0], rank, 3))

        ranks = [threading.Thread(target=meets, args=(rank,)) for rank in (2, 1, 0)]
        for rank in ranks:  # the later come first: they find what was left by those before
            rank.start()
            rank.join(0.2 if rank is not ranks[-1] else None)
        for rank in ranks:
            rank.join()
        met[0][0].set("attempt", str(attempt))
        assert [met[rank][1].get("attempt") for rank in range(3)] == [str(attempt).encode()] * 3
