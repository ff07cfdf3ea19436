"""Others' loops in several processes: ranks get disjoint rows that make up the global batch, or a sentence."""

import json
import os
import pickle
import subprocess
import sys

import pytest
from children import free_port, torchrun

from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import ObjcropError, UsageError
from objcrop.launcher import LAUNCHERS, launched, local_rank

OPTIONS = dict(crops="obj-obj", size=16, batch_size=8, backend="torch", workers=0, augment="none")
BEGIN = f"""
import json, os, sys
import objcrop

def build(**more):
    return objcrop.load_views("photos.arrow", boxes="boxes.arrow", **{{**{OPTIONS!r}, **more}})

def walk(loader):
    return [batch.index.tolist() for batch in loader]

def say(name, rank, rows):
    with open(f"{{name}}.{{rank}}.json", "w") as file:
        json.dump(rows, file)
"""


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Forget what a launcher of the tests themselves may have left."""
    more = ("LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_NTASKS", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
    for name in (*(name for launcher in LAUNCHERS for name in launcher[1:]), *more):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def data(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    catalog, boxes = photos
    catalog.save(folder / "photos.arrow")
    boxes.save(folder / "boxes.arrow")
    return folder


@pytest.fixture(scope="module")
def alone(photos):
    """The rows of two epochs' batches in one process."""
    with load_views(photos[0], boxes=photos[1], rank=0, world_size=1, **OPTIONS) as loader:
        return [[batch.index.tolist() for batch in loader] for _ in range(2)]


def run(folder, script, command=(sys.executable, "loop.py")):
    (folder / "loop.py").write_text(BEGIN + script)
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr[-4000:]


def assert_shared(folder, name, *epochs):
    """Two ranks' rows, interleaved, are the global batches of these epochs."""
    ranks = [json.loads((folder / f"{name}.{rank}.json").read_text()) for rank in range(2)]
    assert not {row for batch in ranks[0][: len(epochs[0])] for row in batch} & {
        row for batch in ranks[1][: len(epochs[0])] for row in batch
    }
    for first, second, both in zip(*ranks, [batch for epoch in epochs for batch in epoch], strict=True):
        assert [row for pair in zip(first, second, strict=True) for row in pair] == both


UNDER_TORCHRUN = """
import torch.distributed as dist
rank = int(os.environ["RANK"])
early, late = build(), build()
say("no group", rank, walk(early))
dist.init_process_group("gloo")
say("a group after building", rank, walk(late))
say("a group between epochs", rank, walk(early))
dist.barrier()
dist.destroy_process_group()
"""


def test_torchrun_without_a_group_and_with_one_that_comes_late(data, alone):
    run(data, UNDER_TORCHRUN, torchrun("loop.py"))
    assert_shared(data, "no group", alone[0])
    assert_shared(data, "a group after building", alone[0])
    assert_shared(data, "a group between epochs", alone[1])


SPAWNED = """
import torch, torch.distributed as dist

def child(rank, loader, more):
    try:
        walk(loader)
    except objcrop.ObjcropError as error:
        say("unknown", rank, str(error))
    dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/meeting", rank=rank, world_size=2)
    say("spawned", rank, walk(loader))
    try:
        dist.destroy_process_group()
        walk(loader)
    except objcrop.ObjcropError as error:
        say("changed", rank, str(error))

if __name__ == "__main__":
    torch.multiprocessing.spawn(child, (build(), 0), nprocs=2)
"""


@pytest.mark.slow
def test_spawned_after_building(data, alone):
    (data / "meeting").unlink(missing_ok=True)
    run(data, SPAWNED)
    assert_shared(data, "spawned", alone[0])
    for rank in range(2):
        assert "built in another process" in (data / f"unknown.{rank}.json").read_text()
        assert "built in another process" in (data / f"changed.{rank}.json").read_text()


LIGHTNING = """
import torch
import pytorch_lightning as pl

class Loop(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.rows = torch.nn.Linear(3, 1), []

    def training_step(self, batch, step):
        self.rows.append(batch.index.tolist())
        return self.layer(batch.views[0].mean((2, 3))).mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
loader, loop = build(), Loop()
next(iter(loader))  # a look at a batch before the processes are there
trainer = pl.Trainer(accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, **quiet)
trainer.fit(loop, loader)
say("lightning", trainer.global_rank, loop.rows)
"""


@pytest.mark.slow
def test_lightning_ddp(data, alone):
    pytest.importorskip("pytorch_lightning")
    run(data, LIGHTNING)
    assert_shared(data, "lightning", *alone)


