"""Every value of a recipe is of its field's type and range and acts, or one sentence says what is wrong."""

import datetime
import inspect
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import typer
import yaml

import objcrop
from objcrop.cli import app, main
from objcrop.dali_pipes.crops import Crops
from objcrop.dali_pipes.load_views import load_views
from objcrop.dali_pipes.loading import Loading, ViewOptions
from objcrop.errors import ObjcropError, UsageError
from objcrop.option import home_of, option, options_of, takes_options
from objcrop.option_value import whole
from objcrop.ssl.evaluation.probe_options import ProbeOptions
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.methods.recipes import RECIPES
from objcrop.ssl.training.options import Training
from objcrop.ssl.training.recipe import Recipe, acting, as_dict, resolve

# Options that some method, optimiser or loader has no use for: a value, and the settings in which it acts.
IN_METHODS = {
    "temperature": (0.15, {"moco-v2", "densecl", "simclr", "swav", "cmc"}),
    "queue": (512, {"moco-v2", "densecl", "swav"}),
    "dim": (64, {"moco-v2", "byol", "densecl", "soco", "simclr", "swav", "cmc"}),
    "hidden": (64, {"moco-v2", "byol", "densecl", "soco", "simclr", "swav"}),
    "ema": (0.5, {"moco-v2", "byol", "densecl", "soco"}),
    "heads": ("shared", {"moco-v2", "byol", "densecl"}),
    "dense_weight": (0.7, {"densecl"}),
    "epsilon": (0.03, {"swav"}),
    "negatives": (7, {"cmc"}),
    "loss": ("softmax", {"cmc"}),
    "prototypes": (30, {"swav"}),
    **{name: (value, {"soco"}) for name, value in dict(shared_boxes=2, box_jitter=0.2, cutout=0.0).items()},
    **{name: (64, {"soco"}) for name in ("pyramid_width", "region_width")},
    "single_label": (True, {"supervised"}),
    "base_lr": (0.5, set(METHODS)),
    "bn_groups": (2, set(METHODS) - {"mae"}),
    "mask": (0.5, {"mae"}),
    "norm_pix": (False, {"mae"}),
    "decoder_dim": (64, {"mae"}),
    "decoder_depth": (2, {"mae"}),
    "accumulate": (2, set(METHODS) - {"simclr", "swav", "cmc", "soco"}),
    "warmup_epochs": (1, set(METHODS)),
}


def test_an_option_stands_in_one_place():
    """No option's name is declared twice: groups are put together, and one that two had would hide one of them."""
    groups = [Crops, Loading, Training, Recipe, ViewOptions, *(m.options for m in METHODS.values())]
    homes = {}
    for group in groups:
        for name in options_of(group):
            homes.setdefault(name, set()).add(home_of(group, name))
    assert all(len(found) == 1 for found in homes.values()), homes
    declared = [name for group in {group for found in homes.values() for group in found} for name in own_of(group)]
    assert sorted(declared) == sorted(homes) and len(declared) > 50
    again = {name for name in options_of(ProbeOptions) if home_of(ProbeOptions, name) not in homes.get(name, ())}
    assert again & set(homes) == {"size", "single_label"}  # of what is measured, not of what is trained
    assert all(option.says and option.says[-1] != "." for group in groups for option in options_of(group).values())


def own_of(group):
    return [name for name in options_of(group) if home_of(group, name) is group]


