"""What the operating system says becomes one sentence with the file and the reason, exit code 1, never a trace."""

import errno
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import objcrop.doctor  # noqa: F401
from objcrop.errors import in_a_sentence


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(13, "Permission denied", "/a/b"), ["/a/b: Permission denied"]),
        (OSError(errno.ENOSPC, "No space left on device"), ["No space left on device", "TMPDIR"]),
        (OSError(errno.ENOSPC, "No space left on device", "x.arrow"), ["x.arrow", "free some space there"]),
        (OSError(errno.EDQUOT, "Disk quota exceeded", b"x"), ["x: Disk quota exceeded", "free some space"]),
        (OSError(errno.EMFILE, "Too many open files", "x"), ["ulimit -n"]),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x" * 300), ["shorter name"]),
        (OSError(errno.EXDEV, "Invalid cross-device link", "a", None, "b"), ["a → b: Invalid cross-device link"]),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), ["No usable temporary directory"]),
        (OSError("cannot identify image file"), ["cannot identify image file"]),
        (OSError(), ["OSError"]),
        (BrokenPipeError(32, "Broken pipe"), ["Broken pipe"]),
        (MemoryError(), ["the memory is full"]),
        (RecursionError("maximum recursion depth exceeded"), ["nested too deep"]),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory."), ["GPU's memory is full"]),
    ],
)
def test_a_sentence(error, words):
    said = in_a_sentence(error)
    assert all(word in said for word in words) and "\n" not in said and said.endswith("."), said


def test_a_fault_of_our_own_stays_one():
    assert in_a_sentence(ValueError("x")) is None and in_a_sentence(KeyError("x")) is None


@pytest.mark.parametrize(
    ("error", "word"),
    [
        (OSError(errno.EIO, "Input/output error", "/photos/a.jpg"), "/photos/a.jpg: Input/output error"),
        (np._core._exceptions._ArrayMemoryError((2**40,), np.dtype(float)), "memory is full"),
        (RecursionError(), "nested too deep"),
    ],
)
def test_main_says_it(objcrop, monkeypatch, error, word):
    def fail():
        raise error

    monkeypatch.setattr(objcrop_doctor(), "examine", fail)
    run = objcrop("doctor")
    assert run.returncode == 1 and word in run.stderr and len(run.stderr.strip().splitlines()) == 1


def objcrop_doctor():
    return sys.modules["objcrop.doctor"]


def test_main_lets_a_fault_of_our_own_be_seen(objcrop, monkeypatch):
    monkeypatch.setattr(objcrop_doctor(), "examine", lambda: {}["gone"])
    with pytest.raises(KeyError):
        objcrop("doctor")


FULL = """
import json, os, subprocess, sys
folder, commands = sys.argv[1], json.loads(sys.argv[2])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k,nr_inodes=8", "none", folder + "/small"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "none", folder + "/full"], check=True)
subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=16k", "none", folder + "/readonly"], check=True)
with open(folder + "/full/filler", "wb", buffering=0) as file:
    while True:
        try:
            file.write(bytes(4096))
        except OSError:
            break
from objcrop.cli import main
for words in commands:
    print(json.dumps({"trying": words}), file=sys.stderr)
    try:
        main(words)
        print("objcrop: done", file=sys.stderr)
    except SystemExit:
        pass
print(json.dumps({p: sorted(os.listdir(folder + "/" + p)) for p in ("small", "full", "readonly")}))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux") or os.geteuid() != 0, reason="root mounts small disks")
def test_full_and_read_only_disks(tmp_path):
    if subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
        pytest.skip("no mount namespace may be made here")
    (tmp_path / "photos").mkdir()
    for i in range(400):
        Image.new("RGB", (8, 8)).save(tmp_path / "photos" / f"{i:060}.png")  # a catalog of more than 16 KiB
    for name in ("small", "full", "readonly"):
        (tmp_path / name).mkdir()
    index = ["index", str(tmp_path / "photos"), "-o"]
    commands = [
        [*index, str(tmp_path / "small" / "c.arrow")],
        [*index, str(tmp_path / "full" / "c.arrow")],
        [*index, str(tmp_path / "readonly" / "c.arrow")],
        [*index, str(tmp_path / "sound.arrow")],
        ["propose", str(tmp_path / "sound.arrow"), "--method", "grid", "-o", str(tmp_path / "small" / "b.arrow")],
        ["demo", "-o", str(tmp_path / "full" / "demo")],
        ["pretrain", "--catalog", str(tmp_path / "sound.arrow"), "-o", str(tmp_path / "readonly" / "run")],
    ]
    words = ["unshare", "-m", sys.executable, "-c", FULL, str(tmp_path), json.dumps(commands)]
    run = subprocess.run(words, capture_output=True, text=True)
    said = [line for line in run.stderr.splitlines() if line.startswith("objcrop: ")]
    assert run.returncode == 0 and len(said) == len(commands) and "Traceback" not in run.stderr, run.stderr
    for command, sentence in zip(commands, said):
        if command[-1].endswith("sound.arrow"):
            assert sentence == "objcrop: done"
        else:
            why = "Read-only file system" if "readonly" in command[-1] else "No space left on device"
            assert command[-1] in sentence and why in sentence, (command, sentence)
    assert json.loads(run.stdout.splitlines()[-1]) == {"small": [], "full": ["filler"], "readonly": []}
