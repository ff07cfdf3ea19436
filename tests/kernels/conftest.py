"""The CUDA sources as a library for the CPU, built once a session."""

import ctypes
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from objcrop.kernels import nvrtc

HERE = Path(__file__).parent
SANITIZED = ("-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")


@pytest.fixture(scope="session")
def build():
    """A function that compiles a source to a library."""
    compiler = shutil.which("g++") or pytest.skip("no g++")

    def built(source, library, sanitized="OBJCROP_SANITIZED" in os.environ):  # which test_sanitized.py sets
        flags = ("-O2", "-std=c++17", "-fPIC", "-shared", f"-I{nvrtc.FOLDER}", f"-I{HERE}")
        flags = (*flags, *SANITIZED) if sanitized else flags
        subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)

    return built


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory, build):
    """The functions of kernels_cpu.cpp."""
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    build(HERE / "kernels_cpu.cpp", library)
    return ctypes.CDLL(str(library))


def pytest_collection_modifyitems(items):
    if "OBJCROP_SANITIZED" in os.environ:  # others would say nothing of the kernels, and not all libraries bear it
        items[:] = [item for item in items if "on_cpu" in item.fixturenames]
