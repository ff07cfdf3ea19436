"""The command line in this process: one of its own takes seconds to import PyTorch."""

import subprocess

import pytest

from objcrop.cli import main


@pytest.fixture
def objcrop(monkeypatch, capsys):
    """Run a command; returns its code and what it said."""

    def run(*arguments, cwd=None):
        code = 0
        with monkeypatch.context() as patch:
            patch.chdir(cwd or ".")
            capsys.readouterr()
            try:
                main([str(word) for word in arguments])
            except SystemExit as stop:
                code = stop.code
        said = capsys.readouterr()
        return subprocess.CompletedProcess(arguments, code, said.out, said.err)

    return run
