"""The .cu files of this folder, compiled by the NVRTC that CuPy brings and launched on torch's tensors.

NVRTC is called directly: unlike `cupy.RawModule` it then compiles for any architecture on a machine without a driver,
and what the tests compile is what a GPU runs. CuPy is imported on use.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import torch

from objcrop.errors import ObjcropError

FOLDER = Path(__file__).parent
SHARED_BYTES = 48 * 1024  # of shared memory in a block, which every architecture grants unasked
RESERVED_BYTES = 1024  # of shared memory that CUDA takes for each block on a multiprocessor, on most architectures


@functools.cache
def available() -> bool:
    """Return whether kernels can be launched on this machine: CuPy is installed and torch is built for CUDA."""
    return torch.version.cuda is not None and importlib.util.find_spec("cupy") is not None


def most_shared_bytes(device: torch.device) -> int:
    """Return the shared memory that a block on this device can have when it asks for it, static and dynamic, bytes."""
    return torch.cuda.get_device_properties(device).shared_memory_per_block_optin


def shared_bytes_of_multiprocessor(device: torch.device) -> int:
    """Return the shared memory that the blocks on a multiprocessor of this device share, bytes."""
    return torch.cuda.get_device_properties(device).shared_memory_per_multiprocessor


def compile_cubin(name: str, arch: str, folder: Path = FOLDER) -> bytes:
    """Compile a CUDA source; needs neither a GPU nor its driver.

    Args:
        name: of the source, without ".cu".
        arch: what to compile for, such as "sm_90".
        folder: where the source lies.

    Returns:
        The machine code.

    Raises:
        ObjcropError: the source does not compile, or NVRTC does not know the architecture; with the compiler's message.
    """
    from cupy.cuda import nvrtc

    source = folder / f"{name}.cu"
    program = nvrtc.createProgram(source.read_text(encoding="utf-8"), str(source), (), ())
    try:
        # Before 13.2 lambdas in a kernel are taken for the host's without -default-device.
        nvrtc.compileProgram(program, (f"--gpu-architecture={arch}", "--std=c++17", "-default-device"))
        return nvrtc.getCUBIN(program)
    except nvrtc.NVRTCError as error:
        message = nvrtc.getProgramLog(program).strip() or str(error)
        raise ObjcropError(f"{source} does not compile for {arch}: {message}") from error
    finally:
        nvrtc.destroyProgram(program)


def architecture(capability: int) -> str:
    """Return the architecture to compile for.

    Args:
        capability: of the device, such as 90 for 9.0.

    Returns:
        The newest that NVRTC knows and whose machine code the device runs: of its own major number, not above it.

    Raises:
        ObjcropError: NVRTC knows none.
    """
    from cupy.cuda import nvrtc

    known = [a for a in nvrtc.getSupportedArchs() if a // 10 == capability // 10 and a <= capability]
    if not known:
        version = ".".join(map(str, nvrtc.getVersion()))
        raise ObjcropError(
            f"NVRTC {version} cannot compile for this GPU's compute capability {capability / 10}: "
            "install the extra cuda12 for GPUs older than 7.5, a newer CuPy for newer ones."
        )
    return f"sm_{max(known)}"


@functools.cache
def _module(name: str, device: int) -> Any:
    """Return the source's module, compiled once per process and loaded once per device, the current one."""
    import cupy

    module = cupy.cuda.Module()
    module.load(compile_cubin(name, architecture(int(cupy.cuda.Device(device).compute_capability))))
    return module


def kernel(name: str, function: str) -> Any:
    """Return a kernel on CuPy's current device.

    Args:
        name: of the source, without ".cu".
        function: its `extern "C" __global__` function.

    Returns:
        A `cupy.cuda.Function`: call it with grid, block and arguments.
    """
    import cupy

    return _module(name, cupy.cuda.Device().id).get_function(function)


class _TorchStream:
    """Torch's current stream on a device, by the CUDA stream protocol, which torch's own objects speak only lately."""

    def __init__(self, device: torch.device) -> None:
        self.handle = torch.cuda.current_stream(device).cuda_stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.handle  # the protocol's version, the stream


def _grant(function: Any, shared_bytes: int, device: torch.device) -> None:
    """Let a kernel have more shared memory than blocks get unasked: all there is, so that threads cannot disagree."""
    from cupy.cuda import driver

    static = driver.funcGetAttribute(driver.CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES, function.ptr)
    if static + shared_bytes > SHARED_BYTES:
        most = most_shared_bytes(device) - static
        driver.funcSetAttribute(function.ptr, driver.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, most)


def launch(
    name: str,
    function: str,
    grid: tuple[int, ...],
    block: tuple[int, ...],
    arguments: tuple[torch.Tensor | np.generic, ...],
    shared_bytes: int = 0,
) -> None:
    """Launch a kernel on the tensors' device, in torch's current stream there; nothing is copied or waited for.

    Args:
        name: of the source, without ".cu".
        function: its `extern "C" __global__` function.
        grid: blocks per axis.
        block: threads per axis.
        arguments: as the kernel takes them: contiguous CUDA tensors, passed as pointers, and NumPy scalars of the
            parameter's own type.
        shared_bytes: of dynamic shared memory; with the kernel's static at most `most_shared_bytes(device)`.
    """
    import cupy

    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    passed = tuple(a.data_ptr() if isinstance(a, torch.Tensor) else a for a in arguments)
    with cupy.cuda.Device(device.index):
        stream = cupy.cuda.Stream.from_external(_TorchStream(device))
        launched = kernel(name, function)
        _grant(launched, shared_bytes, device)
        launched(grid, block, passed, shared_mem=shared_bytes, stream=stream)
