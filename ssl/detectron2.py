"""A backbone in Detectron2's words: names of tensors, and the configuration of MoCo's protocol for VOC.

Sources: Detectron2's `ResNet` and ViTDet (Li et al. 2022); the protocol is He et al. 2020, appendix, "Details of
PASCAL VOC object detection", with the numbers of facebookresearch/moco (detection/configs).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from objcrop.dali_pipes.augment import RECIPES, Augment

IN_VITDET = re.compile(
    r"pos_embed|patch_embed\.proj\.(weight|bias)|blocks\.\d+\.(norm1|norm2|attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)\.(weight|bias)"
)
NOT_IN_VITDET = {"cls_token", "norm.weight", "norm.bias"}  # found there by their ends, they could be put somewhere else

CONFIG = """\
# Faster R-CNN on res4 (C4), VOC07+12, 24,000 steps, by MoCo's protocol (He et al. 2020, appendix):
# `python detection/train_net.py --config-file THIS --num-gpus 8` of facebookresearch/moco, on Detectron2.
# Res5ROIHeadsExtraNorm, the norm after res5, is that script's; plain Detectron2 has Res5ROIHeads, which lacks it.
# On one GPU set MODEL.RESNETS.NORM to BN. With fewer images a batch, lower BASE_LR and raise MAX_ITER and STEPS alike.
# For COCO (Mask R-CNN, 2x): MASK_ON True, NUM_CLASSES 80, MIN_SIZE_TRAIN from 640, coco_2017_train and coco_2017_val,
# STEPS (120000, 160000), MAX_ITER 180000.
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  MASK_ON: false
  WEIGHTS: {weights}  # relative to where training is started
  PIXEL_MEAN: {mean}  # what these weights were trained with, of 0 to 255, in the order of FORMAT
  PIXEL_STD: {std}
  BACKBONE:
    FREEZE_AT: 0
  RESNETS:
    DEPTH: {depth}
    NUM_GROUPS: {groups}
    WIDTH_PER_GROUP: {width}
    STRIDE_IN_1X1: false  # torchvision's ResNets have it in the 3×3 convolution
    NORM: SyncBN
  RPN:
    PRE_NMS_TOPK_TEST: 6000
    POST_NMS_TOPK_TEST: 1000
  ROI_HEADS:
    NAME: Res5ROIHeadsExtraNorm
    NUM_CLASSES: 20
INPUT:
  FORMAT: RGB
  MIN_SIZE_TRAIN: [480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800]
  MIN_SIZE_TEST: 800
DATASETS:
  TRAIN: [voc_2007_trainval, voc_2012_trainval]
  TEST: [voc_2007_test]
SOLVER:
  IMS_PER_BATCH: 16
  BASE_LR: 0.02
  WARMUP_ITERS: 100
  STEPS: [18000, 22000]
  MAX_ITER: 24000
TEST:
  PRECISE_BN:
    ENABLED: true
"""


def detectron2_config(arch: str, tensors: Mapping[str, torch.Tensor], augment: Any, weights: Path) -> str:
    """Return the YAML that trains from a backbone.

    Args:
        arch: a ResNet of bottlenecks by its name in torchvision.
        tensors: its weights, by torchvision's names.
        augment: of the recipe that it was trained by, where it is one of `RECIPES`, for the views' mean and deviation.
        weights: the file that holds them.
    """
    seen = RECIPES[augment][0] if isinstance(augment, str) and augment in RECIPES else Augment()
    width = int(tensors["layer1.0.conv2.weight"].shape[1])  # of a group
    depth = re.search(r"\d+", arch)
    assert depth is not None
    return CONFIG.format(
        weights=json.dumps(str(weights)),  # as YAML quotes, too
        mean=[round(255 * value, 3) for value in seen.mean],
        std=[round(255 * value, 3) for value in seen.std],
        depth=depth.group(),
        groups=int(tensors["layer1.0.conv1.weight"].shape[0]) // width,
        width=width,
    )


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
