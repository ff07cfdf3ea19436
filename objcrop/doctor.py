"""What works on this machine: one line each, and what to do about what does not.

Where there is a GPU, what may take a process along is tried in a child: a kernel of ours, and each way of decoding
(decoding_probe.py).
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from objcrop.child_process import Child, in_a_line
from objcrop.extras import EXTRAS

if TYPE_CHECKING:
    from objcrop.decoding_probe import Probed


NVIMGCODEC = ("nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12")


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
        (
            "nvImageCodec",
            lambda: _version("nvidia.nvimgcodec", "nvidia-nvimgcodec-cu13", "nvidia-nvimgcodec-cu12"),
            False,
        ),
        ("nvJPEG", _nvjpeg, False),
        ("DALI decodes", _dali_decodes, False),
        ("numba", lambda: _version("numba"), False),
        ("NVIDIA driver", _driver, False),
        ("GPU in torch", _gpu, False),
        ("CuPy", lambda: _version("cupy", "cupy-cuda13x", "cupy-cuda12x"), False),
        ("NVRTC", _nvrtc, False),
        ("own kernels", _own_kernels, False),
        ("shared memory", _shared_memory, False),
        ("CPU cores", _cores, False),
        ("extras", _extras, False),
    ]
    return [_look(*look) for look in looks]


def found(findings: list[Finding], probed: list[Probed]) -> dict[str, Any]:
    """Return what was found as plain values: `findings`, `decoding`, and `verdict`, what to use."""
    return {
        "what": "what works on this machine",
        "findings": [asdict(finding) for finding in findings],
        "decoding": [{**asdict(way), "safe": way.safe} for way in probed],
        "verdict": _verdict(findings, probed),
    }


def print_findings(findings: list[Finding], probed: list[Probed], console: Console) -> None:
    """Print one row a finding, one a way of decoding that was tried on the GPU, and what to use."""
    table = Table(box=None, pad_edge=False)
    for head in ("", "what", "found"):
        table.add_column(head)
    for finding in findings:
        mark = "ok" if finding.ok else ("missing" if finding.needed else "absent")
        table.add_row(mark, finding.what, Text(finding.detail))  # a detail may hold brackets
    console.print(table)
    if probed:
        _print_probed(probed, console)
    for line in _verdict(findings, probed):
        console.print(line, highlight=False, markup=False)


def _verdict(findings: list[Finding], probed: list[Probed]) -> list[str]:
    if probed:
        from objcrop.decoding_probe import advice

        return advice(probed)
    backend = 'backend="dali", device="cpu"' if works(findings, "DALI decodes") else 'backend="torch"'
    return [f"Use load_views(…, {backend})."]


def _print_probed(probed: list[Probed], console: Console) -> None:
    table = Table(box=None, pad_edge=False)
    for head in ("", "decode", "hw_decoder_load", "off the CPU, mean", "max", "views moved when busy", "by at most"):
        table.add_column(head, justify="left" if head in ("", "decode") else "right")
    for way in probed:
        mark = "safe" if way.safe else "not safe"
        numbers = [f"{way.mean_off:.2f}", str(way.max_off), f"{way.moved:.2%}", str(way.max_moved)]
        table.add_row(mark, way.decode, str(way.hw_decoder_load), *([way.trouble] if way.trouble else numbers))
    console.print(table)


def works(findings: list[Finding], what: str) -> bool:
    """Return whether the finding of this name is a good one."""
    return any(finding.ok for finding in findings if finding.what == what)


def examine_decoding(findings: list[Finding]) -> list[Probed]:
    """Try the ways of decoding on the GPU, a minute or two; none where PyTorch finds none or DALI does not decode."""
    if not (works(findings, "GPU in torch") and works(findings, "DALI decodes")):
        return []
    from objcrop.decoding_probe import probe_decoding

    return probe_decoding("cuda")


def _look(what: str, look: Callable[[], str], needed: bool) -> Finding:
    try:
        return Finding(what, True, look(), needed)
    except Exception as error:  # a doctor reports whatever it meets
        return Finding(what, False, in_a_line(error), needed)


def _version(module: str, *packages: str) -> str:
    importlib.import_module(module)
    for package in packages or (module,):
        try:
            return importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "works"


def _python() -> str:
    if not (3, 10) <= sys.version_info[:2] < (3, 15):
        raise RuntimeError(f"{sys.version.split()[0]}; objcrop needs 3.10 to 3.14")
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


def _nvjpeg() -> str:
    """Ask the library that nvImageCodec's plugin would open, found in its order: no GPU is needed."""
    import nvidia.nvimgcodec

    major = nvidia.nvimgcodec.__cuda_version__ // 1000
    beside = Path(nvidia.nvimgcodec.__file__).parents[1]
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder]
    folders += [beside / f"cu{major}" / "lib", beside / "nvjpeg" / "lib", Path("/usr/local/cuda/lib64")]
    name = f"libnvjpeg.so.{major}"
    found = next((folder / name for folder in folders if (folder / name).exists()), Path(name))
    library = ctypes.CDLL(str(found))
    numbers = []
    for part in range(3):  # of libraryPropertyType: major, minor, patch
        number = ctypes.c_int()
        library.nvjpegGetProperty(part, ctypes.byref(number))
        numbers.append(number.value)
    version = ".".join(map(str, numbers))
    if tuple(numbers[:2]) < (13, 2):
        # What the plugin itself says of windows with smooth chroma; it then leaves them to the CPU.
        return f'{version}; older than 13.2, so decode="union" decodes on the CPU'
    return version


