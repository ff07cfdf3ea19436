"""The folders stay what they are: four plain folders behind links, one package, imports that go through it."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from packaging.requirements import Requirement

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
FOLDERS = ("dali_pipes", "kernels", "ssl", "bench")
SOURCES = sorted(f for d in (*FOLDERS, "objcrop", "tests") for f in (ROOT / d).rglob("*.py") if f.resolve() == f)


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}: a relative import"
            yield node.module or ""


def test_no_folder_can_shadow_another_package():
    assert not [d for d in FOLDERS if list((ROOT / d).rglob("__init__.py"))]


def test_links():
    for d in FOLDERS:
        assert (ROOT / "objcrop" / d).is_symlink() and (ROOT / "objcrop" / d).resolve() == ROOT / d


def test_no_file_is_named_after_a_standard_module():
    assert not [f for f in SOURCES if f.stem in sys.stdlib_module_names and "tests" not in f.parts]


def test_the_standard_ssl_is_found_from_the_root():
    code = "import ssl; ssl.create_default_context(); print(ssl.__file__)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and str(ROOT) not in run.stdout.replace(str(ROOT / ".venv"), ""), run.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_import_goes_through_objcrop(path):
    bad = [m for m in imports_of(path) if m.split(".")[0] in ("dali_pipes", "kernels", "bench") or m.startswith("ssl.")]
    assert not bad


def test_no_file_grew_beyond_one_concept():
    long = {str(f): n for f in SOURCES if (n := len(f.read_text(encoding="utf-8").splitlines())) > 450}
    assert not long


def test_no_test_waits_by_the_clock():
    """A busy machine is slow, not wrong: tests/children.py says how to wait, and starts ranks where no port is lost."""
    clock = re.compile(r"timeout=|\bsleep\((?!0\.0)|torch\.distributed\.run\b")
    may = ("children.py", "test_children.py", "test_layout.py")
    tests = [f for f in SOURCES if ROOT / "tests" in f.parents and f.name not in may]
    assert not {f"{f}: {found[0]}" for f in tests if (found := clock.search(f.read_text(encoding="utf-8")))}


WORKS = ("nvidia.dali", "cupy", "numba", "matplotlib", "pycocotools", "ray")
HEAVY = {
    "objcrop": ("torch", *WORKS),
    "objcrop.dali_pipes.dali_loader": ("torchvision", "matplotlib", "pycocotools", "ray"),
    "objcrop.dali_pipes.load_views": ("torchvision", *WORKS),
    "objcrop.dali_pipes.torch_loader": ("torchvision", *WORKS),
    "objcrop.kernels.colour_cpu": ("cv2",),
    "objcrop.cli": ("numpy", "yaml", "torch", *WORKS),
}


@pytest.mark.parametrize(("module", "heavy"), HEAVY.items())
def test_imports_stay_light(module, heavy):
    code = f"import {module}, sys; print(sorted(set({heavy!r}) & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stdout + run.stderr


HELP = """
import contextlib, io, sys, typer
from objcrop.cli import app, main

def commands(words, command):
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from commands([*words, name], below)

heavy, seen = set(sys.argv[1].split()), {}
for words in commands([], typer.main.get_command(app)):
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
        main([*words, "--help"])
    assert "Usage: objcrop" in said.getvalue(), words
    for module in heavy & set(sys.modules) - set(seen):
        seen[module] = "objcrop " + " ".join(words)
print(seen)
"""


def test_help_imports_nothing_that_works():
    """Options stand in modules of their own, so that no command's help waits for what the command does."""
    heavy = ("torch", "torchvision", *WORKS, "pyarrow", "PIL", "cv2", "timm", "obstore")
    run = subprocess.run([sys.executable, "-c", HELP, " ".join(heavy)], cwd=ROOT, capture_output=True, text=True)
    assert run.stdout.strip() == "{}", run.stdout + run.stderr


def test_environment_yml():
    env = yaml.safe_load((ROOT / "environment.yml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    conda = [d for d in env["dependencies"] if isinstance(d, str)]
    pips = [d["pip"] for d in env["dependencies"] if isinstance(d, dict)]
    assert len(pips) == 1 and len(pips[0]) == 1 and pips[0][0].startswith("-e .[")
    extras = Requirement("objcrop" + pips[0][0][4:]).extras
    assert extras <= set(project["optional-dependencies"]) and len(extras & {"cuda12", "cuda13"}) == 1
    assert "pip" in conda and "python " + project["requires-python"] in conda
    assert not [c for c in conda if c.split()[0] in ("numpy", "pytorch", "torchvision", "opencv", "cupy")]


def test_all_tell_the_same_version():
    from objcrop import __version__

    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["version"]
    changes = re.search(r"^## ([\d.]+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert changes is not None and said == changes[1] == __version__
