"""Mutated files of every format end as "done" or as one sentence, within a memory limit, and never in a hang.

The inputs are tried in one child process, since a crash is one of the things looked for, and so is one that computes
without end: `tests/fuzz.py`.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

FUZZ = pathlib.Path(__file__).with_name("fuzz.py")


def wrong_of(folder, *arguments):
    """Run `tests/fuzz.py`; return how many inputs were tried and what went wrong, crashes and hangs included."""
    with subprocess.Popen(
        [sys.executable, FUZZ, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=(folder / "stderr").open("w"),
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as child:
        wrong, tried = [], []
        for line in child.stdout:
            told = json.loads(line)
            tried += [told["trying"]] if "trying" in told else []
            wrong += [told["wrong"]] if "wrong" in told else []
    if child.returncode:
        said = (folder / "stderr").read_text()[-2000:]
        wrong.append(f"the process ended with {child.returncode} at {tried[-1:]}: {said}")
    return len(tried), wrong


def test_mutated_files_are_done_or_one_sentence(tmp_path):
    tried, wrong = wrong_of(tmp_path, tmp_path / "fuzz", 80, 0)
    assert not wrong, f"{len(wrong)} of {tried}: " + "\n\n".join(wrong[:5])
    assert tried > 800


def test_files_that_once_failed(test_data, tmp_path):
    """Files on which a fuzzer once found a traceback, a crash or all memory taken."""
    cases = test_data.parent / "cases" / "fuzz"
    if not cases.is_dir():
        pytest.skip(f"{cases} is not there")
    images, catalog, out = cases / "coco_images", tmp_path / "c.arrow", tmp_path / "o.arrow"
    commands = [["index", file, "--format", "coco", "--root", images, "-o", out] for file in cases.glob("coco_*.json")]
    commands.append(["index", images, "-o", catalog])
    importing = ("--method", "import", "-o", out, "--source")
    commands += [["propose", catalog, *importing, file] for file in sorted(cases.glob("import_*"))]
    commands += [["stats", catalog, "--boxes", file] for file in cases.glob("boxes_*.arrow")]
    recipes = sorted(cases.glob("recipe_*.yaml"))
    commands += [["pretrain", "--recipe", file, "--catalog", catalog, "-o", tmp_path / "run"] for file in recipes]
    for file in sorted(cases.glob("voc_*.xml")):
        shutil.copytree(cases / "voc", tmp_path / file.stem, copy_function=shutil.copyfile)
        for folder in (tmp_path / file.stem, *(tmp_path / file.stem).iterdir()):
            folder.chmod(0o755)
        shutil.copyfile(file, tmp_path / file.stem / "Annotations" / "000001.xml")
        commands.append(["index", tmp_path / file.stem, "--format", "voc", "-o", out])
    (tmp_path / "commands.json").write_text(json.dumps([[str(word) for word in words] for words in commands]))
    tried, wrong = wrong_of(tmp_path, tmp_path / "commands.json")
    assert not wrong and tried == len(commands) > 20, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.timeout(3000)  # it computes for an hour and more, see tests/children.py
def test_many_more(tmp_path):
    tried, wrong = wrong_of(tmp_path, tmp_path / "fuzz", 5000, 1000)
    assert not wrong, f"{len(wrong)} of {tried}: " + "\n\n".join(wrong[:5])
