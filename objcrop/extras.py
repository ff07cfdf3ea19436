"""Packages that are not always there: imported on use; a missing one is said with the line that installs it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from objcrop.errors import UsageError

# Module: what people call it, and the extra of pyproject.toml that brings it.
EXTRAS = {
    "torch": ("PyTorch", "cuda13"),
    "torchvision": ("torchvision", "cuda13"),
    "nvidia": ("DALI", "cuda13"),
    "cv2": ("OpenCV", "proposals"),
    "matplotlib": ("matplotlib", "plot"),
    "obstore": ("obstore", "remote"),
    "ray": ("ray", "ray"),
    "tensorboard": ("tensorboard", "train"),
    "timm": ("timm", "train"),
    "wandb": ("wandb", "wandb"),
}


def from_extra(module: str) -> Any:
    """Import and return a module of such a package, as "matplotlib.figure"; errors as of `require`."""
    require(module)
    return sys.modules[module]


def require(*modules: str) -> None:
    """Import modules of such packages; before any work, where the work would end for want of them.

    Raises:
        UsageError: some are missing or broken; it names them all, and the line that installs them.
    """
    failed = {}
    for module in modules:
        try:
            import_module(module)
        except ImportError as error:
            failed[module.split(".")[0]] = error
    if failed:
        raise _missing(failed) from None


def missing_package(error: BaseException) -> UsageError | None:
    """Return what to say of an error that is the want of such a package; None of any other."""
    module = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    return _missing({module: error}) if module in EXTRAS else None


def _missing(failed: Mapping[str, Any]) -> UsageError:
    names = " and ".join(EXTRAS[module][0] for module in failed)
    said = f"{names} {'is' if len(failed) == 1 else 'are'} not installed"
    broken = [str(error) for module, error in failed.items() if (error.name or "").split(".")[0] != module]
    if broken:
        said = f"{names} cannot be imported ({'; '.join(broken)})"
    extras = sorted({EXTRAS[module][1] for module in failed})
    way = f"pip install 'objcrop[{','.join(extras)}]'"
    if "cuda13" in extras:
        way += ", without a GPU too (where the NVIDIA driver is older than 580, cuda12 for cuda13)"
    return UsageError(f"{said}; {way}.")
