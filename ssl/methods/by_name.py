"""Methods by name."""

from __future__ import annotations

import importlib
import os
import sys

from objcrop.errors import UsageError, printable, shown
from objcrop.ssl.methods.byol import BYOL
from objcrop.ssl.methods.cmc import CMC
from objcrop.ssl.methods.densecl import DenseCL
from objcrop.ssl.methods.mae import MAE
from objcrop.ssl.methods.method import Method
from objcrop.ssl.methods.moco import MoCo
from objcrop.ssl.methods.simclr import SimCLR
from objcrop.ssl.methods.soco import SoCo
from objcrop.ssl.methods.supervised import Supervised
from objcrop.ssl.methods.swav import SwAV

METHODS: dict[str, type[Method]] = {
    "moco-v2": MoCo,
    "byol": BYOL,
    "densecl": DenseCL,
    "mae": MAE,
    "simclr": SimCLR,
    "swav": SwAV,
    "cmc": CMC,
    "soco": SoCo,
    "supervised": Supervised,
}


def method_class(name: str) -> type[Method]:
    """Return a method: one of ours by name, or a user's own as "module:Class".

    Raises:
        UsageError: there is none of that name, its module cannot be imported, or it is no `Method`.
    """
    if name in METHODS:
        return METHODS[name]
    module, _, within = name.partition(":")
    if not all(part.isidentifier() for part in (*module.split("."), within)):
        raise UsageError(f"method is {shown(name)}, but it must be one of: {', '.join(METHODS)}, or your module:Class.")
    if os.getcwd() not in sys.path:  # behind all else: nothing that lies here shadows what is installed
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module), within)
    except Exception as error:  # the user's own code
        why = f"{type(error).__name__}: {printable(str(error).splitlines()[0] if str(error) else '')}"
        raise UsageError(f"method is '{name}', which cannot be imported ({why}); check it and PYTHONPATH.") from error
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise UsageError(f"method is '{name}', which is no subclass of objcrop.ssl.methods.method.Method.")
    return found
