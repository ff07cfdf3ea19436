"""What a recipe file and flags may say, and which wins."""

import re

import pytest

from objcrop.errors import ObjcropError, UsageError
from objcrop.option import options_of
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.methods.moco_recipe import MoCoRecipe
from objcrop.ssl.methods.recipes import RECIPES
from objcrop.ssl.training.recipe import FOLDER, Recipe, acting, resolve, settings


def written(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    recipe = resolve(
        written(tmp_path, "crops: {policy: obj-obj+shift, shift: [10, 20]}\nmoco-v2: {dim: 64, ema: 0.5}\n"),
        {"ema": 0.9},
    )
    assert (recipe.dim, recipe.ema, recipe.shift, recipe.arch) == (64, 0.9, (10, 20), Recipe().arch)
    assert resolve(None, acting(recipe)) == recipe
    assert resolve(written(tmp_path, ""), {}) == MoCoRecipe()


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_numbers_of_shipped_recipes_are_numbers(name):
    recipe = resolve(name, (settings(name) or [{}])[0])
    numbers = [getattr(recipe, name) for name in ("base_lr", "weight_decay", "ema", "dilate") if hasattr(recipe, name)]
    assert all(type(number) is float for number in numbers) and len(numbers) >= 3


def test_rates_without_a_point_are_numbers_too(tmp_path):
    text = "training: {base_lr: 1e-2, weight_decay: 1e-6}\n"
    recipe = resolve(written(tmp_path, text), {})  # YAML 1.1 reads 1e-2 as text
    assert recipe.learning_rate == pytest.approx(0.01) and recipe.weight_decay == 1e-6


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("training: {base_lr: fast}", "base_lr"),
        ("loading: {batch_size: many}", "batch_size"),
        ("training: {steps: 0}", "steps"),
        ("training: {steps: -4}", "steps"),
        ("crops: {size: 32.5}", "size"),
        ("loading: {batch_sise: 8}", "did you mean 'batch_size'"),
        ("crop: {policy: scene}", "did you mean 'crops'"),
        ("batch_size: 8", "is an option of loading: write loading: {batch_size: VALUE}"),
        ("training: {batch_size: 8}", "is an option of loading"),
        ("crops: scene", "crops is 'scene', but it must be a table of options"),
        ("byol: {ema: 0.5}", "options of method byol, but its method is moco-v2"),
        ("zzzzzz: 8", "known are"),
        ("loading: {batch_size: 24}\nmoco-v2: {queue: 100}", "take 96"),
    ],
)
def test_wrong_values_are_named(tmp_path, text, word):
    with pytest.raises(UsageError, match=word) as caught:
        resolve(written(tmp_path, text), {})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["- a\n- b", "a: [", "just words"])
def test_files_that_are_no_recipe(tmp_path, text):
    with pytest.raises(ObjcropError, match=r"r\.yaml") as caught:
        resolve(written(tmp_path, text), {})
    assert "\n" not in str(caught.value)


def test_an_unknown_recipe_lists_those_there_are():
    with pytest.raises(UsageError, match="moco-v2"):
        resolve("mocco", {})


def test_each_method_has_its_options():
    assert {name: method.options for name, method in METHODS.items()} == RECIPES


def test_the_option_method_names_all_that_there_are():
    said = options_of(Recipe)["method"].says
    assert set(re.findall(r"[\w-]+", said.split(", or one")[0])) - {"or"} == set(METHODS)
