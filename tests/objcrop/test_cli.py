"""The command line as a person meets it: what it prints, what it leaves behind, its exit codes."""

import importlib
import json
import os
import re
import subprocess
import sys

import pytest
import typer
from html_page import Page

from objcrop import __version__
from objcrop.boxes import BoxTable
from objcrop.catalog import Catalog
from objcrop.cli import app
from objcrop.errors import options_at_hand


def a_process(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "objcrop", *map(str, arguments)], capture_output=True, text=True, cwd=cwd
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    from objcrop.sample_scenes import draw_scenes

    folder = tmp_path_factory.mktemp("scenes")
    draw_scenes(folder / "s", 16, seed=1)
    return folder


def test_from_scenes_to_a_report(scenes, objcrop):
    index = objcrop("index", "s", "--format", "scenes", "-o", "s.arrow", cwd=scenes)
    assert index.returncode == 0 and "16 images" in index.stdout, index.stderr
    propose = objcrop("propose", "s.arrow", "--method", "gt", "-o", "gt.arrow", cwd=scenes)
    assert propose.returncode == 0, propose.stderr
    catalog = Catalog.load(scenes / "s.arrow")
    assert len(BoxTable.load(scenes / "gt.arrow", catalog)) == 16
    show = objcrop("show", "s.arrow", "--boxes", "gt.arrow", "--crops", "obj-scene", "-o", "sheet.png", cwd=scenes)
    assert show.returncode == 0 and (scenes / "sheet.png").stat().st_size > 10_000, show.stderr

    small = ("--arch", "timm/test_resnet", "--size", 32, "--batch-size", 8, "--queue", 16, "--threads", 2)
    data = ("--catalog", "s.arrow", "--boxes", "gt.arrow", "--crops", "obj-obj+dilate")
    run = a_process("pretrain", *data, *small, "--steps", 3, "-o", "run", cwd=scenes)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1].startswith("→ run: 3 steps; the network in last.pt")
    assert sorted(p.name for p in (scenes / "run").iterdir()) == [
        *("last.pt", "metrics.jsonl", "previous.pt", "recipe.yaml")
    ]
    assert json.loads((scenes / "run" / "metrics.jsonl").read_text().splitlines()[-1])["step"] == 3
    assert "scale_min" in (scenes / "run" / "recipe.yaml").read_text()
    again = objcrop("pretrain", *data, *small, "--steps", 3, "-o", "run", cwd=scenes)
    assert again.returncode == 2 and "--resume" in again.stderr
    probe = objcrop("probe", "run/last.pt", "--train", "s.arrow", "--test", "s.arrow", "-o", "probe.json", cwd=scenes)
    assert probe.returncode == 0, probe.stderr
    assert 0 < json.loads((scenes / "probe.json").read_text())["linear_map"] <= 1
    report = objcrop("report", "run", "probe.json", "-o", "report.html", cwd=scenes)
    assert report.returncode == 0 and report.stdout == "→ report.html\n", report.stderr
    page = Page((scenes / "report.html").read_text(encoding="utf-8"))
    assert page.links == ["#runs", "#probes"] and "3 of 3" in page.tables[0][1] and "run/last.pt" in page.text


def test_a_run_that_is_stopped_says_where_it_is_and_how_it_goes_on(photos, tmp_path, objcrop, monkeypatch):
    monkeypatch.setattr("objcrop.ssl.training.loop.StopSignal.asked", 15, raising=False)
    monkeypatch.setattr("objcrop.ssl.training.loop.StopSignal.__init__", lambda self: setattr(self, "_before", {}))
    photos[0].save(tmp_path / "c.arrow")
    small = ("--arch", "timm/test_resnet", "--size", 32, "--batch-size", 8, "--queue", 8, "--threads", 1, "--steps", 3)
    run = objcrop("pretrain", "--catalog", "c.arrow", *small, "-o", "run", "-q", cwd=tmp_path)
    assert run.returncode == 143 and not run.stdout
    said = "stopped after step 1 of 3 as asked, and saved it in run: go on with the same command and --resume."
    assert run.stderr == f"objcrop: {said}\n"
    monkeypatch.undo()
    run = objcrop("pretrain", "--catalog", "c.arrow", *small, "-o", "run", "-q", "--resume", cwd=tmp_path)
    assert run.returncode == 0 and run.stdout.startswith("→ run: 3 steps; ") and not run.stderr