def test_a_new_option_appears_everywhere(tmp_path, monkeypatch):
    """In recipe, file, flag, help and signature, from the one line that declares it."""

    @dataclass(frozen=True)
    class More(METHODS["byol"].options):
        novelty: int = option(3, whole(1, 9), "how new it is")

    monkeypatch.setattr(METHODS["byol"], "options", More)
    monkeypatch.setitem(RECIPES, "byol", More)
    recipe = resolve(None, {"method": "byol", "novelty": "4"})
    assert recipe.novelty == 4 and as_dict(recipe)["byol"]["novelty"] == 4
    (tmp_path / "r.yaml").write_text("method: byol\nbyol: {novelty: 5}\n")
    assert resolve(tmp_path / "r.yaml", {}).novelty == 5
    with pytest.raises(UsageError, match="novelty is 10, but it must be a whole number from 1 to 9"):
        resolve(None, {"method": "byol", "novelty": 10})
    with pytest.raises(UsageError, match="it is an option of method byol"):
        resolve(None, {"novelty": 4})
    command = typer.main.get_command(app).get_command(None, "pretrain")
    assert "--novelty" in {flag for parameter in command.params for flag in parameter.opts}

    @takes_options(More)
    def call(first, **options):
        """Do.

        Args:
            first: one.
            **options: more.
        """

    assert "novelty: how new it is; default: 3." in call.__doc__ and "**options" not in call.__doc__
    assert inspect.signature(call).parameters["novelty"].default == 3


def test_load_views_has_its_options_by_name():
    parameters = inspect.signature(load_views).parameters
    assert {*options_of(ViewOptions), "catalog", "boxes", "bad_images", "rank", "world_size"} == set(parameters)
    assert all(f"\n        {name}: " in load_views.__doc__ for name in parameters)
    assert set(inspect.signature(objcrop.load_views).parameters) == set(parameters)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", IN_METHODS)
def test_an_option_acts_in_a_method_or_is_refused(name, method):
    value, acts = IN_METHODS[name]
    flags = {"method": method, "crops": "obj-scene", name: value}
    if method in acts:
        recipe = resolve(None, flags)
        assert acting(recipe)[name] == value != acting(resolve(None, {**flags, name: None}))[name]
        return
    with pytest.raises(UsageError, match=f"{name} .* cannot act here: ") as caught:
        resolve(None, flags)
    assert "\n" not in str(caught.value)
    assert name not in acting(resolve(None, {k: v for k, v in flags.items() if k != name}))


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        (dict(crops="scene-scene", scale_min=0.05), "scale_min"),
        (dict(crops="scene-scene", dilate=0.1), "dilate"),
        (dict(crops="scene-scene", heads="per-role"), "heads"),
        (dict(crops="scene-scene", max_boxes=3), "max_boxes"),
        (dict(optimiser="adam", momentum=0.9), "momentum"),
        (dict(loader="torch", threads=2), "threads"),
        (dict(backend="dali", workers=2), "workers"),
        (dict(backend="dali", colour="pil"), "colour"),
        (dict(backend="torch", workers=0, prefetch=2), "prefetch"),
        (dict(device="cpu", decode="whole"), "decode"),
        (dict(backend="torch", cache="host"), "cache"),
        (dict(cache_side=300), "cache_side"),
        (dict(steps=10, epochs=3), "epochs"),
        (dict(single_label=True), "single_label"),
    ],
    ids=str,
)
def test_what_cannot_act_is_refused(flags, name):
    with pytest.raises(UsageError, match=f"^{name} .* cannot act here: .*leave it out"):
        resolve(None, flags)


def test_a_flag_takes_back_what_a_recipe_says(tmp_path):
    (tmp_path / "r.yaml").write_text("crops: {policy: obj-obj+dilate, dilate: 0.2}\ntraining: {epochs: 800}\n")
    with pytest.raises(UsageError, match="--set dilate=null takes back what a recipe says"):
        resolve(tmp_path / "r.yaml", {"crops": "obj-obj"})
    assert resolve(tmp_path / "r.yaml", {"crops": "obj-obj", "dilate": None}).crops == "obj-obj"
    assert resolve(tmp_path / "r.yaml", {"steps": 3}).steps == 3  # to try a published recipe
    assert resolve(tmp_path / "r.yaml", {"dilate": 0.3}).dilate == 0.3


