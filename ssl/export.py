"""A checkpoint's backbone in the forms that others load.

- torchvision: a state dict for `torchvision.models.ARCH`, without the classifier (`load_state_dict(…, strict=False)`).
- torchvision-detection: a state dict for `fasterrcnn_resnet50_fpn(…).backbone` and its like, without the pyramid
  (`strict=False`). Their own normalisation, ImageNet's, is that of our views.
- timm: a state dict for `timm.create_model(ARCH, num_classes=0)`; timm's ResNets use torchvision's names.
- detectron2: the pickle that Detectron2's R50-C4 and R50-FPN configurations read, with its names (stem.conv1,
  res2.0.conv1, shortcut, norm); as facebookresearch/moco writes it, it says "matching_heuristics". Of a plain Vision
  Transformer it holds what ViTDet's has (Li et al. 2022): positions, patches' projection and blocks, by timm's names.
  Beside the pickle of a ResNet of bottlenecks, which C4 takes, lies a YAML with MoCo's protocol for VOC.

mmdetection's ResNets have torchvision's names: that form is loaded by the line
`model = dict(backbone=dict(init_cfg=dict(type='Pretrained', checkpoint='backbone.pth')))` of a configuration.

What a file holds is the encoder of the query, the one that the papers transfer.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from objcrop.errors import ObjcropError, UsageError, one_of
from objcrop.ssl.detectron2 import IN_VITDET, NOT_IN_VITDET, detectron2_config, detectron2_name
from objcrop.ssl.networks.backbones import SMALL, backbone_weights
from objcrop.ssl.training.checkpoint import BACKBONE, load_checkpoint
from objcrop.whole_file import whole_file

FORMATS = ("torchvision", "torchvision-detection", "timm", "detectron2")


def export(
    checkpoint: str | os.PathLike[str], output: str | os.PathLike[str], format: str = "torchvision"
) -> dict[str, Any]:
    """Write a checkpoint's backbone.

    Args:
        checkpoint: a last.pt.
        output: file to write; .pkl for detectron2, .pt or .pth else.
        format: one of `FORMATS`.

    Returns:
        arch, format, the number of tensors, whether the stem is the one for small images, and `config`, the YAML that
        was written beside, or None.

    Raises:
        UsageError: an unknown format, or a network that it cannot hold.
        ObjcropError: an unusable checkpoint, or a file that cannot be written.
    """
    one_of(format, FORMATS, "--format")
    saved = load_checkpoint(checkpoint, BACKBONE)
    arch, weights = saved["recipe"]["arch"], backbone_weights(saved, checkpoint)
    if arch.startswith("lab/"):
        raise UsageError(f"{checkpoint} is {arch}, two networks of lightness and of colour, which no format holds.")
    if arch.startswith("narrow/"):
        raise UsageError(f"{checkpoint} is {arch}, of a quarter of that network's channels, which no format holds.")
    of_timm = arch.startswith("timm/")
    resnet = "layer1.0.conv1.weight" in weights and not of_timm
    plain_vit = "pos_embed" in weights and all(n in NOT_IN_VITDET or IN_VITDET.fullmatch(n) for n in weights)
    small = "conv1.weight" in weights and int(weights["conv1.weight"].shape[-1]) == 3 and not of_timm
    if format.startswith("torchvision") and of_timm:
        raise UsageError(f"{checkpoint} is timm's {arch[5:]}, which torchvision does not have; take --format timm.")
    if format == "detectron2" and not (resnet or plain_vit):
        raise UsageError(
            f"{checkpoint} is {arch}, but Detectron2 takes torchvision's ResNets and plain Vision Transformers of timm."
        )
    if format in ("detectron2", "torchvision-detection") and small:
        whose = "Detectron2 does" if format == "detectron2" else "torchvision's detectors do"
        raise UsageError(
            f"{checkpoint} was trained at {saved['recipe']['size']} px, with a stem for small images that {whose} not "
            f"have; pretrain above {SMALL} px to export there."
        )
    path, config = Path(output), None
    if format == "detectron2":
        if path.suffix == ".yaml":
            raise UsageError(f"the output '{path}' is the name of the configuration beside it; give one in .pkl.")
        kept = {
            name: value for name, value in weights.items() if name not in NOT_IN_VITDET and "num_batches" not in name
        }
        written: dict[str, Any] = {detectron2_name(n) if resnet else n: value.numpy() for n, value in kept.items()}
        content: dict[str, Any] = {"model": written, "__author__": "objcrop", "matching_heuristics": True}
        _write(path, lambda file: pickle.dump(content, file))
        if resnet and "layer1.0.conv3.weight" in weights:
            config = path.with_suffix(".yaml")
            text = detectron2_config(arch, weights, saved["recipe"].get("augment"), path)
            _write(config, lambda file: file.write(text.encode()))
    else:
        prefix = "body." if format == "torchvision-detection" else ""
        written = {prefix + name: value.contiguous() for name, value in weights.items()}
        _write(path, lambda file: torch.save(written, file))
    said = {"arch": arch.removeprefix("timm/"), "format": format, "tensors": len(written), "small_stem": small}
    return {**said, "config": config}


def _write(path: Path, write: Any) -> None:
    try:
        with whole_file(path) as part, part.open("wb") as file:
            write(file)
    except (OSError, RuntimeError) as error:
        raise ObjcropError(f"{path} cannot be written ({error}); name another -o.") from None
