"""Every CUDA source compiles for every architecture, here and without a driver; one that does not says why."""

import functools

import pytest

from objcrop.errors import ObjcropError
from objcrop.kernels import nvrtc

compiled = functools.cache(nvrtc.compile_cubin)
SOURCES = sorted(path.stem for path in nvrtc.FOLDER.glob("*.cu"))


@pytest.fixture(scope="module")
def known():
    """The architectures of the NVRTC installed."""
    return pytest.importorskip("cupy.cuda").nvrtc.getSupportedArchs()


SLOWER = [("batch_norm", arch) for arch in (80, 86, 100)]  # ten seconds each


@pytest.mark.parametrize(
    ("name", "arch"),
    [
        pytest.param(name, arch, marks=[pytest.mark.slow] * ((name, arch) in SLOWER))
        for name in SOURCES
        for arch in (75, 80, 86, 90, 100, 120)
    ],
)
def test_every_source_compiles(name, arch, known):
    if arch not in known:
        pytest.skip(f"this NVRTC does not know sm_{arch}")
    assert compiled(name, f"sm_{arch}").startswith(b"\x7fELF")


FUNCTIONS = [
    *(("batch_norm", function) for function in ("moments", "join", "normalise", "gradient_sums", "gradient")),
    ("anchor_score", "score_anchors"),
    ("nms", "nms_topk"),
    ("colour", "luma_means"),
    ("colour", "colour_32"),
    ("colour", "colour_16"),
    ("crop_resize", "crop_resize"),
]


@pytest.mark.parametrize(("name", "function"), FUNCTIONS)
def test_the_functions_are_found_by_their_plain_names(name, function, known):
    assert f".text.{function}\0".encode() in compiled(name, "sm_90")


def test_what_is_not_marked_runs_on_the_device(tmp_path, known):
    source = 'int twice(int x) { return 2 * x; } extern "C" __global__ void f(int* x) { *x = twice(*x); }'
    (tmp_path / "plain.cu").write_text(source)  # as the lambdas of batch_norm.cu are not, to NVRTC 12.0 to 13.0
    assert nvrtc.compile_cubin("plain", f"sm_{max(known)}", tmp_path)


def test_a_broken_source_is_an_error_with_the_compilers_message(tmp_path, known):
    (tmp_path / "broken.cu").write_text('extern "C" __global__ void f(float* x) { *x = undefined_symbol; }')
    with pytest.raises(ObjcropError, match=r"broken\.cu does not compile for sm_\d+: (.|\n)*undefined_symbol"):
        nvrtc.compile_cubin("broken", f"sm_{max(known)}", tmp_path)


def test_an_unknown_architecture_is_an_error_with_the_compilers_message(known):
    with pytest.raises(ObjcropError, match=r"does not compile for sm_13: .*gpu-architecture"):
        nvrtc.compile_cubin("nms", "sm_13")


def test_a_missing_source_is_named(known):
    with pytest.raises(FileNotFoundError, match=r"nothing\.cu"):
        nvrtc.compile_cubin("nothing", "sm_90")


def test_the_architecture_is_the_newest_the_device_runs(known, monkeypatch):
    from cupy.cuda import nvrtc as theirs

    assert all(nvrtc.architecture(a) == f"sm_{a}" for a in known)
    monkeypatch.setattr(theirs, "getSupportedArchs", lambda: (80, 86, 90, 100))
    assert nvrtc.architecture(89) == "sm_86" and nvrtc.architecture(103) == "sm_100"
    for too_old_or_new in (70, 120):
        with pytest.raises(ObjcropError, match=f"compute capability {too_old_or_new / 10}"):
            nvrtc.architecture(too_old_or_new)


@pytest.mark.gpu
def test_a_source_is_loaded_once_per_device():
    assert nvrtc.kernel("nms", "nms_topk") and nvrtc.kernel("nms", "nms_topk")
    assert nvrtc._module.cache_info().misses <= len(SOURCES)