RESOLVED = [
    {},
    {"method": "byol"},
    {"method": "supervised"},
    {"crops": "obj-obj+shift", "shift": (5, 9), "steps": 7},
    {"crops": "obj-scene", "random_crop": True, "backend": "torch", "workers": 0},
    {"method": "byol", "random_crop": False, "device": "cuda", "cache": "device"},
    {"seed": 2**64 - 1, "optimiser": "adam"},
]


@pytest.mark.parametrize("flags", RESOLVED, ids=str)
def test_a_resolved_recipe_holds_what_acts_and_can_be_read_again(flags, tmp_path):
    recipe = resolve(None, flags)
    held = as_dict(recipe)
    assert set(acting(recipe)) == {name for name in options_of(type(recipe)) if recipe.acts(name)}
    # As a run folder keeps it.
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**held, "resolved": {"scale_min": 0.3, "shift": [1, 2]}}))
    assert resolve(tmp_path / "recipe.yaml", {}) == recipe
    assert resolve(None, acting(recipe)) == recipe


@pytest.mark.parametrize("pair", ["0.08,1", "0.08, 1", [0.08, 1], (0.08, 1.0), ["8e-2", 1]])
def test_two_numbers_are_read_however_they_are_written(pair):
    assert resolve(None, {"scale": pair}).scale == (0.08, 1.0)


def test_every_seed_of_64_bits_is_taken_exactly():
    draw = random.Random(0)
    for seed in [2**64 - 1, 2**63, 2**53 + 1, 0] + [draw.getrandbits(63) for _ in range(2000)]:
        assert resolve(None, {"seed": seed}).seed == seed
        assert resolve(None, {"seed": str(seed)}).seed == seed
    for seed in (-1, 2**64, 0.5, 1e300, "1e5", True, None.__class__, np.float64("nan")):
        with pytest.raises(UsageError, match=r"seed is .* but it must be a whole number from 0 to 2\*\*64 - 1"):
            resolve(None, {"seed": seed})


FILES = {
    "an alias": ("crops: &x {size: 32}\nloading: *x", 1),
    "twice": ("crops: {size: 32}\ncrops: {size: 64}", 1),
    "twice within": ("crops: {size: 32, size: 64}", 1),
    "no number": ("method: !!int abc", 1),
    "no date": ("crops: {size: 2020-99-99}", 1),
    "no truth": ("training: {compile: !!bool maybe}", 1),
    "deep": ("crops: {size: " + "[" * 3000 + "]" * 3000 + "}", 1),
    "wide": ("crops: {size: [" + "[1]," * 3000 + "]}", 2),
    "laughs": ("a: &a [1,1]\nb: &b [*a,*a]\nc: [*b,*b]", 1),
    "many digits": ("crops: {size: " + "9" * 5000 + "}", None),
    "hex": ("crops: {size: 0x" + "f" * 3000 + "}", 2),
    "a number as key": ("1: 2", 2),
    "a date as key": ("2020-01-01: 1", 2),
    "null as key": ("~: 1", 2),
    "a list as key": ("? [1, 2]\n: 3", 1),
    "a control character": ("crops: {size: 1\x00}", 1),
    "half a surrogate": ('loading: {device: "\\ud800"}', 2),
    "a table for a number": ("crops: {scale: {low: 1}}", 2),
    "a word for a table": ("crops: obj-obj", 2),
    "a list for a table": ("training: [epochs]", 2),
    "in no group": ("size: 32", 2),
    "in another group": ("training: {size: 32}", 2),
    "of another method": ("byol: {ema: 0.5}", 2),
    "a key within that is none": ("crops: {1: 2}", 2),
    "a set": ("!!set {size}", 1),
    "binary": ("method: !!binary aGVsbG8=", 2),
    "a tag of Python": ("method: !!python/object/apply:os.getcwd []", 1),
    "infinite": ("training: {weight_decay: -.inf}", 2),
    "not a number": ("training: {momentum: .nan}", 2),
    "negative": ("training: {base_lr: -1}", 2),
    "a method that is none": ("method: mocco", 2),
    "a module that is none": ("method: no_such_module:Method", 2),
    "no method of a module": ("method: json:JSONDecoder", 2),
}


