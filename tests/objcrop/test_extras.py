"""What is not installed is said in one sentence with the line to install it, wherever it is wanted."""

import ast
import pathlib
import subprocess
import sys

import pytest

from objcrop.errors import UsageError
from objcrop.extras import EXTRAS, from_extra, missing_package, require
from objcrop.proposals.edge_boxes import ximgproc

try:
    import tomllib
except ImportError:
    import tomli as tomllib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BY_A_WORKER = {"objcrop/ray_cluster.py": {"ray"}}  # which may have no objcrop


def hide(monkeypatch, *packages):
    for module in {*packages, *(name for name in sys.modules if name.split(".")[0] in packages)}:
        monkeypatch.setitem(sys.modules, module, None)


def test_every_extra_is_known_and_all_are_all():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    optional = {extra for _, extra in EXTRAS.values()} - {"cuda13"}
    assert optional == set(extras) - {"cuda12", "cuda13", "docs", "test", "all"}
    (everything,) = extras["all"]
    assert set(everything.partition("[")[2].rstrip("]").split(",")) == optional - {"wandb"}


def test_optional_packages_are_imported_by_from_extra():
    optional = {module for module, (_, extra) in EXTRAS.items() if extra != "cuda13"}
    found = {}
    for folder in ("objcrop", "dali_pipes", "kernels", "ssl", "bench"):
        for path in (ROOT / folder).rglob("*.py"):
            if path.resolve() != path or "rivals" in path.parts or path.name == "rival_steps.py":
                continue
            text = path.read_text(encoding="utf-8")
            tree = ast.parse(text if any(module in text for module in optional) else "")
            for node in ast.walk(tree):
                if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                    node.body = []
            for node in ast.walk(tree):
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                for module in {name.split(".")[0] for name in names} & optional:
                    found.setdefault(str(path.relative_to(ROOT)), set()).add(module)
    assert found == BY_A_WORKER


PRETRAIN = "pretrain --catalog c.arrow --arch resnet18 --size 32 --batch-size 4 --steps 1 --loader torch -o run"
WANTS = [
    *(("cv2", f"propose c.arrow --method {name} -o new.arrow") for name in ("bing", "anchors", "edge-boxes")),
    *(("cv2", f"propose c.arrow --method {name} -o new.arrow") for name in ("selective-search", "discovery")),
    ("matplotlib", "plot old -o curves.png"),
    ("matplotlib", "stats c.arrow --boxes b.arrow -o stats.json"),
    ("matplotlib", "bench loader --catalog c.arrow -o bench.json"),
    ("matplotlib", "transfer untrained:resnet18 --task classification --train c.arrow --test c.arrow -o run"),
    ("cv2 matplotlib", "demo -o demo"),
    ("obstore", "index s3://bucket/photos -o new.arrow"),
    ("ray", "propose c.arrow --method bing --ray local -o new.arrow"),
    ("timm", f"{PRETRAIN} --arch timm/vit_tiny_patch16_224"),
    ("timm", f"{PRETRAIN} --arch timm/vit_tiny_patch16_224 --method mae"),
    ("tensorboard", f"{PRETRAIN} --tensorboard"),
    ("wandb", f"{PRETRAIN} --wandb crops"),
    ("nvidia", "show c.arrow --crops scene-scene -o sheet.png"),
]


@pytest.mark.parametrize(("packages", "words"), WANTS, ids=[f"{packages}, {words}" for packages, words in WANTS])
def test_what_is_missing_is_said_before_any_work(packages, words, photos, objcrop, monkeypatch, tmp_path):
    catalog, boxes = photos
    catalog.save(tmp_path / "c.arrow")
    boxes.save(tmp_path / "b.arrow")
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    hide(monkeypatch, *packages.split())
    ended = objcrop(*words.split(), cwd=tmp_path)
    names = " and ".join(EXTRAS[package][0] for package in packages.split())
    extras = ",".join(sorted(EXTRAS[package][1] for package in packages.split()))
    assert ended.returncode == 2 and ended.stderr.count("\n") == 1
    assert f"objcrop: {names} " in ended.stderr and f"pip install 'objcrop[{extras}]'" in ended.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"c.arrow", "b.arrow", "old", "run"}


@pytest.mark.parametrize(
    "code",
    [
        "import objcrop; objcrop.load_views",
        "from objcrop.cli import main; main(['show', 'c.arrow', '-o', 'sheet.png'])",
    ],
)
def test_without_pytorch(code, tmp_path):
    """As after a plain `pip install objcrop`."""
    hidden = f"import sys; sys.modules['torch'] = None; {code}"
    ended = subprocess.run([sys.executable, "-c", hidden], cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode in (1, 2)
    assert "PyTorch is not installed; pip install 'objcrop[cuda13]'" in ended.stderr.splitlines()[-1]


def test_broken_and_several(monkeypatch, tmp_path):
    """An OpenCV whose libraries are not there, as opencv-python in a slim image; and two at once."""
    (tmp_path / "cv2").mkdir()
    hide(monkeypatch, "cv2", "matplotlib")
    with pytest.raises(UsageError, match=r"^OpenCV and matplotlib are not .* 'objcrop\[plot,proposals\]'\.$"):
        require("cv2", "matplotlib.figure")
    monkeypatch.delitem(sys.modules, "cv2")
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "cv2" / "__init__.py").write_text("import _no_such_module_")
    with pytest.raises(UsageError, match=r"^OpenCV cannot be imported \(No module named '_no_such_module_'\)"):
        from_extra("cv2")


def test_an_opencv_without_contrib(monkeypatch):
    """opencv-python's: all but ximgproc."""
    monkeypatch.delattr(from_extra("cv2"), "ximgproc")
    with pytest.raises(UsageError, match=r"has no ximgproc.*pip uninstall opencv-python"):
        ximgproc()


def test_other_errors_are_left_alone():
    assert missing_package(ModuleNotFoundError("No module named 'mine'", name="mine")) is None
    assert missing_package(ValueError("torch")) is None
