"""Look before you work: every output of every command is tried before anything is read, on all kinds of bad places."""

import os
import pathlib

import pytest
import typer

from objcrop.cli import app
from objcrop.errors import ObjcropError, UsageError
from objcrop.whole_file import refuse_overwriting, refuse_unwritable, refuse_unwritable_folder, whole_file

# Every option and argument that takes a path, of every command: what it is.  A new one must be put here.
READS = {
    *("index.annotations", "index.image_labels", "subset.catalog", "subset.classes_of", "join.catalogs"),
    *("propose.source", "propose.annotations", "propose.proposals"),
    *("stats.boxes", "show.boxes"),
    *("export.checkpoint", "plot.runs", "reconstruct.checkpoint", "reconstruct.catalog"),
    *("bench loader.catalog", "bench loader.boxes", "bench train.catalog", "bench train.boxes"),
    *("bench policies.train", "bench policies.test", "bench proposals.opencv_bing"),
    *("bench gpu.catalog", "bench gpu.boxes", "bench sources.catalog", "sweep.catalog", "sweep.boxes"),
    *("sweep.train", "sweep.test", "reproduce.weights", "report.paths"),
}
WRITES = {  # the rest of a command line that could run, its inputs missing
    "doctor.output": (),
    "index.output": ("missing-source",),
    "index.unpack": ("missing.parquet", "--format", "parquet", "-o", "fine.arrow"),
    "join.output": ("missing-a.arrow", "missing-b.arrow"),
    "subset.output": ("missing.arrow", "--min-classes", "2"),
    "propose.output": ("missing.arrow", "--method", "gt"),
    "train-bing.output": ("missing.arrow",),
    "stats.output": ("missing.arrow",),
    "show.output": ("missing.arrow",),
    "pretrain.output": ("--catalog", "missing.arrow"),
    "recipes.output": (),
    "sweep.output": ("oac-table9-dilate", "--catalog", "missing.arrow"),
    "probe.output": ("missing.pt", "--train", "missing.arrow", "--test", "missing.arrow"),
    "transfer.output": ("missing.pt", "--task", "classification", "--train", "a.arrow", "--test", "b.arrow"),
    "reproduce.output": ("cib-table7", "--dry-run"),
    "report.output": ("missing-run",),
    "export.output": ("missing.pt",),
    "plot.output": ("missing-run",),
    "reconstruct.output": ("missing.pt", "missing.arrow"),
    "demo.output": ("--scenes", "64"),
    "bench plan.output": (),
    "bench scenes.output": ("missing.arrow",),
    "bench sources.output": ("--catalog", "missing.arrow"),
    "bench loader.output": ("--catalog", "missing.arrow"),
    "bench audit.output": ("missing_module:make_loader",),
    "bench train.output": ("--catalog", "missing.arrow"),
    "bench policies.output": ("--train", "missing.arrow", "--test", "missing.arrow"),
    "bench policies.runs": ("--train", "missing.arrow", "--test", "missing.arrow", "-o", "fine.json"),
    "bench proposals.output": ("missing.arrow",),
    "bench kernels.output": ("--device", "cpu"),
    "bench gpu.output": ("--dry-run", "--only", "kernels"),
    "bench readme.page": (),
}
FOLDERS = {
    "index.unpack",
    "transfer.output",
    "reproduce.output",
    "pretrain.output",
    "sweep.output",
    "demo.output",
    "bench policies.runs",
    "bench gpu.output",
}


def paths_of(command, name=""):
    """Yield 'command.parameter' and the parameter, for each that takes a path."""
    if hasattr(command, "commands"):
        for word, below in ((word, command.get_command(None, word)) for word in command.commands):
            yield from paths_of(below, f"{name} {word}".strip())
        return
    for parameter in command.params:
        kind = getattr(parameter, "type_descriptor", None) or parameter.type  # typer's own click, or click
        if "path" in repr(kind).lower():
            yield f"{name}.{parameter.name}", parameter


def test_every_path_of_every_command_is_known():
    found = dict(paths_of(typer.main.get_command(app)))
    assert set(found) == READS | set(WRITES)
    assert not [name for name in WRITES if found[name].callback is None]
    assert set(WRITES) >= FOLDERS


def bad_places(folder):
    (folder / "a-file").write_text("")
    (folder / "a-folder").mkdir()
    os.mkfifo(folder / "pipe")
    yield from ("missing/x", "a-file/x", "a-folder", "pipe", "x" * 300, "/proc/x", "/dev/null", "nul\0")


