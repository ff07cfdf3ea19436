"""What a device's name means, on a machine that pretends to have four GPUs."""

import os

import pytest
import torch

from objcrop.devices import resolve_device
from objcrop.errors import UsageError
from objcrop.launcher import LAUNCHERS
from objcrop.ssl.training.trainer import device_of

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "4"}
SRUN = {"SLURM_PROCID": "6", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "2"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    """Forget what a launcher of the tests themselves may have left."""
    more = ("LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_NTASKS")
    for name in (*(name for launcher in LAUNCHERS for name in launcher[1:]), *more):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def gpus(monkeypatch):
    """Four GPUs, or as many as asked for; returns a dict whose "current" is the current one."""
    state = {"current": 0, "count": 4}

    def choose(device):
        state["current"] = torch.device(device).index if isinstance(device, (str, torch.device)) else device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: state["count"])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: state["current"])
    monkeypatch.setattr(torch.cuda, "set_device", choose)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    return state


@pytest.mark.parametrize(
    ("name", "current", "launcher", "expected"),
    [
        ("cpu", 2, {}, "cpu"),
        ("auto", 0, {}, "cuda:0"),
        ("auto", 0, TORCHRUN, "cuda:3"),
        ("cuda", 0, {}, "cuda:0"),
        ("cuda", 2, {}, "cuda:2"),
        ("cuda:3", 0, {}, "cuda:3"),
        ("cuda:3", 2, {}, "cuda:3"),
        (torch.device("cuda", 1), 0, {}, "cuda:1"),
        ("cuda", 0, TORCHRUN, "cuda:3"),
        ("cuda", 1, TORCHRUN, "cuda:1"),  # the loop chose another one
        ("cuda:3", 0, TORCHRUN, "cuda:3"),
        ("cuda:1", 1, TORCHRUN, "cuda:1"),
        ("cuda", 0, SRUN, "cuda:2"),
        ("cuda", 0, {"LOCAL_RANK": "1", "NODE_RANK": "0", "WORLD_SIZE": "2"}, "cuda:1"),  # a child of Lightning's
        ("cuda:3", 0, {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "cuda:3"),
        ("cuda:3", 0, {**TORCHRUN, "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}, "cuda:3"),  # one process a machine
    ],
)
def test_a_name_means_one_gpu(gpus, monkeypatch, name, current, launcher, expected):
    gpus["current"] = current
    for variable, value in launcher.items():
        monkeypatch.setenv(variable, value)
    assert resolve_device(name) == torch.device(expected)
    assert device_of(str(name)) == torch.device(expected)
    assert torch.backends.cudnn.benchmark == (expected != "cpu")
    assert gpus["current"] == (current if expected == "cpu" else torch.device(expected).index)


def test_auto_is_a_gpu_where_there_is_one(gpus, photos, monkeypatch):
    from objcrop.dali_pipes.decode_crop_resize import MOST_ON_GPU
    from objcrop.dali_pipes.load_views import load_views

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    with load_views(photos[0], size=32, batch_size=8, rank=0, world_size=1, decode="whole") as loader:
        assert loader.device == torch.device("cuda:0") and loader.threads == MOST_ON_GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with load_views(photos[0], size=32, batch_size=8, rank=0, world_size=1) as loader:
        assert loader.device == torch.device("cpu") == resolve_device("auto") and loader.threads == 64
    with pytest.raises(UsageError, match="cannot act here: it needs backend"):
        load_views(photos[0], size=32, batch_size=8, decode="whole")


@pytest.mark.parametrize(
    ("name", "count", "launcher", "word"),
    [
        ("cuda:4", 4, {}, "cuda:0 to cuda:3"),
        ("cuda:9", 1, {}, "one GPU, cuda:0"),
        ("cuda:x", 4, {}, "cuda:N"),
        ("cuda:-1", 4, {}, "cuda:N"),
        ("cuda:²", 4, {}, "cuda:N"),
        ("cuda:", 4, {}, "cuda:N"),
        ("cpu:0", 4, {}, "cuda:N"),
        ("gpu", 4, {}, "cuda:N"),
        ("", 4, {}, "cuda:N"),
        ("cuda:1", 4, TORCHRUN, "give 'cuda'"),
        ("cuda:0", 4, TORCHRUN, "give 'cuda'"),
        ("cuda:1", 4, SRUN, "give 'cuda'"),
        ("cuda", 2, TORCHRUN, "start one process a GPU"),
    ],
)
def test_another_name_is_one_sentence(gpus, monkeypatch, name, count, launcher, word):
    gpus["count"] = count
    for variable, value in launcher.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(UsageError, match=word) as caught:
        resolve_device(name)
    assert "\n" not in str(caught.value)


def test_one_gpu_for_each_process_is_cuda_0(gpus, monkeypatch):
    """A launcher that sets CUDA_VISIBLE_DEVICES shows each process its own GPU alone."""
    gpus["count"] = 1
    for variable, value in TORCHRUN.items():
        monkeypatch.setenv(variable, value)
    assert resolve_device("cuda") == resolve_device("cuda:0") == torch.device("cuda:0")


@pytest.mark.parametrize("options", [dict(backend="torch"), dict(backend="dali"), dict(backend="dali", cache="device")])
def test_loaders_settle_on_the_gpu_that_is_current_as_iteration_begins(gpus, photos, monkeypatch, options):
    from objcrop.dali_pipes.load_views import load_views

    catalog, boxes = photos
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
    loader = load_views(catalog, boxes=boxes, crops="obj-obj", size=32, batch_size=8, device="cuda", **options)
    assert loader.device == torch.device("cuda", 0)
    gpus["current"] = 2  # as Lightning does in `fit`
    seen = {}

    def stream(start):
        seen["device"] = loader.device
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(loader, "_stream", stream)
    with pytest.raises(KeyboardInterrupt):
        next(iter(loader))
    assert seen["device"] == torch.device("cuda", 2)
    gpus["current"] = 1  # settled for good
    with pytest.raises(KeyboardInterrupt):
        next(iter(loader))
    assert seen["device"] == torch.device("cuda", 2)


@pytest.mark.parametrize("cache", [None, "device"])
@pytest.mark.parametrize(("name", "current"), [("cuda:3", 0), ("cuda", 3)])
def test_the_producer_thread_and_dali_are_told_the_index(gpus, photos, monkeypatch, cache, name, current):
    """Nothing in the thread or the graph falls back to GPU 0."""
    from objcrop.dali_pipes import dali_loader, decode_crop_resize
    from objcrop.dali_pipes.load_views import load_views

    catalog, boxes = photos
    told, in_thread = [], []

    class Stop(Exception):
        pass

    def graph(feed, **options):
        told.append((options["device"], options["device_id"], options["decode"], options["threads"]))
        in_thread.append(gpus["current"])
        raise Stop

    for module in (dali_loader, decode_crop_resize):
        monkeypatch.setattr(module, "decode_graph", graph)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (10**12, 10**12))
    monkeypatch.setattr(torch, "empty", lambda *shape, **options: None)
    loader = load_views(
        catalog, boxes=boxes, crops="obj-obj", size=32, batch_size=8, backend="dali", device=name, cache=cache
    )
    loader.threads = 24
    gpus["current"] = current
    with pytest.raises(Stop):
        next(iter(loader))
    assert told == [("cuda", 3, "whole", 24)] and in_thread == [3]


@pytest.mark.parametrize(
    ("device", "launcher", "expected"),
    [
        ("cpu", {}, 64),
        ("cuda", {}, 24),
        ("cuda", {"LOCAL_WORLD_SIZE": "4"}, 8),
        ("cuda", {"LOCAL_WORLD_SIZE": "64"}, 1),
        ("cpu", {"LOCAL_WORLD_SIZE": "8"}, 8),
        ("cpu", {"LOCAL_WORLD_SIZE": "100"}, 1),
        ("cuda", SRUN, 24),  # srun binds its tasks: the cores seen are those of this one
    ],
)
def test_ranks_of_a_machine_share_its_cores(gpus, photos, monkeypatch, device, launcher, expected):
    """Once each of 8 ranks began as many threads and workers as the machine has cores."""
    from objcrop.dali_pipes.decode_crop_resize import default_threads
    from objcrop.dali_pipes.load_views import load_views

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(64), raising=False)
    for variable, value in launcher.items():
        monkeypatch.setenv(variable, value)
    options = dict(size=32, batch_size=8, device=device, rank=0, world_size=1)
    with load_views(photos[0], **options) as loader:
        assert loader.threads == default_threads(device, beside_training=True) == expected
    with load_views(photos[0], **options, threads=40) as loader:
        assert loader.threads == 40
    with load_views(photos[0], **options, cache="host") as loader:  # nothing is trained while it decodes
        assert loader.threads == default_threads(device)
    with load_views(photos[0], **options, backend="torch") as loader:
        assert loader.workers == max(64 // int(launcher.get("LOCAL_WORLD_SIZE", 1)), 1)


def test_canvases_are_decoded_on_the_gpu_that_scores_them(gpus, photos, monkeypatch):
    from types import SimpleNamespace

    from objcrop.dali_pipes import decode_crop_resize
    from objcrop.proposals.canvas import propose_with_dali

    class Stop(Exception):
        pass

    def graph(feed, **options):
        raise Stop(options["device"], options["device_id"], options["decode"])

    monkeypatch.setattr(decode_crop_resize, "decode_graph", graph)
    with pytest.raises(Stop) as caught:
        next(propose_with_dali(photos[0], [range(4)], SimpleNamespace(device=torch.device("cuda", 2), side=32)))
    assert caught.value.args == ("cuda", 2, "whole")


@pytest.mark.parametrize(
    ("device", "given", "expected"),
    [
        ("cuda", {}, ("whole", 0.0)),
        ("cuda", dict(decode="union", hw_decoder_load=0.5), ("union", 0.5)),
        ("cpu", {}, ("union", 0.0)),
    ],
)
def test_a_gpu_decodes_whole_images_by_its_cores_unless_told_otherwise(gpus, photos, device, given, expected):
    """Parts end the process on some GPUs, and the decoder beside the cores writes out of order (nvImageCodec 0.9)."""
    from objcrop.dali_pipes.load_views import load_views

    with load_views(photos[0], size=32, batch_size=8, device=device, **given) as loader:
        assert (loader.decode, loader.hw_decoder_load) == expected


def test_proposals_run_on_the_gpu_of_the_name(gpus, photos, monkeypatch):
    from objcrop.proposals import canvas

    told = {}

    def parts(catalog, method, parameters, make, **options):
        told["device"] = make.args[-2]

    monkeypatch.setattr(canvas, "propose_from_images", parts)
    for current, name, expected in ((2, "cuda", "cuda:2"), (0, "cuda:3", "cuda:3")):
        gpus["current"] = current
        canvas.propose_on_canvas(photos[0], "m", {}, lambda *_: None, (), name, None, None)
        assert told["device"] == expected
    with pytest.raises(UsageError, match="cuda:9"):
        canvas.propose_on_canvas(photos[0], "m", {}, lambda *_: None, (), "cuda:9", None, None)


def test_a_gpu_that_is_not_there_exits_2(gpus, photos, tmp_path, capsys):
    from objcrop.cli import main

    photos[0].save(tmp_path / "c.arrow")
    data = ["pretrain", "--catalog", str(tmp_path / "c.arrow"), "--output", str(tmp_path / "run")]
    for command in (
        [*data],
        ["propose", str(tmp_path / "c.arrow"), "--method", "bing", "-o", str(tmp_path / "b.arrow")],
    ):
        with pytest.raises(SystemExit) as caught:
            main([*command, "--device", "cuda:9"])
        assert caught.value.code == 2
        assert "cuda:9" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
