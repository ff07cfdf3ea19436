"""The kernels on the CPU under AddressSanitizer and UBSan: no access beyond an array, nothing undefined.

The sanitizers' library must be the first in a process, so each of these is a child.
"""

import os
import pathlib
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
FAULTS = """
#include "cpu_cuda.h"

static void one_behind(float* out, int n) { out[threadIdx.x + 1] = n; }
static void overflowing(float* out, int n) { out[threadIdx.x] = n + 2147483647; }
static void right(float* out, int n) { __syncthreads(); out[threadIdx.x] = n; }

extern "C" int fault(int which, float* out, int n)
{
    void (*kernels[])(float*, int) = {right, one_behind, overflowing};
    return cpu_cuda::launch(dim3(1), dim3(n), cpu_cuda::forward, {}, [=] { kernels[which](out, n); });
}
"""
RUNS = """
import ctypes, sys
malloc = ctypes.CDLL(None).malloc  # memory whose ends the sanitizer knows
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
fault = ctypes.CDLL(sys.argv[1]).fault
fault.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
sys.exit(fault(int(sys.argv[2]), malloc(4 * 64), 64))
"""


@pytest.fixture(scope="session")
def sanitized(build):
    """The environment of a child in which sanitized libraries work."""
    asked = ["g++", "-print-file-name=libasan.so"]
    library = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()
    if not pathlib.Path(library).is_absolute():
        pytest.skip("no libasan")
    # Python keeps what it has until it ends; and fibres' stacks are not where the sanitizer looks for a thread's.
    options = "detect_leaks=0:detect_stack_use_after_return=0"
    return {**os.environ, "LD_PRELOAD": library, "ASAN_OPTIONS": options, "OBJCROP_SANITIZED": "1"}


@pytest.fixture(scope="session")
def faults(tmp_path_factory, build, sanitized):
    source = tmp_path_factory.mktemp("faults") / "faults.cpp"
    source.write_text(FAULTS)
    build(source, source.with_suffix(".so"), sanitized=True)
    return source.with_suffix(".so")


@pytest.mark.parametrize(
    ("which", "words"),
    [(0, None), (1, "heap-buffer-overflow"), (2, "signed integer overflow")],
    ids=["right", "overrun", "undefined"],
)
def test_a_fault_is_seen(faults, sanitized, which, words):
    run = subprocess.run(
        [sys.executable, "-c", RUNS, str(faults), str(which)], env=sanitized, capture_output=True, text=True
    )
    assert (run.returncode == 0) == (words is None), run.stderr
    assert words is None or (words in run.stderr and "faults.cpp" in run.stderr)


@pytest.mark.slow
def test_the_kernels_run_clean(sanitized):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not gpu and not slow", str(HERE)]
    run = subprocess.run(command, env=sanitized, capture_output=True, text=True, cwd=HERE.parents[1])
    assert run.returncode == 0 and " passed" in run.stdout, run.stdout[-3000:] + run.stderr[-3000:]
