"""The command for a first hour on a GPU: steps that fail, crash or hang are rows; what is done is not done again."""

import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from objcrop.bench import gpu
from objcrop.bench.gpu import STEPS, Step, bench_gpu
from objcrop.bench.gpu_tests import run_tests
from objcrop.bench.table import print_steps
from objcrop.errors import ObjcropError, UsageError

MODULES = {
    "writes": "import json, sys; json.dump({'verdict': [f'{len(sys.argv)} words']}, open(sys.argv[1], 'w'))",
    "fails": "import sys; print('on the way'); sys.exit('no luck')",
    "crashes": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "hangs": "import threading; print('up', flush=True); threading.Event().wait()",
}
QUIET = Console(file=io.StringIO())


@pytest.fixture
def modules(tmp_path, monkeypatch):
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(gpu, "_drawn", lambda folder, n: {"catalog": folder / "a.arrow", "boxes": folder / "b.arrow"})


def test_what_fails_crashes_or_hangs_is_a_row_and_the_next_begins(tmp_path, modules):
    steps = [
        Step("fails", 600, "", "fails"),
        Step("crashes", 600, "", "crashes"),
        Step("hangs", 1, "", "hangs"),
        Step("on_a_gpu", 600, "writes {json}"),
        Step("lacks", 600, "", "writes {json}", ("no.such.module", "no_such_module")),
        Step("writes", 600, "", "writes {json} {catalog} '{boxes}'"),
    ]
    summary = bench_gpu(tmp_path / "o u t", dry_run=True, minutes=1000, console=QUIET, steps=steps)
    rows = summary["steps"]
    assert summary["left"] == [] and {name: row["why"] for name, row in rows.items()} == {
        "fails": "ended with exit code 1: no luck",
        "crashes": "killed by SIGSEGV",
        "hangs": "over its 1 s",
        "on_a_gpu": "needs a GPU",
        "lacks": "not installed: no.such.module, no_such_module",
        "writes": "",
    }
    assert [row["state"] for row in rows.values()] == ["failed"] * 3 + ["skipped"] * 2 + ["done"]
    assert rows["writes"]["verdict"] == ["4 words"]
    assert json.loads((tmp_path / "o u t" / "summary.json").read_text()) == summary
    assert (tmp_path / "o u t" / "fails.log").read_text() == "on the way\nno luck\n"
    assert "| writes | done | 0 | 4 words |" in (tmp_path / "o u t" / "summary.md").read_text()
    # What was missing may have been installed since.
    steps[4] = Step("lacks", 600, "", "writes {json}")
    summary = bench_gpu(tmp_path / "o u t", dry_run=True, minutes=1000, console=QUIET, steps=steps)
    assert summary["steps"]["lacks"]["state"] == "done" and summary["steps"]["fails"]["state"] == "failed"
    console = Console(file=io.StringIO(), width=100)
    print_steps(summary, console)
    assert "killed by SIGSEGV" in console.file.getvalue()


def test_a_call_keeps_to_its_minutes_and_the_next_goes_on(tmp_path, modules, monkeypatch):
    now, ran = [0.0], []

    def run(words, log, limit):
        ran.append((words[0], limit))
        now[0] += 100
        return "over its limit" if words[0] == "b" else ""

    monkeypatch.setattr(gpu, "_run", run)
    steps = [
        Step(name, limit, "", name) for name, limit in {"a": 300, "b": 300, "c": 300, "d": 30, "long": 900}.items()
    ]
    options = dict(dry_run=True, minutes=9, console=QUIET, steps=steps, clock=lambda: now[0])
    summary = bench_gpu(tmp_path, **options)
    assert ran == [("a", 300), ("b", 300), ("c", 300), ("d", 30)] and summary["left"] == ["long"]
    assert summary["steps"]["b"]["why"] == "over its limit"
    ran.clear()
    summary = bench_gpu(tmp_path, **options)  # the first is begun however long it may take
    assert ran == [("long", 540)] and summary["left"] == [] and list(summary["steps"]) == ["a", "b", "c", "d", "long"]
    assert bench_gpu(tmp_path, **options) == summary and ran == [("long", 540)]
    bench_gpu(tmp_path, only=["b"], **options)
    assert ran[1:] == [("b", 300)]
    # Tests that were broken off have written no result yet.
    (tmp_path / "d.json.log").write_text("")
    bench_gpu(tmp_path, **options)
    assert ran[2:] == [("d", 30)]


