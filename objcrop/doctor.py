"""What works on this machine: one line each, and what to do about what does not."""

from __future__ import annotations

import importlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        what: its name.
        ok: whether it works.
        detail: version or reason, and the way out.
        needed: whether objcrop runs at all without it.
    """

    what: str
    ok: bool
    detail: str
    needed: bool = False


def examine() -> list[Finding]:
    """Look at everything; nothing here raises, whatever is broken."""
    looks: list[tuple[str, Callable[[], str], bool]] = [
        ("Python", _python, True),
        ("torch", _torch, True),
        ("torchvision", lambda: _version("torchvision"), True),
        ("DALI", lambda: _version("nvidia.dali", "nvidia-dali-cuda130", "nvidia-dali-cuda120"), False),
        ("DALI decodes", _dali_decodes, False),
        ("numba", lambda: _version("numba"), False),
        ("NVIDIA driver", _driver, False),
        ("GPU in torch", _gpu, False),
        ("CuPy", lambda: _version("cupy", "cupy-cuda13x", "cupy-cuda12x"), False),
        ("shared memory", _shared_memory, False),
        ("CPU cores", _cores, False),
    ]
    return [_look(*look) for look in looks]


def print_findings(findings: list[Finding], console: Console) -> None:
    """Print one row a finding."""
    table = Table(box=None, pad_edge=False)
    for head in ("", "what", "found"):
        table.add_column(head)
    for finding in findings:
        mark = "ok" if finding.ok else ("missing" if finding.needed else "absent")
        table.add_row(mark, finding.what, finding.detail)
    console.print(table)
    by_name = {finding.what: finding.ok for finding in findings}
    if by_name["GPU in torch"] and by_name["DALI decodes"]:
        advice = 'backend="dali", device="cuda"'
    elif by_name["DALI decodes"]:
        advice = 'backend="dali", device="cpu"'
    else:
        advice = 'backend="torch"'
    console.print(f"Use load_views(…, {advice}).", highlight=False, markup=False)


def _look(what: str, look: Callable[[], str], needed: bool) -> Finding:
    try:
        return Finding(what, True, look(), needed)
    except Exception as error:  # a doctor reports whatever it meets
        return Finding(what, False, str(error).strip().splitlines()[0] if str(error).strip() else repr(error), needed)


def _version(module: str, *packages: str) -> str:
    importlib.import_module(module)
    for package in packages or (module,):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "works"


def _python() -> str:
    if not (3, 10) <= sys.version_info[:2] < (3, 14):
        raise RuntimeError(f"{sys.version.split()[0]}; objcrop needs 3.10 to 3.13")
    return sys.version.split()[0]


def _torch() -> str:
    import torch

    return f"{torch.__version__}, built for CUDA {torch.version.cuda}"


def _driver() -> str:
    version = Path("/proc/driver/nvidia/version")
    if not version.exists():
        raise RuntimeError("none loaded; the CPU paths work without")
    return version.read_text().splitlines()[0]


def _gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("none; device='cuda' will be refused")
    return ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))


def _dali_decodes() -> str:
    """Decode a generated JPEG through the product's own graph."""
    import io

    import numpy as np
    from PIL import Image

    from objcrop.dali_pipes.decode_crop_resize import decodable
    from objcrop.dali_pipes.read_image import Encoded

    jpeg = io.BytesIO()
    Image.fromarray(np.full((32, 48, 3), 128, np.uint8)).save(jpeg, "JPEG")
    if not decodable(Encoded(np.frombuffer(jpeg.getvalue(), np.uint8), 1)):
        raise RuntimeError("DALI cannot decode a plain JPEG here; use backend='torch'")
    return "a JPEG, on the CPU"


def _shared_memory() -> str:
    free = shutil.disk_usage("/dev/shm").free
    if free < 2**30:
        raise RuntimeError(
            f"{free / 2**20:.0f} MiB free in /dev/shm; the torch backend's workers want 1 GiB "
            "(docker run --shm-size=8g, or workers=0)"
        )
    return f"{free / 2**30:.1f} GiB free"


def _cores() -> str:
    return str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def commit() -> str | None:
    """Return the git commit of this code, with "-dirty" where it was changed since; None outside a checkout."""
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=Path(__file__).resolve().parent,
        capture_output=True,
        text=True,
    )
    return run.stdout.strip() or None
