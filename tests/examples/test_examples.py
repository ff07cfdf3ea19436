"""Every example runs, on a CPU, on a handful of pictures."""

import importlib.util
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
from contextlib import ExitStack

import numpy as np
import pytest
import yaml
from children import free_port, running, torchrun
from PIL import Image
from torch.distributed import run as launcher

from objcrop.ssl.training.checkpoint import load_checkpoint

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
SMALL = ["arch=timm/test_resnet", "size=16", "batch_size=8", "queue=8", "dim=8"]


@pytest.fixture(scope="module")
def data(photos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("examples")
    catalog, boxes = photos
    catalog.save(folder / "photos.arrow")
    boxes.save(folder / "boxes.arrow")
    return folder


LOOPS = {
    "plain_pytorch": (),
    "lightning_simsiam": (),
    "lightly_moco": ("--queue", "16"),
    "transformers_trainer": (),
}
# Runs an example and keeps the rows that its process was handed.
RECORD = """
import json, os, runpy, sys
from objcrop.dali_pipes.view_loader import ViewLoader
rows, walk = [], ViewLoader.__iter__
def recorded(loader):
    for batch in walk(loader):
        rows.append(batch.index.tolist())
        yield batch
ViewLoader.__iter__ = recorded
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
with open(f"rows.{os.environ['RANK']}.json", "w") as file:
    json.dump(rows, file)
"""


def loop(name):
    options = ("--size", "32", "--batch-size", "8", "--epochs", "2", *LOOPS[name])
    return [str(EXAMPLES / f"{name}.py"), "photos.arrow", "boxes.arrow", *options]


@pytest.mark.parametrize("name", [pytest.param("plain_pytorch", marks=pytest.mark.slow), *list(LOOPS)[1:]])
def test_loops(data, name):
    run = subprocess.run([sys.executable, *loop(name)], cwd=data, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "loss " in run.stdout and "nan" not in run.stdout


@pytest.mark.parametrize("name", ["plain_pytorch", *(pytest.param(n, marks=pytest.mark.slow) for n in list(LOOPS)[1:])])
def test_loops_under_torchrun(data, name):
    (data / "record.py").write_text(RECORD)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = torchrun("record.py", *loop(name))
    run = subprocess.run(command, cwd=data, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert "loss " in run.stdout and "nan" not in run.stdout
    shares = [json.loads((data / f"rows.{rank}.json").read_text()) for rank in range(2)]
    assert {len(batch) for share in shares for batch in share} == {4}
    assert all(a != b for a, b in zip(*shares, strict=True))
    if name != "lightly_moco":  # whose samples are boxes, several of an image
        for epoch in (slice(3), slice(3, 6)):
            rows = [row for share in shares for batch in share[epoch] for row in batch]
            assert sorted(rows) == list(range(24))


@pytest.mark.parametrize("what", ["crops", "boxes"])
def test_pictures_side_by_side(data, what, tmp_path):
    command = [str(EXAMPLES / "side_by_side.py"), what, "photos.arrow", "boxes.arrow", "-o", str(tmp_path / "p.png")]
    run = subprocess.run([sys.executable, *command, "--row", "1", "2"], cwd=data, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    picture = np.asarray(Image.open(tmp_path / "p.png").convert("RGB"))
    assert picture.shape[0] == (9 if what == "crops" else 1) * 150
    of_box = (255, 210, 0) if what == "crops" else (214, 39, 40)  # the best box of a table is red
    assert (np.abs(picture[:, 124:300].astype(int) - of_box).max(-1) < 24).any(), "the box is drawn"


def pretrain(output):
    data = ("--catalog", "photos.arrow", "--boxes", "boxes.arrow", "--crops", "obj-scene", "--steps", "3")
    return (*data, "--output", output, *(word for option in [*SMALL, "bn_groups=2"] for word in ("--set", option)))


@pytest.mark.slow
def test_two_machines(data):
    environment = {**os.environ, "HEAD": "127.0.0.1", "NODES": "2", "GPUS": "1", "PORT": str(free_port())}
    environment |= {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    command = ["bash", str(EXAMPLES / "multi_node.sh"), *pretrain("two")]
    with ExitStack() as stack:
        machines = [
            stack.enter_context(running(command, cwd=data, env={**environment, "NODE_RANK": rank})) for rank in "01"
        ]
        for machine in machines:
            _, errors = machine.communicate()
            assert machine.returncode == 0, errors[-3000:]
    assert load_checkpoint(data / "two" / "last.pt")["step"] == 3
    assert "processes: 2" in (data / "two" / "recipe.yaml").read_text()


def stub(folder, name, does):
    """Put a program of this name where the system looks first."""
    (folder / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
    (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


# Starts the line on two nodes that share this machine, as srun would on two that do not, and ends as the worse of them.
SRUN = """
while [[ $1 == --* ]]; do shift; done
SLURM_NODEID=0 "$@" & first=$!
SLURM_NODEID=1 "$@" & second=$!
wait $first && wait $second
"""


def test_slurm(data, tmp_path):
    stub(tmp_path, "scontrol", "echo 127.0.0.1; echo 127.0.0.2")
    environment = {**os.environ, "PATH": stub(tmp_path, "srun", SRUN), "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    environment |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7", "PORT": str(free_port())}
    command = ["bash", str(EXAMPLES / "slurm.sh"), *pretrain("slurm")]
    run = subprocess.run(command, cwd=data, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    assert load_checkpoint(data / "slurm" / "last.pt")["step"] == 3
    assert "processes: 2" in (data / "slurm" / "recipe.yaml").read_text()


def test_slurm_gives_a_run_time_to_save_itself():
    """It is told to stop before Slurm ends it, and torchrun waits meanwhile; torchrun has the options it is given."""
    text = (EXAMPLES / "slurm.sh").read_text()
    told = int(re.search(r"--signal=TERM@(\d+)", text)[1])
    assert told > int(re.search(r"SHUTDOWN_TIMEOUT=(\d+)", text)[1]) > 30
    for option in re.findall(r"--[a-z-]+", text[text.index("-m torch") :].split("-m objcrop")[0]):
        assert any(option in action.option_strings for action in launcher.get_args_parser()._actions), option


@pytest.mark.slow
def test_kubernetes(data, tmp_path):
    """The fields of a PyTorchJob that the operator asks for, and the container's own line, started as it starts it."""
    job = yaml.safe_load((EXAMPLES / "kubernetes.yaml").read_text())
    assert (job["apiVersion"], job["kind"]) == ("kubeflow.org/v1", "PyTorchJob") and job["metadata"]["name"]
    spec, policy = job["spec"], job["spec"]["elasticPolicy"]
    assert set(spec) == {"nprocPerNode", "elasticPolicy", "runPolicy", "pytorchReplicaSpecs"}
    assert set(spec["pytorchReplicaSpecs"]) == {"Worker"}  # a master would not be elastic
    worker = spec["pytorchReplicaSpecs"]["Worker"]
    pod = worker["template"]["spec"]
    (container,) = pod["containers"]
    assert policy["minReplicas"] <= worker["replicas"] <= policy["maxReplicas"] and isinstance(
        spec["nprocPerNode"], str
    )
    assert worker["restartPolicy"] in ("Always", "OnFailure", "Never", "ExitCode") and container["name"] == "pytorch"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(spec["nprocPerNode"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    kept = {entry["name"]: entry["value"] for entry in container["env"]}
    assert pod["terminationGracePeriodSeconds"] > int(kept["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"])
    assert not any(name == "torchrun" for name in container["command"][1:])

    options = dict(word.removeprefix("--").split("=") for word in container["command"] if "=" in word)
    for pods in range(policy["minReplicas"], policy["maxReplicas"] + 1):
        assert int(options["batch-size"]) % (8 * pods) == int(options["bn-groups"]) % (8 * pods) == 0

    given = {"device": "cpu", "batch-size": "8", "bn-groups": "2", "queue": "8", "output": str(tmp_path / "run")}
    line = [word.replace("/data/", f"{data}/") for word in container["command"][1:]]
    line = [next((f"--{o}={v}" for o, v in given.items() if word.startswith(f"--{o}=")), word) for word in line]
    small = ("--steps", "2", "--arch", "timm/test_resnet", "--size", "16", "--dim", "8")
    operator = {"PET_RDZV_BACKEND": policy["rdzvBackend"], "PET_RDZV_ENDPOINT": f"127.0.0.1:{free_port()}"}
    operator |= {"PET_NNODES": "1:1", "PET_NPROC_PER_NODE": "2", "PET_MAX_RESTARTS": str(policy["maxRestarts"])}
    run = subprocess.run(
        [pathlib.Path(sys.executable).with_name(container["command"][0]), *line, *small],
        cwd=tmp_path,
        env={**os.environ, **kept, **operator, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert load_checkpoint(tmp_path / "run" / "last.pt")["step"] == 2


def test_ray_machines(tmp_path):
    """Ray gets lines that it reads, and objcrop the address: nobody answers there, so that it says."""
    environment = {**os.environ, "PATH": stub(tmp_path, "ray", 'echo "$@"'), "HEAD": "127.0.0.1", "PORT": "1"}
    environment["PYTHON"] = sys.executable

    def says(*words):
        command = ["bash", str(EXAMPLES / "ray_cluster.sh"), *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    lines = [says(word).stdout.split() for word in ("head", "machine")]
    assert lines[0][:4] == ["start", "--head", "--port", "1"] and lines[1][:3] == ["start", "--address", "127.0.0.1:1"]
    ended = says("index", ".", "-o", "c.arrow")
    assert ended.returncode == (1 if importlib.util.find_spec("ray") else 2)
    assert "no Ray cluster to join at '127.0.0.1:1'" in ended.stderr or "ray is not installed" in ended.stderr
    if importlib.util.find_spec("ray"):
        from click.testing import CliRunner
        from ray.scripts.scripts import cli

        known = CliRunner().invoke(cli, ["start", "--help"]).output
        assert all(word in known for line in lines for word in line if word.startswith("--"))


def test_a_port_in_use_is_said(data):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        environment["MASTER_PORT"] = str(taken.getsockname()[1])
        run = subprocess.run(
            [sys.executable, "-m", "objcrop", "pretrain", *pretrain("port")],
            cwd=data,
            env=environment,
            capture_output=True,
            text=True,
        )
    assert run.returncode == 1 and "the port is in use" in run.stderr and "--master-port" in run.stderr


def test_a_method_of_ones_own(photos, tmp_path, monkeypatch):
    """Named as module:Class where its file lies: it trains, keeps its options, resumes, and a mistake is a sentence."""
    from objcrop.cli import main
    from objcrop.ssl.training.run_folder import read_metrics

    photos[0].save(tmp_path / "photos.arrow")
    monkeypatch.chdir(EXAMPLES)
    monkeypatch.setattr(sys, "path", list(sys.path))
    small = [
        "--arch",
        "timm/test_resnet",
        "--size",
        "32",
        "--batch-size",
        "8",
        "--threads",
        "2",
        "--log-every-steps",
        "1",
    ]
    command = ["pretrain", "--catalog", str(tmp_path / "photos.arrow"), "-o", str(tmp_path / "run"), *small]
    command += ["--method", "simsiam_method:SimSiam", "--hidden", "16", "--dim", "32"]
    main([*command, "--steps", "2"])
    main([*command, "--steps", "4", "--resume"])
    lines = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4] and all(-1 <= line["loss"] <= 1 for line in lines)
    kept = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert kept["simsiam_method:SimSiam"] == {"dim": 32, "hidden": 16} and kept["training"]["base_lr"] == 0.05
    assert load_checkpoint(tmp_path / "run" / "last.pt")["method"]["predictor.0.weight"].shape == (16, 32)
