"""Two processes over gloo train as one does: losses, gradients, queues and weights agree; a lost peer is said.

Sums are taken in another order, and in float32 that alone changes a gradient by up to a hundredth (one process with two
threads instead of one does), since a ReLU somewhere tips over. So both train in float64 here and agree to 1e-6.
"""

import json
import os
import pathlib
import signal
import subprocess
from contextlib import contextmanager

import pytest
import torch
from children import process_of_rank, running, torchrun, until

from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import UsageError
from objcrop.ssl.networks.shuffle_bn import VirtualDevices
from objcrop.ssl.training.checkpoint import load_checkpoint
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.training.run_folder import read_metrics
from objcrop.ssl.training.trainer import Run, pretrain

SMALL = dict(arch="timm/test_resnet", size=16, batch_size=16, queue=32, dim=16, hidden=32, loader="torch", workers=0)
SMALL |= dict(log_every_steps=1, crops="obj-scene", steps=3, augment="none", base_lr=0.03, optimiser="sgd")
SOCO = dict(method="soco", crops="soco", augment=None, queue=None, pyramid_width=8, region_width=16)
RUNS = {
    "moco-8": dict(method="moco-v2", bn_groups=8),
    "moco-sync": dict(method="moco-v2", bn_groups=1),
    "byol": dict(method="byol", queue=None, warmup_epochs=0),
    "densecl": dict(method="densecl", bn_groups=4, size=64),
    "multi-crop": dict(method="moco-v2", bn_groups=4, local_views=3, local_size=8),
    # An epoch is one step: the queue is used from step 1 on, the prototypes move from step 1 on.
    "swav-4": dict(method="swav", bn_groups=4, local_views=2, local_size=8, prototypes=9, queue=16, queue_epoch=0),
    "swav-sync": dict(method="swav", bn_groups=1, local_views=2, local_size=8, prototypes=9, queue=16, queue_epoch=0),
    "simclr-4": dict(method="simclr", queue=None, bn_groups=4, warmup_epochs=0),
    "simclr-sync": dict(method="simclr", queue=None, bn_groups=1, warmup_epochs=0),
    "soco": {**SOCO, "size": 32},
    "soco-4": {**SOCO, "bn_groups": 4},
    "accumulated": dict(method="moco-v2", bn_groups=8, accumulate=4),
    "supervised": dict(method="supervised", queue=None, dim=None, hidden=None, bn_groups=4, online_probe=True),
    "mae": dict(method="mae", queue=None, dim=None, hidden=None, crops="box", optimiser="adamw", accumulate=2),
}
RUNS["cmc"] = dict(method="cmc", queue=None, hidden=None, arch="lab/resnet18", crops="box", negatives=5, bn_groups=4)
RUNS["mae"] |= dict(arch="timm/test_vit", size=64, decoder_dim=32, decoder_depth=1, online_probe=True)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
SCRIPT = """
import json, sys
import torch, torch.distributed as dist
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.dali_pipes.load_views import load_views
from objcrop.errors import UsageError
from objcrop.ssl.training.recipe import resolve
from objcrop.ssl.networks.shuffle_bn import VirtualDevices
from objcrop.ssl.training.trainer import pretrain

torch.set_num_threads(1)
sys.path[:0] = sys.argv[4:]
from test_distributed import in_float64
folder, small, runs = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
dist.init_process_group("gloo")
rank = dist.get_rank()
catalog = Catalog.load(folder + "/c.arrow")
boxes = BoxTable.load(folder + "/b.arrow", catalog)
with load_views(catalog, boxes=boxes, crops="obj-scene", size=16, batch_size=8, backend="torch", workers=0) as loader:
    rows = [batch.index.tolist() for batch in loader]
said = {"rows": rows, "devices": {}}
whole = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
for groups in (1, 2, 4, 8):
    devices = VirtualDevices(16, groups)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    devices.normalise(network)
    dealt = devices.deal(whole[rank::2])
    dealt.requires_grad_()
    out = network(dealt)
    (out * devices.mine(whole.cos())).sum().backward()
    said["devices"][groups] = {
        "gathered": all(
            torch.equal(devices.gather(dealt.detach().contiguous(memory_format=layout)), whole)
            for layout in (torch.contiguous_format, torch.channels_last)
        ),
        "normed": devices.gather(out.detach()).tolist(),
        "gradient": devices.gather(dealt.grad).tolist(),
        "running": network[0].running_mean.tolist(),
        "keys": devices.encode_shuffled(lambda v: network(v).flatten(1), dealt.detach(), 1, 2).tolist(),
    }
try:
    VirtualDevices(15, 3)
except UsageError as error:
    said["wrong"] = str(error)
in_float64(setattr)
for name, flags in runs.items():
    pretrain(resolve(None, {**small, **flags}), catalog, boxes, folder + "/two-" + name)
steps = {"checkpoint_every_steps": 1}
pretrain(resolve(None, {**small, "steps": 2, **steps}), catalog, boxes, folder + "/resumed")
pretrain(resolve(None, {**small, "steps": 3, **steps}), catalog, boxes, folder + "/resumed", resume=True)
with open(f"{folder}/said.{rank}.json", "w") as file:
    json.dump(said, file)
dist.barrier()
dist.destroy_process_group()
"""


