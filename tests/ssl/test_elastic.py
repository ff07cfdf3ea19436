"""Under torchrun a run goes on by itself: a rank dies, a machine goes or comes, and every step has its rows, once."""

import json
import os
import signal
import subprocess
import threading
from contextlib import ExitStack, suppress

import pytest
import torch
from children import free_port, machine, running, torchrun, until

from objcrop.bench.stopwatch import descendants
from objcrop.dali_pipes.load_views import load_views
from objcrop.launcher import LAUNCHERS, Place
from objcrop.ranks import _meet
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.run_folder import read_metrics

VIEWS = dict(size=16, batch_size=8, workers=0, crops="obj-scene")
SMALL = {**VIEWS, "arch": "timm/test_resnet", "loader": "torch", "queue": 16, "dim": 16, "hidden": 64, "bn_groups": 2}
SMALL |= {"checkpoint_every_steps": 2, "log_every_steps": 1}
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# With the store that torchrun shares, its agents of torch 2.15 do not find each other in a second round.
ENVIRONMENT["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
# Pretrains, and notes the rows of every step. What is to happen stands in WHAT, as attempt:rank:step:how.
SCRIPT = """
import json, os, signal, sys, time
import torch
from objcrop.cli import main
from objcrop.ssl.training.trainer import Run

rank, world, attempt = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "TORCHELASTIC_RESTART_COUNT"))
happens = [what.split(":") for what in os.environ.get("WHAT", "").split()]
now = {int(step): how for when, who, step, how in happens if (int(when), int(who)) == (attempt, rank)}
step, save = Run.take_step, torch.save

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def noted(self, batch):
    how = now.get(self.step)
    if how == "step":
        die()
    watched = step(self, batch)
    with open(f"rows.{os.environ.get('MACHINE', rank)}.jsonl", "a") as file:
        line = {"step": self.step, "rank": rank, "world": world, "rows": batch.index.tolist(), "at": time.time()}
        file.write(json.dumps(line) + "\\n")
    stop = signal.getsignal(signal.SIGTERM).__self__
    while os.path.exists(f"hold.{world}.{self.step}") and not stop.asked:
        time.sleep(0.05)
    return watched

def half(content, file):
    if now.get(content["step"]) == "checkpoint":
        file.write(bytes(100_000))
        file.flush()
        die()
    save(content, file)

Run.take_step, torch.save = noted, half
main(sys.argv[1:])
"""


@pytest.fixture
def data(photos, tmp_path):
    catalog, boxes = photos
    catalog.save(tmp_path / "c.arrow")
    boxes.save(tmp_path / "b.arrow")
    (tmp_path / "run.py").write_text(SCRIPT)
    return tmp_path


def command(steps, resume="auto"):
    options = [word for name, value in {**SMALL, "steps": steps}.items() for word in ("--set", f"{name}={value}")]
    return ["pretrain", "--catalog", "c.arrow", "--boxes", "b.arrow", "-o", "run", *options, f"--resume={resume}"]


def check_rows(folder, photos, steps):
    """Each step's last rows are those of one process, and its line of metrics is there once; return its worlds."""
    catalog, boxes = photos
    alone = []
    with load_views(catalog, boxes=boxes, backend="torch", rank=0, world_size=1, **VIEWS) as loader:
        while len(alone) < steps:
            alone += [batch.index.tolist() for batch in loader]
    said = [json.loads(line) for file in folder.glob("rows.*.jsonl") for line in file.read_text().splitlines()]
    worlds = []
    for step in range(1, steps + 1):
        of_step = sorted((line for line in said if line["step"] == step), key=lambda line: line["at"])
        world = of_step[-1]["world"]
        last = {line["rank"]: line["rows"] for line in of_step[-world:]}
        assert sorted(last) == list(range(world)), of_step
        rows = [row for together in zip(*(last[rank] for rank in range(world)), strict=True) for row in together]
        assert rows == alone[step - 1], step
        worlds.append(world)
    assert [line["step"] for line in read_metrics(folder / "run" / "metrics.jsonl")] == list(range(1, steps + 1))
    assert load_checkpoint(folder / "run" / "last.pt")["step"] == steps
    assert not list((folder / "run").glob(".*"))
    return worlds


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


def end_all_of(agent):
    """Kill a machine's agent and ranks as if it lost its power."""
    for pid in (agent.pid, *descendants(agent.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_machines_go_and_come(data, photos):
    """One machine begins, another joins, dies, and a third takes its place; each waits at its step for that."""
    steps = 30
    for hold in ("1.4", "2.10", "1.20"):
        (data / f"hold.{hold}").touch()
    line = machine(free_port(), "run.py", *command(steps))

    def taken(name, step, world):
        file = data / f"rows.{name}.jsonl"
        lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []
        return any((line["step"], line["world"]) == (step, world) for line in lines)

    with ExitStack() as stack:

        def starts(name):
            return stack.enter_context(running(line, cwd=data, env={**ENVIRONMENT, "MACHINE": name}))

        first = starts("first")
        until(lambda: taken("first", 4, 1), first)
        second = starts("second")
        until(lambda: taken("second", 10, 2) and taken("first", 10, 2), first)
        end_all_of(second)
        (data / "hold.2.10").unlink()
        until(lambda: taken("first", 20, 1), first)
        third = starts("third")
        _, errors = third.communicate()
        assert third.returncode == 0, errors[-3000:]
        until(lambda: not descendants(first.pid), first)  # the agent waits five minutes more for one that is gone
    worlds = check_rows(data, photos, steps)
    assert [worlds[at] for at in (0, 9, 19, 29)] == [1, 2, 1, 2]


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
        met[0].set("attempt", str(attempt))
        assert [met[rank].get("attempt") for rank in range(3)] == [str(attempt).encode()] * 3