def test_join(scenes, tmp_path, objcrop):
    from objcrop.sample_scenes import draw_scenes

    draw_scenes(tmp_path / "more", 3, seed=9)
    assert objcrop("index", scenes / "s", "--format", "scenes", "-o", tmp_path / "a.arrow").returncode == 0
    assert objcrop("index", tmp_path / "more", "--format", "scenes", "-o", tmp_path / "b.arrow").returncode == 0
    joined = objcrop("join", tmp_path / "a.arrow", tmp_path / "b.arrow", "-o", tmp_path / "c.arrow")
    assert joined.returncode == 0 and "19 images" in joined.stdout, joined.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "word"),
    [
        (("index", "nowhere", "-o", "x.arrow"), 1, "nowhere"),
        (("index", ".", "--format", "pascal", "-o", "x.arrow"), 2, "voc"),
        (("propose", "none.arrow", "--method", "gt", "-o", "x.arrow"), 1, "none.arrow"),
        (("show", "none.arrow", "-o", "x.png"), 1, "objcrop index"),
        (("pretrain", "-o", "run"), 2, "--catalog"),
        (("pretrain", "--catalog", "none.arrow", "-o", "run", "--recipe", "moco-v3"), 2, "moco-v2"),
        (("pretrain", "--catalog", "none.arrow", "-o", "run", "--queue", "100"), 2, "queue"),
        (("probe", "none.pt", "--train", "a.arrow", "--test", "b.arrow"), 1, "a.arrow"),
        (("join", "a.arrow", "-o", "x.arrow"), 2, "two catalogs"),
        (("frobnicate",), 2, "frobnicate"),
        (("bench", "frobnicate"), 2, "See `objcrop bench --help`."),
        (("propose", "c.arrow", "-o", "x.arrow"), 2, "See `objcrop propose --help`."),
        (("bench", "plan", "--images", "many"), 2, "See `objcrop bench plan --help`."),
        (("propose", "c.arrow", "--method", "gt", "-o", "x.arrow", "--max-bad", "1"), 2, "objcrop propose --help"),
    ],
)
def test_errors_are_one_sentence_and_a_code(tmp_path, objcrop, arguments, code, word):
    run = objcrop(*arguments, cwd=tmp_path)
    assert run.returncode == code, run.stderr
    assert word in run.stderr and "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [(), ("bench",)])
def test_without_a_command_there_is_help_and_nothing_else(objcrop, words):
    run = objcrop(*words)
    assert run.returncode == 0 and "Usage: objcrop" in run.stdout and not run.stderr.strip()


def test_it_says_its_version(objcrop):
    assert objcrop("--version").stdout == f"objcrop {__version__}\n"


