"""The documentation: every page in the menu, every link there, every command and Python block works, and it builds."""

import pathlib
import re
import shlex
import subprocess
import sys

import pytest
import typer
import yaml

import objcrop
from objcrop.cli import app
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.training.recipe import FOLDER as RECIPES
from objcrop.ssl.transfer.preset import preset_names

ROOT = pathlib.Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("methods/*.md")])  # recipes/ is another's, and has a test of its own


def blocks(page, language):
    """Return the fenced blocks of a page, those that are indented too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^\1```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [block for _, block in found]


def of_nav(entries):
    for entry in entries:
        if isinstance(entry, str):
            yield entry
        else:
            (below,) = entry.values()
            yield from [below] if isinstance(below, str) else of_nav(below)


def test_every_page_is_in_the_menu():
    menu = list(of_nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert len(menu) == len(set(menu)) and all((DOCS / page).is_file() for page in menu)
    assert {page.relative_to(DOCS).as_posix() for page in PAGES} == set(menu) - {"recipes/README.md"}


def test_every_method_has_a_page_with_its_options():
    assert {page.stem for page in DOCS.glob("methods/*.md")} == set(METHODS)
    table = (DOCS / "pretraining.md").read_text(encoding="utf-8")
    for name in METHODS:
        assert f'--8<-- "docs/options.md:{name}"' in (DOCS / f"methods/{name}.md").read_text(encoding="utf-8")
        assert f"[`{name}`](methods/{name}.md)" in table


def test_the_reference_has_every_public_name():
    named = re.findall(r"^::: .*\.(\w+)$", (DOCS / "reference.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(named) == sorted(objcrop.__all__)


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_what_a_page_links_to_is_there(page):
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, _ = target.partition("#")
        assert re.match(r"https?://", target) or not file or (page.parent / file).exists(), target


def commands_of(page):
    """Yield the words behind `objcrop` of each line that runs it, under torchrun too."""
    for block in blocks(page, "sh"):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if "objcrop" in words:
                yield words[words.index("objcrop") + 1 :]


LINES = [pytest.param(words, id=f"{page.stem}: {' '.join(words)}") for page in PAGES for words in commands_of(page)]


@pytest.mark.parametrize("words", LINES)
def test_a_command_is_one(words, tmp_path, monkeypatch):
    """Where it is read, its outputs are tried too."""
    monkeypatch.chdir(tmp_path)
    for word in words:
        if not word.startswith(("-", "/", "~")) and "://" not in word:
            (tmp_path / word).parent.mkdir(parents=True, exist_ok=True)
    command = typer.main.get_command(app)
    given = list(words)
    while hasattr(command, "commands"):
        command = command.get_command(None, given.pop(0))
    options = command.make_context(command.name, given).params  # or it says which option or value is wrong
    assert not options.get("recipe") or (RECIPES / f"{options['recipe']}.yaml").is_file()
    assert options.get("preset") in (None, *preset_names())


# What is included of examples/ is fenced as `{ .python }`, and run by tests/examples.
PYTHON = [
    pytest.param(block, id=f"{page.stem} {number}")
    for page in PAGES
    for number, block in enumerate(blocks(page, "python"))
]


@pytest.mark.parametrize("block", PYTHON)
def test_a_block_of_python_runs(block, photos, tmp_path, monkeypatch):
    """As it stands on the page, but for views and batches that are small."""
    catalog, boxes = photos
    catalog.save(tmp_path / "photos.arrow")
    boxes.save(tmp_path / "boxes.arrow")
    load = objcrop.load_views

    def small(*given, **options):
        return load(*given, **{**options, "size": 32, "batch_size": 8, "device": "cpu", "threads": 1})

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(objcrop, "load_views", small)
    names = {}
    exec(compile(block, "page", "exec"), names)
    if "following" in names:
        assert not set(names["seen"].tolist()) & set(names["following"].index.tolist())


def test_the_site_builds(tmp_path):
    """Strictly: a link, an anchor, a snippet or a name of the reference that is nowhere ends it."""
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "obj-obj+dilate" in (tmp_path / "site" / "boxes.html").read_text(encoding="utf-8")