def test_wrong_use(tmp_path):
    with pytest.raises(UsageError, match="only is 'x', but it must be one of: doctor, kernel_tests"):
        bench_gpu(tmp_path, dry_run=True, only=["x"], console=QUIET)
    if not torch.cuda.is_available():
        with pytest.raises(UsageError, match="needs a GPU, and PyTorch finds none; --dry-run"):
            bench_gpu(tmp_path, console=QUIET)
    (tmp_path / "summary.json").write_text('{"dry_run": false, "steps": {}}')
    with pytest.raises(UsageError, match="holds results of a GPU; name another folder"):
        bench_gpu(tmp_path, dry_run=True, console=QUIET)
    (tmp_path / "summary.json").write_text("{")
    with pytest.raises(ObjcropError, match=r"summary\.json cannot be read; delete it"):
        bench_gpu(tmp_path, dry_run=True, console=QUIET)


def test_every_step_is_explained():
    queue = (Path(gpu.__file__).parent / "GPU_QUEUE.md").read_text()
    assert [step.name for step in STEPS if f"`{step.name}`" not in queue] == []


def test_a_dry_run(tmp_path):
    """The cheapest step that computes something; the others' commands are benches that have tests of their own."""
    summary = bench_gpu(tmp_path, dry_run=True, only=["kernels", "tests"], minutes=1000, console=QUIET)
    assert summary["steps"]["kernels"]["state"] == "done", (tmp_path / "kernels.log").read_text()
    assert "device cpu" in summary["steps"]["kernels"]["verdict"][0]
    assert summary["steps"]["tests"]["why"] == "needs a GPU"
    assert json.loads((tmp_path / "kernels.json").read_text())["machine"]["cores"] > 0


def test_commands_can_be_read():
    """Every option of a step's command is one that its command has."""
    from typer.main import get_command

    from objcrop.cli import app

    places = dict(json="a.json", catalog="c.arrow", boxes="b.arrow", scratch="scratch")
    commands = [each for step in STEPS for each in (step.command, step.dry) if each and "gpu_tests" not in each]
    assert len(commands) > 20
    for command in commands:
        name, *words = gpu.shlex.split(command.format(**places))
        group = get_command(app)
        while hasattr(group, "commands"):
            group = group.get_command(None, words.pop(0))
        known = {option for parameter in group.params for option in parameter.opts}
        assert name == "objcrop" and {word for word in words if word.startswith("-")} <= known, command


TESTS = """
import os, signal, pytest

def test_before(): pass

healthy = True

def test_wrong():
    global healthy
    healthy = False
    assert 1 == 2

@pytest.mark.parametrize("i", [0, 1])
def test_between(i): assert healthy, "a GPU that failed is of no use to the process"

def test_crash(): os.kill(os.getpid(), signal.SIGSEGV)

@pytest.mark.skip(reason="no")
def test_left_out(): pass

@pytest.mark.slow
def test_slow(): pass

@pytest.fixture
def broken(): raise OSError("no device")

def test_of_broken(broken): pass

def test_last(): pass
"""


def test_a_test_that_crashes_is_one_of_many(tmp_path, monkeypatch):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow: x\n")
    (tmp_path / "test_it.py").write_text(TESTS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # half of the time it takes
    (tmp_path / "r.json.log").write_text('["test_it.py::test_before", "passed"]\n')  # by a call before
    (tmp_path / "test_lacks.py").write_text("import no_such_module")
    found = run_tests(tmp_path / "r.json", [".", "-m", "not slow"])
    assert {name.removeprefix("test_it.py::"): outcome for name, outcome in found["tests"].items()} == {
        "test_before": "passed",
        "test_wrong": "failed: test_it.py:11: AssertionError",
        "test_between[0]": "passed",
        "test_between[1]": "passed",
        "test_crash": "killed by SIGSEGV",
        "test_left_out": "skipped",
        "test_of_broken": "failed: test_it.py:25: OSError",
        "test_last": "passed",
        "test_lacks.py": "not collected: ModuleNotFoundError: No module named 'no_such_module'",
    }
    assert found["trouble"] == "" and found["verdict"][0] == "4 passed, 4 did not, 1 skipped."
    assert json.loads((tmp_path / "r.json").read_text()) == found


def test_where_pytest_itself_cannot_run_that_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    found = run_tests(tmp_path / "r.json", ["none.py"])
    assert found["tests"] == {} and found["trouble"] == "pytest ended with exit code 4" and len(found["verdict"]) == 2
