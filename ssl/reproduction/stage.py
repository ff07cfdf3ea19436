"""A stage: a command of objcrop in a process of its own, in a folder named by what it is made from.

    OUTPUT/stages/oac-table6-byol-bing-obj-scene-3fa1b20c/     last.pt …, log.txt, and stage.json once it is done

The name's end is a digest of options, data and the stages before. So another option or catalog is another folder, and
what was made before is neither taken for it nor lost; tables in one output folder share the stages they have in common.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from objcrop.child_process import end_of
from objcrop.progress import quiet
from objcrop.whole_file import whole_file

RECORD, LOG = "stage.json", "log.txt"


class Stage(NamedTuple):
    """A command, and what it makes.

    Attributes:
        kind: "boxes", "pretrain", "probe", or a task of transfer.
        name: of its recipe or boxes, or of the row.
        words: the command after `objcrop`, but for its output.
        made_from: what decides on what comes out, as JSON has it.
        after: stages that it reads from.
        folder: where everything of it lies.
        makes: the file there that others read.
    """

    kind: str
    name: str
    words: tuple[str, ...]
    made_from: dict[str, Any]
    after: tuple[Stage, ...]
    folder: Path
    makes: str

    @property
    def made(self) -> Path:
        """The file that others read."""
        return self.folder / self.makes

    @property
    def command(self) -> list[str]:
        """The whole command, after `objcrop`."""
        into_file = self.kind in ("boxes", "probe")
        return [*self.words, "--output", str(self.made if into_file else self.folder)]

    @property
    def done(self) -> bool:
        """Whether it came to its end before, made from the same."""
        with suppress(OSError, ValueError):
            record = json.loads((self.folder / RECORD).read_text(encoding="utf-8"))
            return record.get("made_from") == self.made_from and self.made.exists()
        return False


def key_of(made_from: Mapping[str, Any]) -> str:
    """Return the digest of what a stage is made from, 8 hex digits."""
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:8]


def run_in_turn(
    stages: Sequence[Stage], torchrun: Sequence[str] = (), begins: Callable[[Stage], None] = lambda stage: None
) -> Iterator[tuple[Stage, str | None]]:
    """Run stages, each with the whole machine; what they say is shown, and kept in their log.txt.

    Args:
        stages: not done yet, none before one that it needs.
        torchrun: words for torchrun, under which networks are trained; none for one process.
        begins: told of each stage that begins.

    Yields:
        Each stage when it has ended, and its last sentence if it failed. Those behind one that failed are left out.
    """
    loud = ["-q"] if quiet() else ["-v"] * logging.getLogger("objcrop").isEnabledFor(logging.INFO)
    for stage in stages:
        if not all(before.done for before in stage.after):
            continue
        begins(stage)
        began = time.time()
        stage.folder.mkdir(parents=True, exist_ok=True)
        launch = ["-m", "torch.distributed.run", *torchrun] if torchrun and stage.kind not in ("boxes", "probe") else []
        why = _run([sys.executable, *launch, "-m", "objcrop", *loud, *stage.command], stage.folder / LOG)
        if why is None:
            _note_done(stage, time.time() - began)
        yield stage, why


def run_together(
    stages: Sequence[Stage], at_once: int, begins: Callable[[Stage], None] = lambda stage: None
) -> Iterator[tuple[Stage, str | None]]:
    """Run stages, several at once, each on one core after those that it needs; what they say is kept in their log.txt.

    Args:
        stages: not done yet, none before one that it needs.
        at_once: how many processes.
        begins: told of each stage that begins.

    Yields:
        Each stage when it has ended, and its last sentence if it failed. Those behind one that failed are left out; the
        others go on. Closed before its end, this ends those that run, which go on another time.
    """
    waiting, running = list(stages), dict[subprocess.Popen[bytes], tuple[Stage, float, int]]()
    alone = {**os.environ, "NO_COLOR": "1", "OMP_NUM_THREADS": "1"}  # else libraries would take each other's cores
    with _ended_with(running):
        while True:
            ready = [stage for stage in waiting if all(before.done for before in stage.after)]
            for stage in ready[: at_once - len(running)]:
                waiting.remove(stage)
                begins(stage)
                stage.folder.mkdir(parents=True, exist_ok=True)
                command = [sys.executable, "-m", "objcrop", *stage.command]
                with (stage.folder / LOG).open("ab") as log:
                    said_before = log.tell()
                    child = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=alone)
                running[child] = stage, time.time(), said_before
            if not running:  # what waits now is behind one that failed
                return
            ended = [child for child in running if child.poll() is not None]
            for child in ended:
                stage, began, said_before = running.pop(child)
                why = _failure(child.returncode, stage.folder / LOG, said_before) if child.returncode else None
                if why is None:
                    _note_done(stage, time.time() - began)
                yield stage, why
            if not ended:
                time.sleep(0.1)


def _failure(code: int, log: Path, begin: int) -> str:
    """Return why a command failed: the last sentence that it said, in its log from a byte on."""
    said = log.read_bytes()[begin:].decode("utf-8", errors="replace").splitlines()
    sentences = [line.removeprefix("objcrop: ").strip() for line in said if line.startswith("objcrop: ")]
    return sentences[-1] if sentences else f"the command {end_of(code)}; its last words are in {log}."


def _note_done(stage: Stage, seconds: float) -> None:
    record = {"made_from": stage.made_from, "command": stage.command, "seconds": round(seconds)}
    with whole_file(stage.folder / RECORD) as part:
        part.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def _run(command: list[str], log: Path) -> str | None:
    """Return None where a command came to its end, else what it said of its failure."""
    said_before = log.stat().st_size if log.exists() else 0
    with log.open("a", encoding="utf-8") as file:
        how: dict[str, Any] = {"stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
        child = subprocess.Popen(command, stdout=subprocess.PIPE, env={**os.environ, "NO_COLOR": "1"}, **how)
        with child, _ended_with((child,)):
            assert child.stdout is not None
            for line in child.stdout:
                print(line, end="", flush=True)
                file.write(line)
    return _failure(child.returncode, log, said_before) if child.returncode else None


@contextmanager
def _ended_with(children: Collection[subprocess.Popen[Any]]) -> Iterator[None]:
    """End children with this process, and let them save first: where this one is told to end, or is interrupted."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(128 + number)

    here = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if here else None
    try:
        yield
    except BaseException:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        for child in children:
            child.wait()
        raise
    finally:
        if here:
            signal.signal(signal.SIGTERM, before)