def _nvrtc() -> str:
    from cupy.cuda import nvrtc

    return ".".join(map(str, nvrtc.getVersion()))


def _own_kernels() -> str:
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError("not launched, there is no GPU")
    with Child(launch_one) as child:
        return child()


def launch_one() -> str:
    """Be a child: run one of our kernels beside what it is to give.

    Raises:
        RuntimeError: it gives something else, or cannot be launched.
    """
    import torch

    from objcrop.kernels import nvrtc
    from objcrop.kernels.nms import nms_topk

    if not nvrtc.available():
        raise RuntimeError("not launched: CuPy is missing; torch's operations stand in, which are slower")
    boxes = torch.tensor([[[0, 0, 10, 10], [1, 1, 10, 10], [20, 20, 30, 30]]], dtype=torch.int32)
    scores = torch.tensor([[0.5, 0.9, 0.1]])
    kept, _ = nms_topk(scores.cuda(), boxes.cuda(), 3, 0.5)
    if kept.tolist() != [[1, 2, -1]]:
        raise RuntimeError(f"nms.cu gave boxes {kept.tolist()} where [[1, 2, -1]] are right")
    return "launched, compiled for " + nvrtc.architecture(int("{}{}".format(*torch.cuda.get_device_capability())))


def _shared_memory() -> str:
    free = shutil.disk_usage("/dev/shm").free
    if free < 2**30:
        raise RuntimeError(
            f"{free / 2**20:.0f} MiB free in /dev/shm; the torch backend's workers want 1 GiB "
            "(docker run --shm-size=8g, or workers=0)"
        )
    return f"{free / 2**30:.1f} GiB free"


def _extras() -> str:
    """Look for the optional packages, without importing them."""
    wanting = {extra for module, (_, extra) in EXTRAS.items() if importlib.util.find_spec(module) is None}
    optional = dict.fromkeys(extra for _, extra in EXTRAS.values() if extra != "cuda13")
    there = ", ".join(extra for extra in optional if extra not in wanting) or "none"
    missing = ",".join(extra for extra in optional if extra in wanting)
    return f"{there}; pip install 'objcrop[{missing}]' for more" if missing else there


def _cores() -> str:
    return str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())


def commit() -> str | None:
    """Return the git commit of this code, with "-dirty" where it was changed since; None outside a checkout.

    An environment may lie inside somebody else's checkout, and a container may have no git.
    """
    checkout = Path(__file__).resolve().parents[1]
    if not (checkout / ".git").exists() or shutil.which("git") is None:
        return None
    run = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    return run.stdout.strip() or None
