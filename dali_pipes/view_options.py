"""The options of views: what each may be, and where it acts.

An option that cannot act in the chosen combination is refused where it was given, so that no run's record holds a value
that changed nothing; its default, which nobody asked for, is passed over. `load_views` and the recipe of
`objcrop pretrain` read the same table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from objcrop.dali_pipes.augment import RECIPES
from objcrop.dali_pipes.crop_policy import POLICIES, CropPolicy
from objcrop.errors import UsageError, shown, way_out
from objcrop.option_value import SEED, Kind, flag, number, or_auto, pair, text, value_of, whole, word


@dataclass(frozen=True)
class Setting:
    """The choices that decide which other options act.

    Attributes:
        policy: of the crops, `random_crop` taken into account.
        backend: "torch" or "dali".
        device: "cpu" or "cuda…".
        cache: where decoded images are kept, or None.
        workers: processes of the torch backend; None is the number of cores.
        view_boxes: whether batches carry the boxes of each view.
    """

    policy: CropPolicy
    backend: str
    device: str
    cache: str | None
    workers: int | None
    view_boxes: bool = False


@dataclass(frozen=True)
class Option:
    """What an option may be, and where it acts.

    Attributes:
        kind: reads its value.
        idle: returns why it cannot act in a setting (half a sentence), or None where it acts; None: it always acts.
    """

    kind: Kind
    idle: Callable[[Any], str | None] | None = None


def _boxes_are_used(at: Setting) -> str | None:
    return None if at.view_boxes else _box_is_drawn(at)


def _box_is_drawn(at: Setting) -> str | None:
    return None if at.policy.needs_boxes else f"crops '{at.policy.name}' are not drawn from boxes"


def _one_box_of_several(at: Setting) -> str | None:
    if at.policy.needs_boxes and at.policy.per_box:
        return f"crops '{at.policy.name}' take every box"
    return _box_is_drawn(at)


def _small_boxes_are_enlarged(at: Setting) -> str | None:
    if at.policy.needs_boxes and not at.policy.small_box_rule:
        return f"crops '{at.policy.name}' take boxes as they are"
    return _box_is_drawn(at)


def _some_view_is(region: str) -> Callable[[Setting], str | None]:
    def idle(at: Setting) -> str | None:
        has = any(view.region == region for view in at.policy.views)
        return None if has else f"no view of crops '{at.policy.name}' is {region}"

    return idle


def _cropped_at_random(at: Setting) -> str | None:
    has = any(not view.whole for view in at.policy.views)
    return None if has else f"no view of crops '{at.policy.name}' is cropped at random"


def _smallest_is_open(at: Setting) -> str | None:
    if any(view.scale[0] is None and not view.whole for view in at.policy.views):
        return None
    return _cropped_at_random(at) or f"the smallest crop of crops '{at.policy.name}' is the first number of scale"


def _region_is_a_choice(at: Setting) -> str | None:
    is_centre = any(view.region == "centre" for view in at.policy.views)
    return f"crops '{at.policy.name}' are never drawn" if is_centre else None


def _backend_is(backend: str) -> Callable[[Setting], str | None]:
    def idle(at: Setting) -> str | None:
        if at.backend == backend:
            return None
        needs = f"it needs backend='{backend}'"
        return way_out(f"{needs} (--loader {backend})", f"{needs} (--backend {backend})", needs)

    return idle


def _batches_lie_ready(at: Setting) -> str | None:
    works_here = at.backend == "torch" and at.workers == 0
    return "with workers 0 the torch loader makes each batch when it is asked for" if works_here else None


def _gpu_decodes_batches(at: Setting) -> str | None:
    if at.backend != "dali" or not at.device.startswith("cuda"):
        needs = "it needs backend='dali' on a GPU"
        return way_out(f"{needs} (--loader dali --device cuda)", needs)
    return None if at.cache is None else "a cache decodes each image once and whole"


def _cache_is_kept(at: Setting) -> str | None:
    return None if at.cache is not None else "nothing is kept, give cache='device' or 'host' too"


VIEW_OPTIONS: dict[str, Option] = {
    "boxes": Option(lambda boxes: boxes, _boxes_are_used),
    "view_boxes": Option(flag),
    "crops": Option(word(*POLICIES)),
    "augment": Option(word(*RECIPES)),
    "size": Option(whole(8, 8192)),
    "batch_size": Option(whole(1, 2**24)),
    "backend": Option(word("torch", "dali")),
    "device": Option(text(r"cpu|cuda(:[0-9]{1,3})?", "'cpu', 'cuda' or 'cuda:N'")),
    "seed": Option(SEED),
    "shuffle": Option(flag),
    "drop_last": Option(flag),
    "workers": Option(whole(0, 4096), _backend_is("torch")),
    "threads": Option(whole(1, 4096), _backend_is("dali")),
    "prefetch": Option(whole(1, 1024), _batches_lie_ready),
    "decode": Option(word("union", "whole"), _gpu_decodes_batches),
    "hw_decoder_load": Option(number(0, 1), _gpu_decodes_batches),
    "decoder_padding": Option(whole(0, 65536), _gpu_decodes_batches),
    "colour": Option(word("float", "pil"), _backend_is("torch")),
    "dtype": Option(word("fp32", "bf16", "fp16")),
    "cache": Option(word("device", "host"), _backend_is("dali")),
    "cache_side": Option(whole(8, 65536), _cache_is_kept),
    "max_bad": Option(number(0, 1)),
    "random_crop": Option(flag, _region_is_a_choice),
    "scale": Option(pair(number(0, 1, above=True)), _cropped_at_random),
    "scale_min": Option(or_auto(number(0, 1, above=True)), _smallest_is_open),
    "min_side": Option(or_auto(whole(1, 65536)), _small_boxes_are_enlarged),
    "dilate": Option(number(0, 2), _some_view_is("dilated")),
    "dilate_by": Option(word("image", "box"), _some_view_is("dilated")),
    "shift": Option(pair(number(0, 65536)), _some_view_is("shifted")),
    "max_boxes": Option(whole(1, 2**31 - 1), _one_box_of_several),
}


def read_options(given: Mapping[str, Any], table: Mapping[str, Option]) -> dict[str, Any]:
    """Return what was given as its kinds have it, without the Nones, which stand for "not given".

    Raises:
        UsageError: a value is not of its option's kind.
    """
    return {name: value_of(name, value, table[name].kind) for name, value in given.items() if value is not None}


def refuse_idle(given: Mapping[str, Any], table: Mapping[str, Option], setting: Any, way_back: str = "") -> None:
    """Raise a `UsageError` where an option was given that cannot act.

    Args:
        given: options to the values that somebody asked for.
        table: of the options.
        setting: what their `idle` looks at.
        way_back: how to take it back where a file says it, with the option's name at {}.
    """
    for name, value in given.items():
        idle = table[name].idle
        reason = None if idle is None else idle(setting)
        if reason is not None:
            told = "" if name == "boxes" else f" ({shown(value)})"
            raise UsageError(f"{name}{told} cannot act here: {reason}; leave it out{way_back.format(name)}.")
