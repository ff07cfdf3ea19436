"""What `pip install` gets: a wheel and a sdist that hold everything, and work where there is no checkout.

The wheel is installed into an environment of its own. What it depends on, gigabytes, it finds where the tests have it,
less the optional packages, so that what is tried is what a plain `pip install 'objcrop[cuda13]'` can do.
"""

import pathlib
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile

import pytest
import yaml
from packaging.metadata import Metadata

from objcrop import __version__
from objcrop.extras import EXTRAS
from objcrop.sample_scenes import SceneKind, draw_scenes

ROOT = pathlib.Path(__file__).resolve().parents[1]
LINKED = ("dali_pipes", "kernels", "ssl", "bench")


def run(*command, **options):
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, **options)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The sdist, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT)
    (sdist,), (wheel,) = folder.glob("*.tar.gz"), folder.glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """The environment that the wheel is installed into."""
    venv = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    run(*pip, "--python", venv / "bin" / "python", "install", "--no-deps", "--no-index", built[1])
    (site,) = venv.glob("lib/python*/site-packages")
    paths = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "dependencies.pth").write_text("\n".join(sorted(paths)))
    return venv


@pytest.fixture
def away(tmp_path, monkeypatch):
    """A folder that is not the checkout, from which nothing finds the checkout."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def files_of(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_metadata(built):
    run(sys.executable, "-m", "twine", "check", "--strict", *built)
    with zipfile.ZipFile(built[1]) as wheel:
        told = Metadata.from_email(wheel.read(f"objcrop-{__version__}.dist-info/METADATA"))
    assert str(told.version) == __version__ and told.license_expression == "Apache-2.0"
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))["references"]
    assert set(told.project_urls.values()) == {paper["url"] for paper in cited}
    assert {extra for _, extra in EXTRAS.values()} < set(told.provides_extra)


def test_the_wheel_holds_the_package_and_nothing_else(built):
    expected = {f"objcrop/{name}" for name in files_of(ROOT / "objcrop")}
    expected |= {f"objcrop/{folder}/{name}" for folder in LINKED for name in files_of(ROOT / folder)}
    expected = {name for name in expected if "__pycache__" not in name}
    with zipfile.ZipFile(built[1]) as wheel:
        found = {name for name in wheel.namelist() if not name.startswith(f"objcrop-{__version__}.dist-info/")}
    assert found == expected
    for name in ("py.typed", "proposals/bing_voc07.json", "kernels/colour.cu", "ssl/recipes/moco-v2.yaml"):
        assert f"objcrop/{name}" in found
    assert sum(name.startswith("objcrop/ssl/transfer/presets/") for name in found) > 5


def test_the_sdist_makes_the_wheel_that_the_checkout_makes(built, tmp_path):
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=ROOT)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.read_bytes() == built[1].read_bytes()
    with tarfile.open(built[0]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "tests/test_wheel.py"} <= names


def test_the_image_is_made_of_the_same_wheel(built, tmp_path):
    """What .dockerignore lets into the image is all that `pip install /src` needs there."""
    allowed = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for name in allowed:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "dist", cwd=tmp_path)
    (wheel,) = tmp_path.glob("dist/*.whl")
    assert wheel.read_bytes() == built[1].read_bytes()


CORE = """
import sys
for package in sys.argv[1].split():
    sys.modules[package] = None     # as where no extra is installed
import objcrop
from objcrop.cli import main
print(objcrop.__file__)
main("index scenes --format scenes -o c.arrow".split())
main("propose c.arrow --method gt -o b.arrow".split())
crops = "--boxes b.arrow --crops obj-obj+dilate"
with objcrop.load_views("c.arrow", boxes="b.arrow", crops="obj-obj+dilate", size=32, batch_size=4) as loader:
    print([tuple(view.shape) for view in next(iter(loader)).views])
main(f"stats c.arrow {crops}".split())
main(f"show c.arrow {crops} -o sheet.png".split())
tiny = "--arch resnet18 --size 32 --batch-size 8 --queue 8 --steps 2"
main(f"pretrain --catalog c.arrow {crops} {tiny} -o run".split())
"""


def test_it_works_without_a_checkout_and_without_extras(installed, away):
    draw_scenes("scenes", 16, kind=SceneKind((128, 96)), masks=True)
    optional = [package for package, (_, extra) in EXTRAS.items() if extra != "cuda13"]
    said = run(installed / "bin" / "python", "-c", CORE, " ".join(optional)).splitlines()
    assert pathlib.Path(said[0]).is_relative_to(installed)
    assert "[(4, 3, 32, 32), (4, 3, 32, 32)]" in said
    assert (away / "sheet.png").stat().st_size > 10_000
    assert (away / "run" / "last.pt").is_file()


def test_the_command(installed, away):
    objcrop = installed / "bin" / "objcrop"
    assert run(objcrop, "--version").split() == ["objcrop", __version__]
    assert "DALI decodes" in run(objcrop, "doctor")
