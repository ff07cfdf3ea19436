"""Mutated files of every format end as "done" or as one sentence, within a memory limit, and never in a hang.

The inputs are tried in one child process, since a crash is one of the things looked for, and so is one that computes
without end: `tests/fuzz.py`.
"""

import json
import os
import pathlib
import subprocess
import sys

import pytest

FUZZ = pathlib.Path(__file__).with_name("fuzz.py")


def wrong_of(folder, count, first):
    """Try `count` inputs of each format; return how many were tried and what went wrong, crashes and hangs included."""
    with subprocess.Popen(
        [sys.executable, FUZZ, folder, str(count), str(first)],
        stdout=subprocess.PIPE,
        stderr=(folder.parent / "stderr").open("w"),
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:
        wrong, tried = [], []
        for line in child.stdout:
            told = json.loads(line)
            tried += [told["trying"]] if "trying" in told else []
            wrong += [told["wrong"]] if "wrong" in told else []
    if child.returncode:
        said = (folder.parent / "stderr").read_text()[-2000:]
        wrong.append(f"the process ended with {child.returncode} at {tried[-1:]}: {said}")
    return len(tried), wrong


def test_mutated_files_are_done_or_one_sentence(tmp_path):
    tried, wrong = wrong_of(tmp_path / "fuzz", 300, 0)
    assert not wrong, f"{len(wrong)} of {tried}: " + "\n\n".join(wrong[:5])
    assert tried > 3000


@pytest.mark.slow
@pytest.mark.timeout(3000)  # it computes for an hour and more, see tests/children.py
def test_many_more(tmp_path):
    tried, wrong = wrong_of(tmp_path / "fuzz", 5000, 1000)
    assert not wrong, f"{len(wrong)} of {tried}: " + "\n\n".join(wrong[:5])
