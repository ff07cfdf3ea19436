"""-q and -v: of every command, before it and after it; and colour where there is a terminal."""

import logging
import subprocess
import sys

import pytest
import typer
from test_advice import commands

from objcrop.cli import app
from objcrop.cli_errors import say

LOG = logging.getLogger("objcrop")


def test_every_command_takes_both():
    assert all({"--quiet", "-q", "--verbose", "-v"} <= options for options in commands().values() if len(options) > 1)
    assert {"--quiet", "--verbose"} <= {option for p in typer.main.get_command(app).params for option in p.opts}


@pytest.fixture
def catalog(photos, tmp_path):
    photos[0].save(tmp_path / "c.arrow")
    return tmp_path


PROPOSE = ("propose", "c.arrow", "--method", "grid", "-o", "b.arrow")


@pytest.mark.parametrize(
    ("words", "level"),
    [
        (PROPOSE, logging.NOTSET),
        (("-q", *PROPOSE), logging.ERROR),
        ((*PROPOSE, "--quiet"), logging.ERROR),
        (("--verbose", *PROPOSE), logging.INFO),
        ((*PROPOSE, "-v"), logging.INFO),
        (("-v", *PROPOSE, "-v"), logging.INFO),
    ],
)
def test_before_the_command_and_after_it(catalog, objcrop, monkeypatch, words, level):
    seen = []
    monkeypatch.setattr("objcrop.proposals.catalog_at", lambda images: seen.append(LOG.level) or images)
    run = objcrop(*words, cwd=catalog)
    assert run.returncode == 0 and seen == [level]
    assert run.stdout == "120 boxes on 24 images → b.arrow\n"
    assert LOG.level == logging.NOTSET, "a command leaves nothing to the program that ran it"


def test_verbose_says_what_is_read_and_written(catalog, objcrop, caplog):
    assert objcrop(*PROPOSE, "-v", cwd=catalog).returncode == 0
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "Read the catalog c.arrow: 24 rows." and said[1].startswith("Wrote b.arrow: ")
    assert said[-1].startswith("Done in ") and {record.levelno for record in caplog.records} == {logging.INFO}


BOTH = [("-q", "-v", "recipes"), ("-q", "recipes", "-v"), ("recipes", "-v", "-q"), ("bench", "plan", "-qv")]


@pytest.mark.parametrize("words", BOTH)
def test_both_are_wrong_use(objcrop, words):
    run = objcrop(*words)
    assert run.returncode == 2 and run.stderr == "objcrop: --quiet and --verbose exclude each other; leave one out.\n"


def test_an_error_is_never_left_out(objcrop, tmp_path):
    run = objcrop("-q", "stats", "none.arrow", cwd=tmp_path)
    assert run.returncode == 1 and "none.arrow is not there" in run.stderr


def test_of_several_processes_the_first_speaks(catalog, objcrop, monkeypatch, caplog):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert objcrop(*PROPOSE, "-v", cwd=catalog).returncode == 0 and not caplog.records


def test_what_is_logged_is_shown():
    code = "import logging; from objcrop.cli import main; main(['recipes', '-v'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "moco-v2" in run.stdout
    assert run.stderr.startswith("Done in ") and "\x1b" not in run.stderr


@pytest.mark.parametrize(("no_color", "said"), [(None, "\x1b[31mobjcrop: [a]\x1b[0m\n"), ("1", "objcrop: [a]\n")])
def test_errors_have_a_colour_on_a_terminal(monkeypatch, capsys, no_color, said):
    monkeypatch.setenv("FORCE_COLOR", "1")  # as on a terminal
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    if no_color:
        monkeypatch.setenv("NO_COLOR", no_color)
    say("objcrop: [a]", "red")
    assert capsys.readouterr().err == said


def test_elsewhere_they_have_none(monkeypatch, capsys):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    say("objcrop: [a]", "red")
    assert capsys.readouterr().err == "objcrop: [a]\n"
