"""The encoder: a ResNet of torchvision, or any of timm's networks, without its classifier."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from objcrop.errors import ObjcropError, UsageError, way_out
from objcrop.extras import from_extra
from objcrop.ssl.networks.lab import LabEncoder
from objcrop.ssl.networks.narrow import half_width, quarter_width
from objcrop.ssl.training.checkpoint import BACKBONE, load_checkpoint
from objcrop.whole_file import regular_file

SMALL = 96  # views of this side and less lose too much to a stem that shrinks them fourfold


def backbone_names() -> list[str]:
    """Return torchvision's names that `backbone` takes."""
    from torchvision import models

    return [name for name in models.list_models(module=models) if "resne" in name]


def backbone(arch: str, size: int, init: str | None = None) -> tuple[nn.Module, int]:
    """Make an encoder with random weights from torch's global generator, or with those of a file.

    Args:
        arch: a torchvision ResNet by name, "resnet18" say, or "timm/NAME"; "lab/resnet18" is two of half the width, of
            lightness and of colour (`LabEncoder`), "narrow/resnet18" has a quarter of the width.
        size: side of the views in pixels; at 96 and below a ResNet's first convolution is 3×3, at 48 and below without
            the pooling after it, at 32 and below of stride 1 (after Chen et al. 2020, SimCLR, appendix B.9).
        init: a checkpoint of objcrop, or a state dict with torchvision's (timm's) names; a classifier in it is left.

    Returns:
        A module from (N, 3, size, size) to (N, width), and the width.

    Raises:
        UsageError: an unknown name, or a network that cannot take views of this size.
        ObjcropError: weights that cannot be read or are of another network.
    """
    if arch.startswith("lab/"):
        network, width = _lab(arch.removeprefix("lab/"), size)
    elif arch.startswith("narrow/"):
        network, width = _torchvision(arch.removeprefix("narrow/"))
        network, width = quarter_width(network), width // 4
        _fit_stem(network, size)
    elif arch.startswith("timm/"):
        network, width = _timm(arch.removeprefix("timm/"), size)
        _fit_stem(network, size)
    else:
        network, width = _torchvision(arch)
        _fit_stem(network, size)
    if init is not None:
        load_weights(network, init)
    return network.to(memory_format=torch.channels_last), width


def _fit_stem(network: Any, size: int) -> None:
    """Give a ResNet the stem for small views where these are small."""
    first = getattr(network, "conv1", None)
    if size <= SMALL and isinstance(first, nn.Conv2d) and first.kernel_size == (7, 7):
        stem = nn.Conv2d(first.in_channels, first.out_channels, 3, stride=1 if size <= 32 else 2, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")
        network.conv1 = stem
        if size <= 48:
            network.maxpool = nn.Identity()


def _lab(name: str, size: int) -> tuple[nn.Module, int]:
    networks = []
    for channels in (1, 2):
        network, width = _torchvision(name)
        networks.append(half_width(network, channels))
        _fit_stem(networks[-1], size)
    return LabEncoder(*networks), width


def _torchvision(arch: str) -> tuple[nn.Module, int]:
    from torchvision import models

    if arch not in backbone_names():
        raise UsageError(f"arch is '{arch}', but it must be timm/NAME or one of: {', '.join(backbone_names())}.")
    network = models.get_model(arch, weights=None)
    width = network.fc.in_features
    network.fc = nn.Identity()
    return network, width


def _timm(name: str, size: int) -> tuple[nn.Module, int]:
    timm = from_extra("timm")
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name[:6]}*")[:5]) or "none"
        raise UsageError(f"arch is 'timm/{name}', but timm has no such model; near it are: {near}.")
    of_one_size = getattr(timm.get_pretrained_cfg(name), "fixed_input_size", False)  # position embeddings, windows
    try:
        options: dict[str, Any] = {"img_size": size} if of_one_size else {}
        network = timm.create_model(name, pretrained=False, num_classes=0, **options)
    except (AssertionError, ValueError, RuntimeError) as error:
        raise _another_size(name, size, error) from None
    return network, width_at(network, size, name)


@torch.no_grad()
def width_at(network: nn.Module, size: int, name: str) -> int:
    """Return the width of a network's features, which one view of this size is passed through for.

    Raises:
        UsageError: it cannot take such a view.
    """
    training = network.training
    dtype = next(network.parameters()).dtype
    try:
        features = network.eval()(torch.zeros(1, 3, size, size, dtype=dtype))
    except (AssertionError, ValueError, RuntimeError) as error:
        raise _another_size(name, size, error) from None
    finally:
        network.train(training)
    if features.ndim != 2:
        raise UsageError(f"arch is 'timm/{name}', whose output {tuple(features.shape)} is no vector an image.")
    return features.shape[1]


def _another_size(name: str, size: int, error: Exception) -> UsageError:
    said = " ".join(str(error).split())[:120].rstrip(".")
    return UsageError(f"{name} does not take views of {size} px ({said}); take another size.")


def load_weights(network: nn.Module, init: str) -> None:
    """Put the weights of a file into a backbone; `init` as of `backbone`.

    Raises:
        ObjcropError: they cannot be read or are of another network.
    """
    weights = read_weights(init)
    own = network.state_dict()
    weights = {name: value for name, value in weights.items() if not name.startswith(("fc.", "classifier.", "head."))}
    missing, foreign = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    other = [name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape]
    if missing or foreign or other:
        what = (other and f"{sorted(other)[0]} has another shape") or f"{(missing + foreign)[0]} is on one side only"
        way = way_out("give --arch and --size of theirs", "give weights of this one")
        raise ObjcropError(f"the weights in {init} are of another network ({what}); {way}.")
    network.load_state_dict(weights, strict=False)


def read_weights(path: str) -> dict[str, torch.Tensor]:
    """Return a backbone's weights by name, from a checkpoint of objcrop or from a state dict.

    Raises:
        ObjcropError: the file is missing, damaged or neither of the two.
    """
    file = regular_file(path, "file of weights", "give a checkpoint of objcrop or a state dict")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ObjcropError(f"{path} holds no weights that can be read ({str(error).strip()[:80]!r}).") from None
    if isinstance(content, dict) and content.get("kind") == "objcrop checkpoint":
        return backbone_weights(load_checkpoint(file, BACKBONE), path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, torch.Tensor) for v in content.values()):
        raise ObjcropError(f"{path} is neither a checkpoint of objcrop nor a state dict.")
    return content


def backbone_weights(checkpoint: dict, path: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """Return the encoder's weights out of a checkpoint loaded from `path`, named as the bare network names them.

    Raises:
        ObjcropError: it has none, as a run of transfer.
    """
    prefix = "encoder.backbone."
    found = {k[len(prefix) :]: v for k, v in checkpoint["method"].items() if k.startswith(prefix)}
    if not found:
        task = checkpoint["recipe"].get("task")
        what = "holds no pretrained backbone" if task is None else f"is of a run of transfer, and a network for {task}"
        raise ObjcropError(f"{path} {what}; name the last.pt of a run of pretrain.")
    return found