@pytest.mark.parametrize("output", WRITES)
def test_a_place_that_cannot_be_written_is_said_before_any_work(tmp_path, objcrop, output):
    command, name = output.split(".")
    found = dict(paths_of(typer.main.get_command(app)))[output]
    suffix = "" if output in FOLDERS or name == "page" else next(s for s in SUFFIXES if accepts(found, s))
    for place in bad_places(tmp_path):
        if output in FOLDERS and place in ("missing/x", "a-folder"):
            continue
        given = place + suffix if place[0] != "/" or place == "/proc/x" else place
        if place in ("a-folder", "pipe") and suffix:
            os.rename(tmp_path / place, tmp_path / given)
        option = [given] if found.opts == [name] else [found.opts[0], given]
        before = sorted(tmp_path.rglob("*"))
        run = objcrop(*command.split(), *WRITES[output], *option, cwd=tmp_path)
        assert run.returncode in (1, 2) and len(run.stderr.strip().splitlines()) == 1, (place, run.stderr)
        said = run.stderr.replace("\n", "")
        assert "missing.arrow" not in said and "missing-" not in said and "missing.pt" not in said, (place, said)
        assert pathlib.Path(given).name.split("\0")[0] in said, (place, said)
        assert sorted(tmp_path.rglob("*")) == before  # nothing is made, nothing goes


SUFFIXES = ("", ".arrow", ".json", ".png", ".md", ".html")


def accepts(parameter, suffix):
    """Whether the option's own look at its value takes this suffix, tried at a place that can be written."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        try:
            parameter.callback(None, parameter, pathlib.Path(folder) / f"x{suffix}")
        except ObjcropError:
            return False
    return True


@pytest.mark.parametrize("output", sorted(set(WRITES) - FOLDERS - {"export.output", "bench readme.page"}))
def test_another_suffix_is_wrong_use(tmp_path, objcrop, output):
    command, name = output.split(".")
    run = objcrop(*command.split(), *WRITES[output], f"--{name}", "y.txt", cwd=tmp_path)
    assert run.returncode == 2 and "y.txt" in run.stderr and "must end in" in run.stderr, run.stderr


def test_the_default_of_plot_is_tried_too(tmp_path, objcrop):
    (tmp_path / "run" / "curves.png").mkdir(parents=True)
    run = objcrop("plot", "run", cwd=tmp_path)
    assert run.returncode == 1 and "curves.png is a folder" in run.stderr


@pytest.mark.parametrize(
    "words", [("propose", "c.arrow", "--method", "gt", "-o", "./c.arrow"), ("export", "c.arrow", "-o", "c.arrow")]
)
def test_an_output_never_overwrites_what_is_read(tmp_path, objcrop, words):
    (tmp_path / "c.arrow").write_text("precious")
    run = objcrop(*words, cwd=tmp_path)
    assert run.returncode == 2 and "lest it be lost" in run.stderr
    assert (tmp_path / "c.arrow").read_text() == "precious"


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_rights(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ObjcropError, match="Permission denied"):
        refuse_unwritable(tmp_path / "x.json")
    with pytest.raises(ObjcropError, match="Permission denied"):
        refuse_unwritable_folder(tmp_path / "a" / "b")


def test_good_places_pass_and_stay_clean(tmp_path):
    refuse_unwritable(tmp_path / "x.json", (".json",))
    refuse_unwritable(tmp_path / ("x" * 250 + ".json"))
    refuse_unwritable_folder(tmp_path / "a" / "b")
    refuse_unwritable_folder(tmp_path)
    refuse_overwriting(tmp_path / "a", tmp_path / "b")
    assert not list(tmp_path.iterdir())
    with pytest.raises(UsageError, match=r"must end in \.json or \.txt"):
        refuse_unwritable(tmp_path / "x", (".json", ".txt"))


def test_a_whole_file_names_its_target_in_errors_and_follows_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with whole_file(tmp_path / "link") as part:
        part.write_text("new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real").read_text() == "new"
    with pytest.raises(OSError, match="No space") as caught, whole_file(tmp_path / "real"):
        raise OSError(28, "No space left on device")
    assert caught.value.filename == str(tmp_path / "real") and (tmp_path / "real").read_text() == "new"
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "none" / "x"):
        pass
    assert caught.value.filename == str(tmp_path / "none" / "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link", "real"]
