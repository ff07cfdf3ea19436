"""What a number was measured on: every result file begins with it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from objcrop.doctor import commit
from objcrop.errors import ObjcropError
from objcrop.whole_file import read_text, whole_file

PACKAGES = (
    *("torch", "torchvision", "numpy", "numba", "pillow"),
    *("nvidia-dali-cuda130", "nvidia-dali-cuda120", "nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12"),
    *("cupy-cuda13x", "cupy-cuda12x", "torchcodec", "lightly", "kornia", "spdl", "webdataset", "litdata", "ffcv"),
)


def machine() -> dict[str, Any]:
    """Return processor, cores, GPU, versions, git commit and the command line."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    # Names without folders: where someone's files lie is nobody's business.
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return {
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
        "python": platform.python_version(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "commit": commit(),
        "command": shlex.join(["objcrop", *words]),
    }


def write_result(path: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON, the machine first, atomically."""
    with whole_file(path) as part:
        part.write_text(json.dumps({"machine": machine(), **result}, indent=2) + "\n", encoding="utf-8")


def read_result(path: Path) -> dict[str, Any]:
    """Read what `write_result` wrote.

    Raises:
        ObjcropError: it is missing or is none.
    """
    try:
        result = json.loads(read_text(path, "bench result", "make it with its bench"))
        if not isinstance(result, dict):
            raise ValueError("no mapping")
        return result
    except (ValueError, RecursionError) as error:
        raise ObjcropError(f"{path} cannot be read as a bench result ({error}); make it anew with its bench.") from None


def installed(module: str) -> bool:
    """Whether a module is there to be imported; packages that it lies in are imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
