"""What only whole processes show: two ranks under torchrun, a new process that resumes, memory that stays put."""

import subprocess
import sys

import pytest
from children import torchrun

from objcrop.dali_pipes.load_views import load_views

PROCESSES = {"torch": dict(workers=0), "dali": dict(threads=2)}


@pytest.fixture(scope="module")
def saved(photos, tmp_path_factory):
    catalog, boxes = photos
    folder = tmp_path_factory.mktemp("saved")
    catalog.save(folder / "c.arrow")
    boxes.save(folder / "b.arrow")
    return folder


# Its processes leave without the interpreter's end: where that comes at once after a collective, gloo's thread may be
# letting go of the tensors just then, and PyTorch aborts (pytorch/pytorch#190489; one of some twenty busy runs).
RANKS = """
import os, sys, torch.distributed as dist
from objcrop import load_views
dist.init_process_group("gloo")
for backend, processes in dict(torch=dict(workers=0), dali=dict(threads=2)).items():
    with load_views("c.arrow", boxes="b.arrow", crops="obj-obj", size=32, batch_size=8, backend=backend,
                    **processes, augment="none") as loader:
        rows = [batch.index.tolist() for batch in loader]
    everyone = [None, None]
    dist.all_gather_object(everyone, rows)
    if dist.get_rank() == 0:
        print("ROWS", everyone)
dist.barrier()
dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)
"""


@pytest.mark.slow  # beside test_loader_ranks and ssl/test_distributed, where processes share an epoch, too
def test_two_ranks_see_disjoint_rows_that_make_the_epoch(saved):
    (saved / "ranks.py").write_text(RANKS)
    run = subprocess.run(
        torchrun("ranks.py"),
        cwd=saved,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    of_backends = [eval(line[5:]) for line in run.stdout.splitlines() if line.startswith("ROWS")]
    assert len(of_backends) == 2
    for first, second in of_backends:
        assert [len(rows) for rows in first] == [len(rows) for rows in second] == [4, 4, 4]
        assert sorted(row for rows in first + second for row in rows) == list(range(24))


ENDS = """
import atexit, sys, threading
from objcrop import load_views
loader = load_views("c.arrow", boxes="b.arrow", crops="obj-obj", size=32, batch_size=8, backend=sys.argv[1],
                    device="cpu", prefetch=2)
for batch in loader:
    if sys.argv[2] == "broken off":
        break
def ours():
    print([thread.name for thread in threading.enumerate() if thread.name.startswith("objcrop")])
ours()
atexit.register(ours)
"""


@pytest.mark.parametrize(("backend", "epoch"), [("torch", "broken off"), ("dali", "whole")])
def test_a_script_ends_well_that_never_closes_its_loader(saved, backend, epoch):
    """A producer that is still inside DALI as Python ends aborts the process, with exit code 134, every other time."""
    (saved / "ends.py").write_text(ENDS)
    run = subprocess.run([sys.executable, "ends.py", backend, epoch], cwd=saved, capture_output=True, text=True)
    working, left = run.stdout.splitlines()
    assert (run.returncode, left) == (0, "[]"), run.stderr
    assert "Error" not in run.stderr and "terminate" not in run.stderr
    assert ("objcrop-producer" in working) == (backend == "dali"), "there was nothing to wait for"


RESUME = """
import sys, json, hashlib
from objcrop import load_views
for backend, state in json.loads(sys.argv[1]).items():
    processes = dict(workers=0) if backend == "torch" else dict(threads=2)
    with load_views("c.arrow", boxes="b.arrow", crops="obj-obj+dilate", size=32, batch_size=8, backend=backend,
                    **processes) as loader:
        loader.load_state_dict(state)
        for batch in loader:
            print(hashlib.sha256(b"".join(view.numpy().tobytes() for view in batch.views)).hexdigest())
"""


def test_a_new_process_goes_on_bit_for_bit(saved):
    import hashlib
    import json

    options = {"boxes": saved / "b.arrow", "crops": "obj-obj+dilate", "size": 32, "batch_size": 8}
    states, rest = {}, []
    for backend in ("torch", "dali"):
        with load_views(saved / "c.arrow", **options, backend=backend, **PROCESSES[backend]) as loader:
            walk = iter(loader)
            next(walk)
            states[backend] = loader.state_dict()
            rest += [hashlib.sha256(b"".join(v.numpy().tobytes() for v in b.views)).hexdigest() for b in walk]
    code = subprocess.run(
        [sys.executable, "-c", RESUME, json.dumps(states)], cwd=saved, capture_output=True, text=True, check=True
    )
    assert code.stdout.split() == rest and len(rest) == 4


MEMORY = """
import os, sys, gc
from objcrop import load_views
def resident():
    gc.collect()
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
for backend, processes in dict(torch=dict(workers=0), dali=dict(threads=2)).items():
    with load_views("c.arrow", boxes="b.arrow", crops="obj-obj+dilate", size=32, batch_size=8, backend=backend,
                    **processes) as loader:
        for epoch in range(50):
            for batch in loader:
                pass
            if epoch == 4:
                fifth = resident()
        print(resident() - fifth)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_stays_put_over_fifty_epochs(saved):
    run = subprocess.run([sys.executable, "-c", MEMORY], cwd=saved, capture_output=True, text=True, check=True)
    grown = [float(line) for line in run.stdout.split()]
    assert len(grown) == 2 and max(grown) < 20


FORKED = """
import gc, os, sys, threading
import numpy as np
from objcrop.dali_pipes.decode_crop_resize import decode_graph
from objcrop.dali_pipes.read_image import NOTHING
pixel = np.array([[[0, 0, 1, 1]]], np.int32)
pipe = decode_graph(lambda: [[NOTHING.data]], batch_size=1, threads=1, prefetch=1, decode="whole")
pipe.run()
pipe.itself = pipe  # garbage that only the collector finds
gc.disable()
del pipe
child = os.fork()
if child == 0:
    gc.collect()
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_worker_does_not_wait_for_its_parents_pipelines():
    run = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split()[-1] == "7"