@pytest.mark.parametrize(
    ("line", "goes_on"),
    [
        ("objcrop re", {"recipes", "report", "reproduce", "reconstruct"}),
        ("objcrop pretrain --epo", {"--epochs"}),
        ("objcrop transfer --mod", {"--model"}),
        ("objcrop bench so", {"sources"}),
        ("objcrop plot --qu", {"--quiet"}),
        ("objcrop index photos --format open", {"openimages"}),
        ("objcrop propose c.arrow --method gri", {"grid"}),
        ("objcrop pretrain --crops obj-obj+", {"obj-obj+dilate", "obj-obj+shift"}),
        ("objcrop pretrain --method mo", {"moco-v2"}),
        ("objcrop pretrain --loader d", {"dali"}),
        ("objcrop show c.arrow --recipe oac-table9", {"oac-table9-dilate"}),
        ("objcrop sweep oac-table9", {"oac-table9-dilate"}),
        ("objcrop transfer last.pt --task d", {"detection"}),
    ],
)
def test_the_shell_is_told_how_a_line_goes_on(objcrop, monkeypatch, line, goes_on):
    asked = {"_OBJCROP_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    for name, value in asked.items():
        monkeypatch.setenv(name, value)
    run = objcrop()
    assert set(run.stdout.split()) == goes_on and not run.stderr


def test_a_reader_that_goes_away_ends_it_in_silence():
    with subprocess.Popen(
        [sys.executable, "-m", "objcrop", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        run.stdout.close()  # as `objcrop --help | true`
        assert run.stderr.read() == "" and run.wait() == 1


@pytest.mark.parametrize(("chosen", "policy"), [({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")])
def test_threads_of_pytorch_sleep_while_they_wait(chosen, policy):
    """Set before PyTorch is imported, or it is of no use; what the user set stays."""
    look = """if True:
        import os, sys
        from objcrop.cli import main

        def look(event, told):
            if event == "import" and told[0] == "torch":
                os.write(1, os.environ.get("OMP_WAIT_POLICY", "unset").encode())
                os._exit(0)

        sys.addaudithook(look)
        main(["export", "none.pt", "-o", "none.pth"])
    """
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"} | chosen
    run = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, env=environment)
    assert run.stdout == policy, run.stderr


def test_doctor_looks_at_everything(objcrop):
    run = objcrop("doctor")
    assert run.returncode == 0, run.stderr
    for what in ("torch", "DALI", "CuPy", "NVIDIA driver", "shared memory", "load_views", "extras"):
        assert what in run.stdout
    assert "[wandb]" in run.stdout or importlib.util.find_spec("wandb")


def test_a_command_leaves_nothing_to_the_program_that_ran_it(objcrop):
    """Once the library's advice was that for the last command, and other tests of the same process failed."""
    assert objcrop("plot", "none").returncode == 1
    assert options_at_hand.get() is None


def test_what_pillow_remarks_is_not_printed(objcrop, monkeypatch, recwarn):
    def examine():
        import warnings

        warnings.warn_explicit("malformed MPO file", UserWarning, "PIL/JpegImagePlugin.py", 898, "PIL.JpegImagePlugin")
        warnings.warn_explicit("one of ours", UserWarning, "objcrop/doctor.py", 1, "objcrop.doctor")
        return [Finding("GPU in torch", False, ""), Finding("DALI decodes", False, "")]

    from objcrop.doctor import Finding

    monkeypatch.setattr("objcrop.doctor.examine", examine)
    objcrop("doctor")
    assert [str(warning.message) for warning in recwarn] == ["one of ours"]


@pytest.mark.parametrize(
    ("command", "option", "names"),
    [
        ("propose", "method", "objcrop.proposals:METHODS"),
        ("export", "format", "objcrop.ssl.export:FORMATS"),
    ],
)
def test_help_names_all_that_there_are(command, option, names):
    """Help cannot import these, for it would wait for PyTorch: a new one must be named there by hand."""
    module, name = names.split(":")
    there = list(getattr(importlib.import_module(module), name))
    group = typer.main.get_command(app)
    for word in command.split():
        group = group.get_command(typer.Context(group), word)
    (says,) = (parameter.help for parameter in group.params if parameter.name == option)
    said = set(re.findall(r"[\w-]+", says))
    assert said >= set(there), set(there) - said
    (parameter,) = (parameter for parameter in group.params if parameter.name == option)
    assert {each.value for each in parameter.shell_complete(typer.Context(group), "")} == set(there)


def test_resume_stands_alone_or_takes_a_word(tmp_path, objcrop):
    """`--resume`, `--resume last` and `--resume auto`; nothing else, and nothing that follows is taken for its word."""
    run = tmp_path / "run"
    for words in (("--resume",), ("--resume", "-o", run), ("--resume", "auto"), ("--resume=last",)):
        said = objcrop("pretrain", "-o", run, *words)
        assert said.returncode == 2 and "--catalog" in said.stderr, words
    for words in (("--resume", "maybe"), ("--resume=maybe",)):
        said = objcrop("pretrain", "-o", run, *words)
        assert said.returncode == 2 and "--resume is 'maybe', but it must be one of: last, auto." in said.stderr
