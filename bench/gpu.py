"""All that a first hour on a GPU is for, in one command: `objcrop bench gpu`.

    objcrop bench gpu -o bench/results/h200 [--minutes 9]        again and again, until nothing is left
    objcrop bench gpu -o somewhere --dry-run                     the same on a CPU, in miniature

Each step is a process of its own with a limit of its own; one that fails, crashes or hangs is a row, and the next one
begins. A step that might not end within `--minutes` is left for the next call, which skips what is done; the first of a
call is always begun. FOLDER holds a JSON and a log for each step, and the summary, written anew after each.
bench/GPU_QUEUE.md says what the numbers decide.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from objcrop.bench.machine import installed
from objcrop.child_process import ENDS, end_of
from objcrop.errors import ObjcropError, UsageError, one_of
from objcrop.whole_file import whole_file

SCENES = {False: 2048, True: 16}  # drawn, by `dry_run`; twice 4096 images are measured at most


@dataclass(frozen=True)
class Step:
    """One of the things to do.

    Attributes:
        name: also of its files.
        limit: seconds it may take.
        command: what follows `python -m`; {json} is its result, {catalog}, {boxes} and {scratch} are what there is to
            work with.
        dry: the same in miniature on a CPU, or None.
        needs: modules without which it is skipped.
    """

    name: str
    limit: int
    command: str
    dry: str | None = None
    needs: tuple[str, ...] = ()


DALI, TESTS = ("nvidia.dali",), ("pytest", "pytest_timeout", "hypothesis")
PHOTOS = "--catalog {catalog} --boxes {boxes}"
TINY = "--size 32 --batch-size 4"
TRAIN = f"objcrop bench train {PHOTOS} --crops obj-obj+dilate -o {{json}} --repeats"
TINY_TRAIN = f"{TRAIN} 1 --device cpu --arch timm/test_resnet {TINY} --steps 2 --set queue=8"
RESNET50 = f"{TRAIN} 4 --device cuda --arch resnet50 --batch-size 256 --steps 40"
RESNET18 = f"{TRAIN} 3 --device cuda --arch resnet18 --size 112 --batch-size 256 --steps 100"
STEPS = (
    # It takes less than two minutes where nothing hangs; four ways of decoding that do take two each.
    Step("doctor", 500, "objcrop doctor -o {json}", "objcrop doctor -o {json}"),
    Step("kernel_tests", 240, "objcrop.bench.gpu_tests {json} tests/kernels -m 'gpu and not slow'", None, TESTS),
    Step(
        "tests", 300, "objcrop.bench.gpu_tests {json} tests --ignore tests/kernels -m 'gpu and not slow'", None, TESTS
    ),
    Step(
        "kernels",
        90,
        "objcrop bench kernels -o {json}",
        "objcrop bench kernels --device cpu --repeats 2 -o {json}",
    ),
    Step(
        "where",
        150,
        f"objcrop bench loader --where {PHOTOS} --device cuda --batch-size 256 --images 4096 --repeats 3 -o {{json}}",
        f"objcrop bench loader --where {PHOTOS} {TINY} --images 8 --repeats 1 -o {{json}}",
        DALI,
    ),
    Step(
        "loader",
        560,
        f"objcrop bench loader {PHOTOS} --device cuda --batch-size 64 --images 2048 --repeats 3 -o {{json}}",
        f"objcrop bench loader {PHOTOS} {TINY} --images 8 --repeats 1 -o {{json}}",
        DALI,
    ),
    Step(
        "tune",
        480,
        f"objcrop bench loader --tune {PHOTOS} --device cuda --batch-size 256 --images 4096 --repeats 3 -o {{json}}",
        f"objcrop bench loader --tune {PHOTOS} {TINY} --images 8 --repeats 1 --threads 2 -o {{json}}",
        DALI,
    ),
    Step("train", 240, RESNET50, TINY_TRAIN, DALI),
    Step("compiled_train", 240, f"{RESNET50} --set compile=true", None, DALI),
    Step("resnet18_train", 180, RESNET18, None, DALI),
    Step(
        "cached_train",
        180,
        f"{RESNET18} --set cache=device",
        f"{TINY_TRAIN} --set cache=host",
        DALI,
    ),
    Step(
        "proposals_rate",
        240,
        "objcrop bench proposals {catalog} --rate --device cuda --images 16384 -o {json}",
        "objcrop bench proposals {catalog} --rate --device cpu --images 4 --repeats 1 -o {json}",
        DALI,
    ),
    Step(
        "online",
        180,
        "objcrop pretrain --catalog {catalog} --boxes online:anchors --crops within-box --device cuda --arch resnet18 "
        "--size 112 --batch-size 256 --steps 60 --set queue=2048 --output {scratch}/online",
        "objcrop pretrain --catalog {catalog} --boxes online:anchors --crops within-box --device cpu "
        "--arch resnet18 --size 32 --batch-size 4 --steps 2 --set queue=8 --output {scratch}/online",
        DALI,
    ),
    Step("slow_tests", 540, "objcrop.bench.gpu_tests {json} tests -m 'gpu and slow'", None, (*TESTS, *DALI)),
    Step(
        "policies",
        540,
        "objcrop bench policies --train {catalog} --test {catalog} --runs {scratch}/runs --steps 300 --seeds 1 "
        "--set device=cuda --set arch=resnet18 --set size=112 --set batch_size=256 --set queue=2048 -o {json}",
        "objcrop bench policies --train {catalog} --test {catalog} --runs {scratch}/runs --steps 2 --seeds 1 "
        "--set arch=timm/test_resnet --set size=16 --set batch_size=8 --set queue=8 -o {json}",
        DALI,
    ),
)


def bench_gpu(
    folder: Path,
    *,
    minutes: float = 9,
    dry_run: bool = False,
    only: Sequence[str] | None = None,
    catalog: Path | None = None,
    boxes: Path | None = None,
    console: Console,
    steps: Sequence[Step] = STEPS,
    clock: Callable[[], float] = time.monotonic,
) -> dict[str, Any]:
    """Do what is left to do, as far as the time goes.

    Args:
        folder: for the results; made if it is not there, gone on with if it is.
        minutes: for this call; a step whose limit goes beyond them is left for the next.
        dry_run: on a CPU, in miniature.
        only: names of steps, which are done again if they were done; None for all that are left.
        catalog: images; None for scenes drawn for the purpose.
        boxes: theirs.
        console: where to say what is done.
        steps: all there are.
        clock: seconds.

    Returns:
        The summary: `dry_run`; `steps`, of each begun or skipped `state` ("done", "failed" or "skipped"), `seconds`,
        `why` where it is not done, and `verdict`, the lines of its result; `left`, the names of the others.

    Raises:
        UsageError: no GPU, no step of a name in `only`, or a folder of the other kind, dry or not.
    """
    if not dry_run:
        _refuse_without_gpu()
    for name in only or ():
        one_of(name, [step.name for step in steps], "only")
    ends = clock() + 60 * minutes
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = _read_summary(folder, dry_run)["steps"]
    left = [step for step in steps if (step.name in only if only else _is_left(step, rows, folder))]
    with tempfile.TemporaryDirectory(prefix="objcrop-gpu-") as scratch:
        places = {"scratch": scratch, "catalog": catalog, "boxes": boxes}
        begun = False
        while left:
            step, command = left[0], left[0].dry if dry_run else left[0].command
            why = _cannot(step, command)
            if not why and begun and clock() + step.limit > ends:
                break
            if not why and places["catalog"] is None:
                places |= _drawn(Path(scratch), SCENES[dry_run])
            began = clock()
            if why:
                rows[step.name] = {"state": "skipped", "seconds": 0.0, "why": why, "verdict": []}
            else:
                assert command is not None
                begun = True
                result = folder / f"{step.name}.json"
                result.unlink(missing_ok=True)
                if only:
                    _tests_of(result).unlink(missing_ok=True)
                words = [word.format(json=result, **places) for word in shlex.split(command)]
                why = _run(words, folder / f"{step.name}.log", min(step.limit, ends - clock()))
                rows[step.name] = {
                    "state": "failed" if why else "done",
                    "seconds": round(clock() - began, 1),
                    "why": why,
                    "verdict": _verdict(result),
                }
            left.pop(0)
            row = rows[step.name]
            console.print(
                f"{step.name}: {row['state']}, {row['seconds']:.0f} s {row['why']}", highlight=False, markup=False
            )
            _write_summary(folder, _summary(dry_run, rows, left))
    return _summary(dry_run, rows, left)


def _summary(dry_run: bool, rows: dict[str, Any], left: Sequence[Step]) -> dict[str, Any]:
    return {"dry_run": dry_run, "steps": rows, "left": [step.name for step in left]}


def _is_left(step: Step, rows: dict[str, Any], folder: Path) -> bool:
    """Whether a step is to be done: also one of tests that was broken off, which goes on behind the last it began."""
    result = folder / f"{step.name}.json"
    broken_off = _tests_of(result).exists() and not result.exists()
    return step.name not in rows or rows[step.name]["state"] == "skipped" or broken_off


def _tests_of(result: Path) -> Path:
    return result.with_suffix(".json.log")  # as gpu_tests names it


def _refuse_without_gpu() -> None:
    import torch

    if not torch.cuda.is_available():
        raise UsageError(
            "bench gpu needs a GPU, and PyTorch finds none; --dry-run does the same on a CPU, in miniature."
        )


def _cannot(step: Step, command: str | None) -> str:
    """Return why a step cannot be done here, "" where it can."""
    if command is None:
        return "needs a GPU"
    missing = [name for name in step.needs if not installed(name)]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if "gpu_tests" in command and not Path("tests").is_dir():
        return "there are no tests here, run it from the root of a checkout"
    return ""


def _drawn(folder: Path, n: int) -> dict[str, Path]:
    """Draw scenes; return where their catalog and boxes are."""
    from objcrop.formats import index
    from objcrop.proposals import propose
    from objcrop.sample_scenes import draw_scenes

    draw_scenes(folder / "scenes", n)
    photos, _ = index(folder / "scenes", "scenes")
    photos.save(folder / "photos.arrow")
    propose(photos, "gt").save(folder / "boxes.arrow")
    return {"catalog": folder / "photos.arrow", "boxes": folder / "boxes.arrow"}


def _run(words: list[str], log: Path, limit: float) -> str:
    """Run a command of Python's in a group of processes of its own; return what went wrong, "" where nothing did."""
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    with open(log, "wb") as said:
        child = subprocess.Popen(
            [sys.executable, "-m", *words],
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        why = ""
        try:
            child.wait(limit)
        except subprocess.TimeoutExpired:
            why = f"over its {limit:.0f} s"
            os.killpg(child.pid, signal.SIGABRT)  # says where each thread is
            with suppress(subprocess.TimeoutExpired):
                child.wait(ENDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if not why and child.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        why = end_of(child.returncode) + (f": {lines[-1][:300]}" if lines and child.returncode > 0 else "")
    return why


def _verdict(result: Path) -> list[str]:
    try:
        return list(json.loads(result.read_text(encoding="utf-8")).get("verdict", []))
    except (OSError, ValueError):
        return []


def _read_summary(folder: Path, dry_run: bool) -> dict[str, Any]:
    file = folder / "summary.json"
    if not file.exists():
        return _summary(dry_run, {}, [])
    try:
        summary = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        raise ObjcropError(f"{file} cannot be read; delete it to begin anew.") from None
    if summary["dry_run"] != dry_run:
        raise UsageError(f"{folder} holds results of {'a GPU' if dry_run else 'a dry run'}; name another folder.")
    return summary


def _write_summary(folder: Path, summary: dict[str, Any]) -> None:
    with whole_file(folder / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    lines = ["| step | state | seconds | what came of it |", "| --- | --- | --- | --- |"]
    for name, row in summary["steps"].items():
        said = " ".join([*filter(None, [row["why"]]), *row["verdict"]]).replace("|", "\\|")
        lines.append(f"| {name} | {row['state']} | {row['seconds']:.0f} | {said} |")
    if summary["left"]:
        lines += ["", f"Left: {', '.join(summary['left'])}."]
    with whole_file(folder / "summary.md") as part:
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