ACCELERATE = """
from accelerate import Accelerator
loader = build()
accelerator = Accelerator(cpu=True)
loader = accelerator.prepare(loader)
say("accelerate", accelerator.process_index, walk(loader))
accelerator.wait_for_everyone()
accelerator.end_training()
"""


@pytest.mark.slow
def test_accelerate_launch(data, alone):
    pytest.importorskip("accelerate")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--num_machines", "1", "--main_process_port", str(free_port())]
    launcher += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    run(data, ACCELERATE, [*launcher, "loop.py"])
    assert_shared(data, "accelerate", alone[0])


# ---- the same without processes


def build(photos, **options):
    return load_views(photos[0], boxes=photos[1], **{**OPTIONS, **options})


def walk(loader):
    return [batch.index.tolist() for batch in loader]


SHARES = {
    "torchrun": [{"RANK": "1", "WORLD_SIZE": "2"}, 1, 2],
    "torchrun, one process": [{"RANK": "0", "WORLD_SIZE": "1"}, 0, 1],
    "srun": [{"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "2"}, 1, 2],
    "srun, an older one": [{"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}, 0, 2],
    "srun of some tasks": [{"SLURM_PROCID": "1", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "2"}, 1, 2],
    "a shell of sbatch": [{"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}, 0, 1],
    "a shell of salloc": [{"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, 0, 1],
    "an interactive step": [{"SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_STEP_NUM_TASKS": "1"}, 0, 1],
    "Open MPI": [{"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2"}, 1, 2],
    "MPICH": [{"PMI_RANK": "1", "PMI_SIZE": "2"}, 1, 2],
    "Open MPI in a shell of sbatch": [
        {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "SLURM_PROCID": "0", "SLURM_NTASKS": "2"},
        1,
        2,
    ],
    "torchrun in each task of srun": [
        {"RANK": "3", "WORLD_SIZE": "4", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
        3,
        4,
    ],
    "runs of their own in a step": [
        {"WORLD_SIZE": "1", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
        0,
        1,
    ],
    "WORLD_SIZE by hand, the rank from srun": [
        {"WORLD_SIZE": "2", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
        1,
        2,
    ],
    "a child of Lightning's": [{"WORLD_SIZE": "2", "LOCAL_RANK": "1", "NODE_RANK": "0"}, 1, 2],
    "empty variables": [{"RANK": "", "WORLD_SIZE": ""}, 0, 1],
}


@pytest.mark.parametrize("name", SHARES)
def test_the_environment_says_which_process_this_is(photos, alone, monkeypatch, name):
    environment, rank, world = SHARES[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    with build(photos) as loader:
        assert walk(loader) == [batch[rank::world] for batch in alone[0]]
        assert (loader.rank, loader.world_size, len(loader)) == (rank, world, 3)


UNKNOWN = {
    "no rank": ({"WORLD_SIZE": "2"}, "set RANK too, or unset WORLD_SIZE"),
    "no world": ({"RANK": "1"}, "RANK=1, but WORLD_SIZE says that there is 1 process"),
    "a rank too many": ({"RANK": "2", "WORLD_SIZE": "2"}, "RANK=2, but WORLD_SIZE"),
    "a child of Lightning's on another machine": ({"WORLD_SIZE": "4", "LOCAL_RANK": "1", "NODE_RANK": "1"}, "set RANK"),
    "no number": ({"RANK": "0", "WORLD_SIZE": "two"}, "WORLD_SIZE='two', which is no whole number"),
    "a superscript": ({"RANK": "0", "WORLD_SIZE": "²"}, "no whole number"),
    "another world in srun": (
        {"WORLD_SIZE": "4", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"},
        "set RANK too, or unset WORLD_SIZE",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_loader_that_cannot_know_raises_when_iterated(photos, alone, monkeypatch, name):
    environment, word = UNKNOWN[name]
    for variable, value in environment.items():
        monkeypatch.setenv(variable, value)
    loader = build(photos)  # torch.distributed may still come
    with pytest.raises(ObjcropError, match=word) as caught:
        next(iter(loader))
    assert "\n" not in str(caught.value)
    with build(photos, rank=1, world_size=2) as loader:
        assert walk(loader) == [batch[1::2] for batch in alone[0]]


def test_arguments_come_before_torch_distributed_and_that_before_the_environment(photos, alone, monkeypatch, tmp_path):
    import torch.distributed as dist

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        assert walk(build(photos)) == alone[0]
        assert walk(build(photos, rank=1, world_size=2)) == [batch[1::2] for batch in alone[0]]
    finally:
        dist.destroy_process_group()
    assert walk(build(photos)) == [batch[1::4] for batch in alone[0]]


def become(monkeypatch, rank, world):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(world))


def test_another_answer_in_the_middle_raises(photos, monkeypatch):
    loader = build(photos)
    batches = iter(loader)
    next(batches)
    become(monkeypatch, 1, 2)
    with pytest.raises(ObjcropError, match="was rank 0 of 1 as iteration began and is rank 1 of 2 now"):
        next(batches)


def test_another_answer_between_epochs_raises(photos, monkeypatch):
    loader = build(photos)
    walk(loader)
    become(monkeypatch, 1, 2)
    with pytest.raises(ObjcropError, match="is rank 1 of 2 now"):
        next(iter(loader))


def test_another_answer_within_a_resumed_epoch_raises(photos, monkeypatch):
    loader = build(photos)
    next(iter(loader))
    state = loader.state_dict()
    loader.load_state_dict(state)
    next(iter(loader))
    become(monkeypatch, 0, 2)
    with pytest.raises(ObjcropError, match="is rank 0 of 2 now"):
        next(iter(loader))


def test_a_look_at_a_batch_does_not_count(photos, alone, monkeypatch):
    loader = build(photos)
    next(iter(loader))
    become(monkeypatch, 1, 2)
    assert walk(loader) == [batch[1::2] for batch in alone[0]]


@pytest.mark.parametrize(("before", "after"), [((0, 1), (1, 2)), ((1, 2), (3, 4)), ((1, 4), (0, 1))])
def test_a_run_goes_on_with_another_number_of_processes(photos, alone, before, after):
    with build(photos, rank=before[0], world_size=before[1]) as loader:
        next(iter(loader))
        state = loader.state_dict()
    with build(photos, rank=after[0], world_size=after[1]) as loader:
        loader.load_state_dict(state)
        assert walk(loader) + walk(loader) == [b[after[0] :: after[1]] for b in [*alone[0][1:], *alone[1]]]


@pytest.mark.parametrize(
    ("options", "word"),
    [
        (dict(rank=0), "rank and world_size go together"),
        (dict(world_size=2), "rank and world_size go together"),
        (dict(rank=2, world_size=2), "rank is 2, but it must be 0 to 1"),
        (dict(rank=-1, world_size=2), "rank is -1"),
        (dict(rank=0, world_size=3), "multiple of the 3 processes"),
    ],
)
def test_wrong_arguments_are_one_sentence(photos, options, word):
    with pytest.raises(UsageError, match=word):
        build(photos, **options)


def test_a_batch_that_cannot_be_shared_is_said_as_soon_as_it_is_known(photos, monkeypatch):
    loader = build(photos)
    become(monkeypatch, 0, 3)
    with pytest.raises(UsageError, match="multiple of the 3 processes"):
        next(iter(loader))
    with pytest.raises(UsageError, match="multiple of the 3 processes"):
        build(photos)


@pytest.mark.parametrize("processes", [dict(backend="torch", workers=0), dict(backend="dali", threads=1)])
def test_a_pickled_loader_is_built_anew_where_it_stood(photos, alone, processes):
    options = {name: value for name, value in OPTIONS.items() if name not in ("backend", "workers")}
    with load_views(photos[0], boxes=photos[1], **options, **processes) as loader:
        next(iter(loader))
        loader.load_state_dict(loader.state_dict())
        there = pickle.loads(pickle.dumps(loader))
    assert walk(there) == alone[0][1:]
    there.close()


def test_a_loader_built_in_another_process_must_know_its_rank(photos, alone, monkeypatch):
    pickled = pickle.dumps(build(photos)), pickle.dumps(build(photos, rank=0, world_size=1))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    unknown, known = (pickle.loads(each) for each in pickled)
    with pytest.raises(ObjcropError, match="built in another process"):
        next(iter(unknown))
    assert walk(known) == alone[0]
    become(monkeypatch, 1, 2)
    assert walk(unknown) == [batch[1::2] for batch in alone[0]]


def test_iteration_that_began_before_a_fork_is_refused(photos, monkeypatch):
    loader = build(photos, rank=0, world_size=1)
    next(iter(loader))
    monkeypatch.setattr(os, "getpid", lambda: 1)
    with pytest.raises(ObjcropError, match="began in another process"):
        next(iter(loader))


def test_the_local_rank_is_that_of_a_machine_with_several(monkeypatch):
    assert launched() is None and local_rank() is None
    monkeypatch.setenv("LOCAL_RANK", "0")
    assert local_rank() is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert local_rank() == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    assert local_rank() is None