def labelled(catalog):
    """The same photos with two classes, every image of one or both."""
    n = len(catalog)
    rows = [row for row in range(n) for _ in range(1 + (row % 3 == 0))]
    classes = [c for row in range(n) for c in ((0, 1) if row % 3 == 0 else (row % 2,))]
    return Catalog.build(
        catalog.root,
        [catalog.path(row).split("/")[-1] for row in range(n)],
        catalog.sizes,
        catalog.orientations,
        classes=["a", "b"],
        label_rows=rows,
        label_classes=classes,
    )


def in_float64(set_attribute):
    """Let the trainer compute in float64 from views in float32."""
    step, build = Run.take_step, Run.__init__

    def wide(self, batch):
        return step(self, batch.map(lambda t: t.double() if t.is_floating_point() else t))

    def build_wide(self, *arguments):
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        try:
            build(self, *arguments)
        finally:
            torch.set_default_dtype(before)

    set_attribute(Run, "take_step", wide)
    set_attribute(Run, "__init__", build_wide)
    set_attribute(torch.Tensor, "float", torch.Tensor.double)


@pytest.fixture(scope="module")
def data(photos, tmp_path_factory):
    """The folder with catalog and boxes."""
    catalog, boxes = photos
    folder = tmp_path_factory.mktemp("two")
    catalog = labelled(catalog)
    catalog.save(folder / "c.arrow")
    boxes.save(folder / "b.arrow")
    return folder


@pytest.fixture(scope="module")
def two(data):
    """What each of two processes said; the runs they made lie in the folder."""
    (data / "script.py").write_text(SCRIPT)
    here = pathlib.Path(__file__).parent
    command = torchrun(data / "script.py", data, json.dumps(SMALL), json.dumps(RUNS), here, here.parent)
    run = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((data / f"said.{rank}.json").read_text()) for rank in (0, 1)]


def test_ranks_see_disjoint_rows_that_make_the_epoch_of_one_process(photos, two):
    catalog, boxes = photos
    options = dict(boxes=boxes, crops="obj-scene", size=16, batch_size=8, backend="torch", workers=0)
    with load_views(catalog, **options) as loader:
        alone = [batch.index.tolist() for batch in loader]
    first, second = (said["rows"] for said in two)
    assert not {row for rows in first for row in rows} & {row for rows in second for row in rows}
    for a, b, both in zip(first, second, alone, strict=True):
        assert [row for pair in zip(a, b, strict=True) for row in pair] == both


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_virtual_devices_mean_the_same_on_two_processes(two, groups):
    whole = torch.randn(16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    devices = VirtualDevices(16, groups)
    network = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    devices.normalise(network)
    dealt = devices.deal(whole).clone().requires_grad_()
    out = network(dealt)
    (out * devices.mine(whole.cos())).sum().backward()
    expected = {
        "normed": devices.gather(out.detach()),
        "gradient": devices.gather(dealt.grad),
        "keys": devices.encode_shuffled(lambda v: network(v).flatten(1), dealt.detach(), 1, 2),
    }
    for said in two:
        here = said["devices"][str(groups)]
        assert here["gathered"]
        for name, value in expected.items():
            torch.testing.assert_close(
                torch.tensor(here[name]), value, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}"
            )
    running = torch.tensor([said["devices"][str(groups)]["running"] for said in two]).mean(0)
    alone = VirtualDevices(16, groups)
    fresh = torch.nn.Sequential(torch.nn.BatchNorm2d(3))
    alone.normalise(fresh)
    fresh(alone.deal(whole))
    torch.testing.assert_close(running, fresh[0].running_mean, atol=1e-5, rtol=1e-4)


