"""Everything a pretraining run is told, and where it is told: defaults, then a recipe file, then flags.

A recipe file (`ssl/recipes/*.yaml`, or a user's) holds differences only, by groups:

    method: moco-v2
    crops: {policy: obj-obj+dilate, dilate: 0.2}
    training: {epochs: 800}
    moco-v2: {queue: 16384}

A sweep tells of some options all values that are tried, `sweep: {dilate: [0.0, 0.1, 0.2]}`, and `needs` what data and
boxes a row of the papers was trained on. The run folder keeps the resolved whole.
"""

from __future__ import annotations

import difflib
import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from objcrop.dali_pipes.crops import Crops
from objcrop.dali_pipes.loading import Loading
from objcrop.errors import ObjcropError, UsageError, shown, way_out
from objcrop.option import Options, cannot_act, home_of, option, options_of, unknown
from objcrop.option_value import number, offering, text, value_of, whole, word
from objcrop.plain_yaml import read_yaml
from objcrop.ssl.training.options import Training

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
NAMES = ("moco-v2", "byol", "simclr", "densecl", "swav", "soco", "mae", "cmc", "supervised")


@dataclass(frozen=True)
class Recipe(Training, Loading, Crops):
    """All options of `objcrop pretrain` that every method has; a method's own recipe adds what it needs.

    Attributes:
        own_defaults: what the method's paper trains it with, where that is not the default of `Training`, `Crops` or
            `Loading`.
    """

    group: ClassVar[str] = ""
    own_defaults: ClassVar[Mapping[str, Any]] = {}

    method: str = option(
        "moco-v2",
        offering(*NAMES)(text()),
        f"{', '.join(NAMES[:-1])} or {NAMES[-1]}, or one of your own as module:Class",
    )

    @property
    def virtual_devices(self) -> int:
        """How many parts BatchNorm sees of a global batch."""
        return self.bn_groups or 1

    @property
    def learning_rate(self) -> float:
        """The rate at this batch size (linear scaling, Goyal et al. 2017)."""
        return self.at_this_batch(self.base_lr)

    def at_this_batch(self, rate: float) -> float:
        """Return a rate that is told at batch 256 at this batch size."""
        return rate * self.batch_size / 256


def _roles_differ(at: Any) -> str | None:
    return f"the views of crops '{at.crops}' share one head" if at.policy.heads_shared else None


@dataclass(frozen=True)
class Embedding(Options):
    """The option of methods that compare embeddings of unit length."""

    dim: int = option(128, whole(1, 65536), "of the embeddings")


@dataclass(frozen=True)
class MLPHead(Embedding):
    """The option of methods whose heads have a hidden layer."""

    hidden: int | None = option(
        None,
        whole(1, 65536),
        "width of the hidden layer of projection and prediction; default: the feature width, 4096 for byol and soco",
    )


@dataclass(frozen=True)
class MomentumEncoder(Options):
    """The option of methods with a second encoder that follows the first."""

    ema: float = option(0.999, number(0, 1), "momentum of the momentum encoder; byol and soco raise it to 1")


@dataclass(frozen=True)
class JointEmbedding(MLPHead, MomentumEncoder):
    """The options of methods that pull the embeddings of two views together, one of them by a momentum encoder."""

    heads: str = option(
        "per-role",
        word("per-role", "shared"),
        "per-role (OAC 3) or shared; policies whose views play one role always share",
        idle=_roles_differ,
    )


@dataclass(frozen=True)
class Temperature(Options):
    """The option of losses that are a softmax."""

    temperature: float = option(0.2, number(1e-4, 100), "that similarities are divided by in the loss")


@dataclass(frozen=True)
class Queue(Options):
    """The option of methods that keep embeddings of earlier steps.

    Attributes:
        holds_negatives: whether an image's own embeddings do harm there.
    """

    holds_negatives: ClassVar[bool] = True

    queue: int = option(65536, whole(0, 2**24), "number of embeddings kept of earlier steps, a multiple of batch_size")

    def __post_init__(self) -> None:
        super().__post_init__()
        size: int = getattr(self, "batch_size")  # noqa: B009, of the group `Loading` beside this one
        if self.queue % size:
            raise UsageError(
                f"queue is {self.queue}, but it must be a multiple of the batch_size {size}: "
                f"take {max(self.queue // size, 1) * size}."
            )


