"""Stages, in turn or several at once: each after those it needs, and what becomes of the others when one fails."""

import json
import sys

import pytest

from objcrop.ssl.reproduction.stage import LOG, RECORD, Stage, run_in_turn, run_together


def stage(folder, name, words, after=()):
    return Stage("boxes", name, tuple(words), {"words": list(words)}, tuple(after), folder / name, "page.md")


HOW = {"in turn": run_in_turn, "together": lambda stages, **how: run_together(stages, 2, **how)}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_each_after_those_it_needs(how, tmp_path):
    first, second = (stage(tmp_path, name, ["recipes"]) for name in ("first", "second"))
    last = stage(tmp_path, "last", ["recipes"], [first, second])
    begun = []
    done = [(each.name, why) for each, why in how([first, second, last], begins=lambda each: begun.append(each.name))]
    assert sorted(done[:2]) == [("first", None), ("second", None)] and done[2] == ("last", None)
    assert begun == ["first", "second", "last"]
    for each in (first, second, last):
        assert each.done and each.made.read_text().startswith("#") and (each.folder / LOG).exists()
    assert json.loads((last.folder / RECORD).read_text())["command"] == last.command


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
def test_one_that_fails_leaves_out_those_behind_it_and_no_others(how, tmp_path):
    wrong = stage(tmp_path, "wrong", ["propose", str(tmp_path / "none.arrow"), "--method", "gt"])
    after = stage(tmp_path, "after", ["recipes"], [wrong])
    behind = stage(tmp_path, "behind", ["recipes"], [after])
    other = stage(tmp_path, "other", ["recipes"])
    ended = {each.name: why for each, why in how([wrong, after, behind, other])}
    assert ended.keys() == {"wrong", "other"} and ended["other"] is None and other.done
    assert ended["wrong"].startswith("the output '") and "page.md' must end in" in ended["wrong"]
    assert not wrong.done and not after.folder.exists() and not behind.folder.exists()


def test_a_sentence_of_another_try_is_not_said_again(tmp_path, monkeypatch):
    killed = stage(tmp_path, "killed", ["recipes"])
    killed.folder.mkdir()
    (killed.folder / LOG).write_text("objcrop: the disk is full.\n")
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nkill -9 $$\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    ((_, why),) = run_together([killed], 1)
    assert "the command killed by SIGKILL; its last words" in why


def test_those_that_run_are_ended_with_whom_they_run_for(tmp_path, monkeypatch):
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
    run = run_together([stage(tmp_path, "a", ["sleeps"]), stage(tmp_path, "b", ["fails"])], 2)
    ended, why = next(run)
    assert ended.name == "b" and why.startswith("the command ended with exit code 3") and not mark.exists()
    run.close()
    assert mark.read_text() == "yes"
