"""Runs under torchrun of which every step's rows are known, for tests in which ranks and machines die."""

import json
import os
import signal
from contextlib import suppress

from objcrop.bench.stopwatch import descendants
from objcrop.dali_pipes.load_views import load_views
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
from objcrop import heartbeat
from objcrop.cli import main
from objcrop.ssl.training.trainer import Run

heartbeat.EVERY, heartbeat.LOST_AFTER = 1, 20
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


def prepare(photos, folder):
    """Write catalog, boxes and script."""
    catalog, boxes = photos
    catalog.save(folder / "c.arrow")
    boxes.save(folder / "b.arrow")
    (folder / "run.py").write_text(SCRIPT)


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


def taken(folder, name, step, world):
    """Whether a machine has taken a step in a world of so many."""
    file = folder / f"rows.{name}.jsonl"
    lines = [json.loads(line) for line in file.read_text().split("\n")[:-1]] if file.exists() else []
    return any((line["step"], line["world"]) == (step, world) for line in lines)


def end_all_of(agent):
    """Kill a machine's agent and ranks as if it lost its power."""
    for pid in (agent.pid, *descendants(agent.pid)):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