def resolve(recipe: str | os.PathLike[str] | None, flags: Mapping[str, Any]) -> Recipe:
    """Return defaults, overridden by the method's own, by a recipe, by flags.

    None stands for "not given", and takes back what a recipe says. `steps` as a flag takes the place of a recipe's
    `epochs`.

    Args:
        recipe: a YAML file, or the name of one in `ssl/recipes` without its suffix; None for none. The file that a run
            folder keeps is one too.
        flags: option names to values; "loader" is `backend`, as on the command line.

    Raises:
        UsageError: no such recipe or method; a key that is no option, the nearest is named; a value that is none of its
            option; an option that cannot act; a sweep of which no value is chosen.
        ObjcropError: the file is no YAML mapping.
    """
    from objcrop.ssl.methods.by_name import METHODS, method_class

    content = {} if recipe is None else _read(recipe)
    content.pop("needs", None)
    swept = content.pop("sweep", {})
    method = flags.get("method")
    if method is None:
        method = content.get("method")
    if method is None:
        method = "moco-v2"
    made_of = method_class(value_of("method", method, text())).options
    known = options_of(made_of)
    said = _flat(content, made_of, method)
    by_flag = {each.flag: name for name, each in known.items()}
    flags = {by_flag.get(name, name): value for name, value in flags.items()}
    for name, values in swept.items():
        if name not in flags:
            among = "; ".join(shown(value) for value in values)
            way = way_out(f"run `objcrop sweep {recipe}`, or give --{name.replace('_', '-')}", f"give {name}")
            raise UsageError(f"recipe {recipe} tries several values of {name} ({among}): {way}.")
    for name, value in flags.items():
        if name not in known:
            having = [other for other in METHODS if name in options_of(METHODS[other].options)]
            if having and value is not None:
                raise cannot_act(name, value, f"it is an option of method {' and '.join(having)}")
            if not having:
                raise unknown(name, known, " of a recipe")
    read = {name: value_of(name, value, known[name].kind) for name, value in flags.items() if value is not None}
    said = {
        name: value_of(name, value, known[name].kind)
        for name, value in said.items()
        if value is not None and name not in flags
    }
    if "steps" in flags and "epochs" not in flags:
        said.pop("epochs", None)
    given = {**said, **read, "method": method}
    made = made_of(**{**made_of.own_defaults, **given})
    made.refuse_idle(read)
    made.refuse_idle(said, " (--set {}=null takes back what a recipe says)")
    return made


