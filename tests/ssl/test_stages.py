"""Stages, several at once: each after those it needs, and what becomes of the others when one fails."""

import json
import sys

import pytest

from objcrop.errors import ObjcropError
from objcrop.ssl.reproduction.stage import LOG, RECORD, Stage, run_stages


def stage(folder, name, words, after=()):
    return Stage("boxes", name, tuple(words), {"words": list(words)}, tuple(after), folder / name, "page.md")


def test_each_after_those_it_needs(tmp_path):
    first, second = (stage(tmp_path, name, ["recipes"]) for name in ("first", "second"))
    last = stage(tmp_path, "last", ["recipes"], [first, second])
    done = [each.name for each in run_stages([first, second, last], 2)]
    assert sorted(done[:2]) == ["first", "second"] and done[2] == "last"
    for each in (first, second, last):
        assert each.done and each.made.read_text().startswith("#") and (each.folder / LOG).exists()
    assert json.loads((last.folder / RECORD).read_text())["command"] == last.command


def test_one_that_fails_is_said_and_those_after_it_do_not_run(tmp_path):
    wrong = stage(tmp_path, "wrong", ["propose", str(tmp_path / "none.arrow"), "--method", "gt"])
    after = stage(tmp_path, "after", ["recipes"], [wrong])
    with pytest.raises(ObjcropError, match=r"^boxes, wrong: the output '.*page\.md' must end in"):
        list(run_stages([wrong, after], 2))
    assert not wrong.done and not after.folder.exists()


def test_a_sentence_of_another_try_is_not_said_again(tmp_path, monkeypatch):
    killed = stage(tmp_path, "killed", ["recipes"])
    killed.folder.mkdir()
    (killed.folder / LOG).write_text("objcrop: the disk is full.\n")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ObjcropError, match="the command killed by SIGKILL; its last words"):
        list(run_stages([killed], 1))


def test_a_stage_whose_needs_are_not_there_ends(tmp_path):
    nobody = stage(tmp_path, "nobody", ["recipes"])
    with pytest.raises(ObjcropError, match="what it needs is not there"):
        list(run_stages([stage(tmp_path, "after", ["recipes"], [nobody])], 1))


def test_others_are_ended_with_one_that_fails(tmp_path, monkeypatch):
    """The one that sleeps would do so for ever; ended by SIGTERM, it leaves a file that says so."""
    script = tmp_path / "python"
    mark = tmp_path / "ended"
    script.write_text(
        f"#!{sys.executable}\n"
        "import pathlib, signal, sys, time\n"
        f"mark = pathlib.Path({str(mark)!r})\n"
        "if 'fails' in sys.argv:\n"
        f"    while not pathlib.Path({str(tmp_path / 'sleeps')!r}).exists(): time.sleep(0.01)\n"
        "    sys.exit(3)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (mark.write_text('yes'), sys.exit(1)))\n"
        f"pathlib.Path({str(tmp_path / 'sleeps')!r}).write_text('')\n"
        "signal.pause()\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(ObjcropError, match="ended with exit code 3"):
        list(run_stages([stage(tmp_path, "a", ["sleeps"]), stage(tmp_path, "b", ["fails"])], 2))
    assert mark.read_text() == "yes"