@pytest.mark.parametrize("name", FILES)
def test_a_broken_file_is_one_sentence(name, tmp_path, capsys):
    text, code = FILES[name]
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(SystemExit) as stop:
        main(["pretrain", "--recipe", str(tmp_path / "r.yaml"), "--catalog", "c.arrow", "-o", str(tmp_path / "run")])
    said = capsys.readouterr().err
    assert stop.value.code in ((1, 2) if code is None else (code,)), said
    assert len(said.splitlines()) == 1 and len(said) < 800 and not (tmp_path / "run").exists()


STRANGE = [
    *(None, True, False, 0, 1, -1, 2**31, 2**63, 2**64, 10**400, -(10**30), 0.0, -0.0, 0.5, 1e-300, 1e300),
    *(float("inf"), float("-inf"), float("nan"), "", "auto", "nan", "1e400", "1e-2", "٣", "5²", "1_000", " 8", "0x10"),
    *("\ud800", "a\nb", "x" * 10_000, [], [1], [0.1, 0.9], [0.9, 0.1], [[]], {}, {"a": 1}, (1, 2, 3), b"8", set()),
    *(datetime.date(2020, 1, 1), np.int64(8), np.float32(0.25), np.bool_(True), np.array([1, 2]), object()),
]


ALL = sorted({name for method in METHODS.values() for name in options_of(method.options)})


def test_mutated_recipes_are_recipes_or_sentences():
    draw = random.Random(7)
    read = refused = 0
    for _ in range(600):
        base = acting(resolve(None, draw.choice(RESOLVED)))
        for _ in range(draw.choice((1, 1, 1, 2, 4))):
            match draw.randrange(4):
                case 0:
                    base[draw.choice(ALL)] = draw.choice(STRANGE)
                case 1:
                    base[draw.choice(list(base))] = draw.choice([*STRANGE, *base.values()])
                case 2:
                    base.pop(draw.choice(list(base)))
                case 3:
                    key = draw.choice([1, None, 2.5, "szie", "", "\ud800", ("a",), datetime.date(2020, 1, 1)])
                    if draw.random() < 0.2:
                        base[key] = draw.choice(STRANGE)
        try:
            recipe = resolve(None, base)
        except ObjcropError as error:
            said = str(error)
            assert "\n" not in said and said.isprintable() and len(said) < 1200 and said[-1] in ".?"
            refused += 1
            continue
        read += 1
        assert resolve(None, acting(recipe)) == recipe and 0 <= recipe.learning_rate < float("inf")
    assert read > 50 and refused > 150


def test_one_range_of_seeds_everywhere(photos, tmp_path, capsys):
    from objcrop.proposals import propose
    from objcrop.sample_scenes import draw_scene, draw_scenes

    catalog, _ = photos
    catalog.save(tmp_path / "c.arrow")
    large = (2**64 - 1, 2**64 - 2, 2**63 + 1)
    assert len({propose(catalog, "random", seed=seed).fingerprint for seed in large}) == 3
    assert len({draw_scene(seed, 0)[0].tobytes() for seed in large}) == 3
    for seed in (-1, 2**64, 1.5):
        with pytest.raises(UsageError, match="seed is"):
            propose(catalog, "random", seed=seed)
        with pytest.raises(UsageError, match="seed is"):
            draw_scenes(tmp_path / "scenes", 4, seed=seed)
    torch.manual_seed(2**64 - 1)
    command = ["propose", str(tmp_path / "c.arrow"), "--method", "random", "-o", str(tmp_path / "b.arrow"), "--seed"]
    main([*command, str(2**64 - 1)])
    for seed in (2**64, -1):
        with pytest.raises(SystemExit) as stop:
            main([*command, str(seed)])
        assert stop.value.code == 2 and "--seed" in capsys.readouterr().err
