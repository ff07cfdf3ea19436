"""Worker processes of the torch loader that die or find no shared memory: one sentence, and no hang."""

import multiprocessing
import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import torch

from objcrop.dali_pipes import torch_loader
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.torch_loader import lost_worker
from objcrop.errors import ObjcropError

OPTIONS = dict(crops="obj-obj", size=64, batch_size=8, backend="torch", augment="none", rank=0, world_size=1)


def build(photos, **options):
    return load_views(photos[0], boxes=photos[1], **{**OPTIONS, "workers": 1, **options})


KILLED = """
import multiprocessing, os, signal
from objcrop import load_views
from objcrop.errors import ObjcropError
how = dict(boxes="b.arrow", crops="obj-obj", size=64, batch_size=8, backend="torch", augment="none", workers=1)
try:
    with load_views("c.arrow", **how) as loader:
        for _ in loader:
            for worker in multiprocessing.active_children():
                os.kill(worker.pid, signal.SIGKILL)
except ObjcropError as error:
    print(error)
with load_views("c.arrow", **how) as loader:  # another loader is none the worse for it
    print(len(list(loader)))
"""


def test_a_killed_worker_is_one_sentence(photos, tmp_path):
    """In a process of its own: PyTorch's handler of the signal raises wherever that is, within a held lock too."""
    photos[0].save(tmp_path / "c.arrow")
    photos[1].save(tmp_path / "b.arrow")
    run = subprocess.run([sys.executable, "-c", KILLED], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    sentence, batches = run.stdout.splitlines()
    assert re.search(r"was killed.*--workers 0 \(workers=0\)", sentence) and batches == "3"


def test_workers_end_with_the_walk_and_not_with_its_error(photos, monkeypatch):
    """A worker whose connection broke is still dying: counted as at work, its end is raised in whatever runs then."""
    from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter as Arriving

    with build(photos, workers=2) as loader, pytest.raises(ObjcropError, match="was killed") as kept:
        walk = iter(loader)
        next(walk)
        assert multiprocessing.active_children()
        monkeypatch.setattr(Arriving, "_next_data", broken)
        next(walk)
    assert kept.value.__traceback__ is not None and not multiprocessing.active_children()


def broken(self):
    raise ConnectionResetError(104, "Connection reset by peer")


def test_no_shared_memory_is_one_sentence(photos, monkeypatch):
    def full(tensor):
        raise RuntimeError(
            "unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)"
        )

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)
    with (
        build(photos) as loader,
        pytest.raises(ObjcropError, match="ran out of shared memory; give --workers 0") as caught,
    ):
        next(iter(loader))
    assert "\n" not in str(caught.value)
    with build(photos, workers=0) as loader:
        assert len(list(loader)) == 3


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "), "was killed"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "was killed"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that …"), "/dev/shm"),
        (ConnectionResetError(104, "Connection reset by peer"), "was killed"),
        (ConnectionRefusedError(111, "Connection refused"), "was killed"),
        (FileNotFoundError(2, "No such file or directory"), "was killed"),
        (FileNotFoundError(2, "No such file or directory", "a.jpg"), None),
        (EOFError(), "was killed"),
        (RuntimeError("received 0 items of ancdata"), "ulimit -n"),
        (OSError(24, "Too many open files"), "ulimit -n"),
        (RuntimeError("CUDA error: out of memory"), None),
        (ValueError("DataLoader worker exited unexpectedly"), None),
        (None, None),
    ],
)
def test_what_pytorch_says_of_workers(error, word):
    said = lost_worker(error)
    assert said is None if word is None else word in str(said)


SMALL_SHM = """
import sys, objcrop
options = eval(sys.argv[1])
try:
    with objcrop.load_views("photos.arrow", boxes="boxes.arrow", **options) as loader:
        print(len(list(loader)), "batches")
except objcrop.ObjcropError as error:
    print("SAID", error)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "says"), [(2, "SAID the loader's workers ran out of shared memory"), (0, "3 batches")]
)
def test_a_small_dev_shm(photos, tmp_path, workers, says):
    if shutil.which("unshare") is None or not pathlib.Path("/dev/shm").is_dir():
        pytest.skip("no mount namespaces here")
    catalog, boxes = photos
    catalog.save(tmp_path / "photos.arrow")
    boxes.save(tmp_path / "boxes.arrow")
    small = ["unshare", "-m", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$0" "$@"']
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("mounting is not permitted")
    command = [sys.executable, "-c", SMALL_SHM, repr({**OPTIONS, "size": 224, "workers": workers})]
    run = subprocess.run([*small, *command], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0 and says in run.stdout, run.stdout + run.stderr


def test_workers_begin_alike_on_every_python(photos, monkeypatch):
    """Python 3.14 by itself would send them what is made of a user's own augment, which may be a lambda."""
    begun = []

    def recorded(*arguments, **options):
        begun.append(options["multiprocessing_context"])
        return torch.utils.data.DataLoader(*arguments, **options)

    monkeypatch.setattr(torch_loader, "DataLoader", recorded)
    with build(photos, augment=lambda views: views.float()) as loader:
        next(iter(loader))
        assert begun == [multiprocessing.get_start_method(allow_none=True) or "fork"]
        monkeypatch.setattr(multiprocessing, "get_start_method", lambda allow_none: "spawn")
        assert loader._how_workers_begin(None) == "spawn"