def settings(recipe: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Return the values that a recipe's sweep tries, those of its options together; none where it is no sweep.

    Raises:
        UsageError: no such recipe.
        ObjcropError: the file is no recipe.
    """
    swept = _read(recipe).get("sweep", {})
    tried = [dict(zip(swept, values)) for values in itertools.product(*swept.values())]
    return [
        {name: tuple(v) if isinstance(v, list) else v for name, v in setting.items()} for setting in tried if setting
    ]


def name_of(setting: Mapping[str, Any]) -> str:
    """Return a setting in the words of flags, which is its run folder's name: "scale=0.2,1.0"."""
    return " ".join(
        f"{name}={','.join(map(str, value)) if isinstance(value, tuple) else value}" for name, value in setting.items()
    )


def needs_of(recipe: str | os.PathLike[str]) -> dict[str, str]:
    """Return what a recipe says that it needs, by "data" and "boxes".

    Raises:
        UsageError: no such recipe.
        ObjcropError: the file is no recipe.
    """
    return _read(recipe).get("needs", {})


def groups_of(made_of: type[Recipe], method: str) -> dict[str, str]:
    """Return the group of each option in a recipe file; "" for those that stand outside of groups."""
    homes = {name: home_of(made_of, name) for name in options_of(made_of)}
    return {name: home.group or ("" if home is Recipe else method) for name, home in homes.items()}


def _flat(content: Mapping[Any, Any], made_of: type[Recipe], method: str) -> dict[str, Any]:
    """Return what a recipe file says by the options' names."""
    from objcrop.ssl.methods.by_name import METHODS

    known, groups = options_of(made_of), groups_of(made_of, method)
    by_key = {(groups[name], each.key): name for name, each in known.items()}
    found = {}
    for key, value in content.items():
        if ("", key) in by_key:
            found[by_key["", key]] = value
            continue
        if key in METHODS and key != method:
            raise UsageError(f"the recipe has options of method {key}, but its method is {method}; leave them out.")
        if key not in groups.values():
            raise _misplaced(key, by_key)
        if not isinstance(value, Mapping):
            raise UsageError(f"{key} is {shown(value)}, but it must be a table of options, {key}: {{NAME: VALUE}}.")
        here = {place: name for place, name in by_key.items() if place[0] == key}
        for inner, each in value.items():
            if (key, inner) not in here:
                raise _misplaced(inner, by_key if inner in known else here, f" of {key}")
            found[by_key[key, inner]] = each
    return found


def _misplaced(key: Any, by_key: Mapping[tuple[str, str], str], of: str = " of a recipe") -> UsageError:
    """Return the sentence for a key that stands where no option of its name is."""
    homes = [group for group, name in by_key if name == key and group]
    if homes:
        return UsageError(f"{shown(key)} is an option of {homes[0]}: write {homes[0]}: {{{key}: VALUE}}.")
    names = {group if of == " of a recipe" and group else name for group, name in by_key}
    return unknown(key, names, of)


def _read(recipe: str | os.PathLike[str]) -> dict[Any, Any]:
    path = Path(recipe)
    try:
        if not path.is_file():
            path = FOLDER / f"{recipe}.yaml"
        if not path.is_file():
            near = difflib.get_close_matches(os.fspath(recipe), [p.stem for p in FOLDER.glob("*.yaml")], n=3)
            hint = f"near it are {', '.join(near)}; " if near else ""
            way = way_out("`objcrop recipes` lists them", "see ssl/recipes")
            raise UsageError(f"recipe {shown(os.fspath(recipe))} is neither a file nor one of ours: {hint}{way}.")
        content = read_yaml(path.read_text(encoding="utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ObjcropError(f"{path} is not YAML ({error}).") from None
    except OSError as error:
        raise ObjcropError(f"recipe {shown(os.fspath(recipe))} cannot be read ({error.strerror}).") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ObjcropError(f"{path} must hold `group: {{option: value}}` lines.")
    content.pop("resolved", None)  # what a run folder's recipe tells of its run
    swept, needs = content.get("sweep", {}), content.get("needs", {})
    if not isinstance(swept, dict) or not all(isinstance(v, list) and v for v in swept.values()):
        raise ObjcropError(f"the sweep in {path} must be `sweep: {{option: [value, value, …]}}`.")
    if not isinstance(needs, dict) or not all(isinstance(v, str) for v in needs.values()):
        raise ObjcropError(f"the needs in {path} must be `needs: {{data: name, boxes: name}}`.")
    return content


def acting(recipe: Options) -> dict[str, Any]:
    """Return the options that act in a recipe, by name, as YAML and checkpoints can hold them."""
    held = {name: getattr(recipe, name) for name in options_of(type(recipe)) if recipe.acts(name)}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in held.items()}


def as_dict(recipe: Recipe) -> dict[str, Any]:
    """Return the options that act in a recipe by groups, as a recipe file has them."""
    known, groups = options_of(type(recipe)), groups_of(type(recipe), recipe.method)
    held: dict[str, Any] = {"method": recipe.method}
    for name, value in acting(recipe).items():
        if groups[name]:
            held.setdefault(groups[name], {})[known[name].key] = value
    return held
