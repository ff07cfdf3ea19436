"""The CUDA sources as a library for the CPU, built once a session."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest

from objcrop.kernels import nvrtc


@pytest.fixture(scope="session")
def on_cpu(tmp_path_factory):
    """The functions of kernels_cpu.cpp."""
    compiler = shutil.which("g++") or pytest.skip("no g++")
    library = tmp_path_factory.mktemp("kernels") / "kernels.so"
    source = Path(__file__).with_name("kernels_cpu.cpp")
    flags = ("-O2", "-std=c++17", "-fPIC", "-shared", f"-I{nvrtc.FOLDER}")
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))
