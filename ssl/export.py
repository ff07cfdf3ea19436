"""A checkpoint's backbone in the forms that others load.

- torchvision: a state dict for `torchvision.models.ARCH`, without the classifier (`load_state_dict(…, strict=False)`).
- timm: a state dict for `timm.create_model(ARCH, num_classes=0)`; timm's ResNets use torchvision's names.
- detectron2: the pickle that Detectron2's R50-C4 and R50-FPN configurations read, with its names (stem.conv1,
  res2.0.conv1, shortcut, norm); as facebookresearch/moco writes it, it says "matching_heuristics". Of a plain Vision
  Transformer it holds what ViTDet's has (Li et al. 2022): positions, patches' projection and blocks, by timm's names.

What a file holds is the encoder of the query, the one that the papers transfer.
"""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path
from typing import Any

import torch

from objcrop.errors import ObjcropError, UsageError, one_of
from objcrop.ssl.networks.backbones import SMALL, backbone_weights
from objcrop.ssl.training.checkpoint import BACKBONE, load_checkpoint
from objcrop.whole_file import whole_file

FORMATS = ("torchvision", "timm", "detectron2")
IN_VITDET = re.compile(
    r"pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)
NOT_IN_VITDET = {"cls_token", "norm.weight", "norm.bias"}  # found there by their ends, they could be put somewhere else


def export(
    checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], format: str = "torchvision"
) -> dict[str, Any]:
    """Write a checkpoint's backbone.

    Args:
        checkpoint: a last.pt.
        output: file to write; .pkl for detectron2, .pt or .pth else.
        format: "torchvision", "timm" or "detectron2".

    Returns:
        arch, format, the number of tensors, and whether the stem is the one for small images.

    Raises:
        UsageError: an unknown format, or a network that it cannot hold.
        ObjcropError: an unusable checkpoint, or a file that cannot be written.
    """
    one_of(format, FORMATS, "--format")
    saved = load_checkpoint(checkpoint, BACKBONE)
    arch, weights = saved["recipe"]["arch"], backbone_weights(saved)
    if arch.startswith("lab/"):
        raise UsageError(f"{checkpoint} is {arch}, two networks of lightness and of colour, which no format holds.")
    of_timm = arch.startswith("timm/")
    small = "conv1.weight" in weights and int(weights["conv1.weight"].shape[-1]) == 3 and not of_timm
    if format == "torchvision" and of_timm:
        raise UsageError(f"{checkpoint} is timm's {arch[5:]}, which torchvision does not have; take --format timm.")
    if format == "detectron2":
        plain_vit = "pos_embed" in weights and all(n in NOT_IN_VITDET or IN_VITDET.fullmatch(n) for n in weights)
        if not plain_vit and (of_timm or "layer1.0.conv1.weight" not in weights):
            raise UsageError(
                f"{checkpoint} is {arch}, but Detectron2 takes torchvision's ResNets and plain Vision Transformers of "
                "timm."
            )
        if small:
            raise UsageError(
                f"{checkpoint} was trained at {saved['recipe']['size']} px, with a stem for small images that "
                f"Detectron2 does not have; pretrain above {SMALL} px to export there."
            )
        written: dict[str, Any] = {name: value.numpy() for name, value in weights.items() if "num_batches" not in name}
        if plain_vit:
            written = {name: value for name, value in written.items() if name not in NOT_IN_VITDET}
        else:
            written = {detectron2_name(name): value for name, value in written.items()}
        content: dict[str, Any] = {"model": written, "__author__": "objcrop", "matching_heuristics": True}
        _write(Path(output), lambda file: pickle.dump(content, file))
    else:
        written = {name: value.contiguous() for name, value in weights.items()}
        _write(Path(output), lambda file: torch.save(written, file))
    return {"arch": arch.removeprefix("timm/"), "format": format, "tensors": len(written), "small_stem": small}


def detectron2_name(name: str) -> str:
    """Return Detectron2's name of a torchvision ResNet's tensor: layer1.0.bn2.weight is res2.0.conv2.norm.weight."""
    parts = name.split(".")
    if not parts[0].startswith("layer"):
        parts.insert(0, "stem")
    else:
        parts[0] = f"res{int(parts[0].removeprefix('layer')) + 1}"
    renamed = []
    for at, part in enumerate(parts):
        if part.startswith("bn"):
            renamed += [f"conv{part.removeprefix('bn')}", "norm"]
        elif part == "downsample":
            renamed.append("shortcut")
        elif at and parts[at - 1] == "downsample":  # its convolution is 0, its norm 1
            renamed += ["norm"] if part == "1" else []
        else:
            renamed.append(part)
    return ".".join(renamed)


def _write(path: Path, write: Any) -> None:
    try:
        with whole_file(path) as part, part.open("wb") as file:
            write(file)
    except (OSError, RuntimeError) as error:
        raise ObjcropError(f"{path} cannot be written ({error}); name another -o.") from None