def test_groups_that_processes_cannot_share(two):
    assert all("multiple of the 2 processes" in said["wrong"] for said in two)
    with pytest.raises(UsageError):
        VirtualDevices(16, 5)


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one(data, two, name, monkeypatch):
    in_float64(monkeypatch.setattr)
    catalog = Catalog.load(data / "c.arrow")
    boxes = BoxTable.load(data / "b.arrow", catalog)
    flags = {**SMALL, **RUNS[name]}
    one = load_checkpoint(pretrain(resolve(None, flags), catalog, boxes, data / f"one-{name}"))
    both = load_checkpoint(data / f"two-{name}" / "last.pt")
    curves = [read_metrics(data / f"{who}-{name}" / "metrics.jsonl") for who in ("one", "two")]
    assert [line["step"] for line in curves[1]] == [1, 2, 3]
    for a, b in zip(*curves, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=2e-6)
    assert one["method"].keys() == both["method"].keys()
    for key, value in one["method"].items():
        torch.testing.assert_close(
            value, both["method"][key], atol=1e-6, rtol=1e-6, msg=lambda m, key=key: f"{key}: {m}"
        )
    states = [saved["optimiser"]["state"].values() for saved in (one, both)]
    velocity = [[s.get("momentum_buffer", s.get("exp_avg")) for s in state] for state in states]
    for a, b in zip(*velocity, strict=True):  # gradients, summed over the steps
        assert float((a - b).norm()) <= 1e-6 * float(a.norm()) + 1e-9


def test_a_step_in_parts_is_the_same_step(data, two):
    whole, parts = (load_checkpoint(data / f"two-{name}" / "last.pt")["method"] for name in ("moco-8", "accumulated"))
    for key, value in whole.items():
        if "running" not in key and "num_batches" not in key:
            torch.testing.assert_close(value, parts[key], atol=1e-6, rtol=1e-6)


def test_two_processes_resume(data, two):
    assert load_checkpoint(data / "resumed" / "last.pt")["step"] == 3
    assert [line["step"] for line in read_metrics(data / "resumed" / "metrics.jsonl")] == [1, 2, 3]


@contextmanager
def started(data, output, **flags):
    """A long run of two processes, once it has taken a few steps."""
    options = {**SMALL, "steps": 10_000, "checkpoint_every_steps": 5, **flags}
    assignments = [part for key, value in options.items() for part in ("--set", f"{key}={value}")]
    command = ["-m", "objcrop", "pretrain", "--catalog", data / "c.arrow", "--boxes", data / "b.arrow"]
    metrics = output / "metrics.jsonl"
    with running(torchrun(*command, "--output", output, *assignments), env=ENVIRONMENT) as run:
        until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 12, run)
        yield run


def test_a_rank_that_dies_ends_the_run_with_a_word(data, tmp_path):
    with started(data, tmp_path / "run") as run:
        os.kill(process_of_rank(run, 1), signal.SIGKILL)
        _, errors = run.communicate()
    assert run.returncode != 0 and "SIGKILL" in errors
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] >= 10


def test_sigterm_to_one_rank_stops_all_at_one_step(data, tmp_path):
    with started(data, tmp_path / "run", checkpoint_every_steps=100_000) as run:
        os.kill(process_of_rank(run, 1), signal.SIGTERM)
        _, errors = run.communicate()
    assert "as asked, and saved it in" in errors and "--resume" in errors
    saved = load_checkpoint(tmp_path / "run" / "last.pt")
    assert saved["step"] == read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]["step"]
