"""The Dockerfile and the devcontainer, as far as they can be read: by hadolint's rules, and by what the package is."""

import json
import pathlib
import re

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXT = (ROOT / "Dockerfile").read_text()
LINES = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", TEXT, flags=re.MULTILINE)).splitlines()
STEPS = [tuple(line.split(maxsplit=1)) for line in LINES if line.strip()]
DEVCONTAINER = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text())


def of(kind):
    return [rest for word, rest in STEPS if word == kind]


def extras_of(command):
    """Which extras a pip line installs, CUDA's version as its argument is by default."""
    (found,) = re.findall(r"pip install .*?([./]\w*\[[^]]+\])", command.replace("${CUDA}", "13"))
    return Requirement("objcrop" + found[found.index("[") :]).extras


def test_the_base_is_pinned_to_a_python_that_will_do():
    (base,) = of("FROM")
    name, version = re.fullmatch(r"(\w+):(\d+\.\d+\.\d+)-slim-bookworm", base).groups()
    assert name == "python" and SpecifierSet(PROJECT["requires-python"]).contains(version)


def test_packages_leave_nothing_behind():
    commands = [*of("RUN"), DEVCONTAINER["postCreateCommand"]]
    apt = [command for command in commands if "apt-get" in command]
    assert len(apt) == 2
    for command in apt:
        assert re.search(
            r"apt-get update && apt-get install -y --no-install-recommends [a-z+ ]+", " ".join(command.split())
        )
    assert apt[0].rstrip().endswith("rm -rf /var/lib/apt/lists/*")
    for command in commands:
        assert not re.search(r"\b(sudo|curl|wget|apt)\s", command)
        assert "pip install" not in command or "--no-cache-dir" in command or command is commands[-1]


def test_the_extras_that_are_installed_exist():
    for command in (*of("RUN")[-1:], DEVCONTAINER["postCreateCommand"]):
        assert {"cuda13", "all"} <= extras_of(command) <= set(PROJECT["optional-dependencies"])
    assert of("ARG") == ["CUDA=13"]


def test_copied_is_what_the_package_is_built_of():
    """tests/test_wheel.py builds the wheel of just these files."""
    assert of("COPY") == [". /src"] and not of("ADD")
    first, *allowed, last = re.sub(r"^#.*\n", "", (ROOT / ".dockerignore").read_text()).split()
    assert first == "*" and last == "**/__pycache__"
    for name in allowed:
        assert name[0] == "!" and (ROOT / name[1:]).exists()


def test_it_runs_the_command():
    (entry,) = of("ENTRYPOINT")
    assert json.loads(entry) == list(PROJECT["scripts"]) == ["objcrop"]
    assert not of("CMD") and all(folder.startswith("/") for folder in of("WORKDIR"))


def test_the_devcontainer_is_the_same_image():
    build = DEVCONTAINER["build"]
    assert (ROOT / ".devcontainer" / build["dockerfile"]).resolve() == ROOT / "Dockerfile"
    assert (ROOT / ".devcontainer" / build["context"]).resolve() == ROOT
