"""What a recipe file and flags may say, and which wins."""

import pytest

from objcrop.errors import ObjcropError, UsageError
from objcrop.ssl.recipe import FOLDER, Recipe, as_dict, resolve


def written(tmp_path, text):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    return path


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    recipe = resolve(written(tmp_path, "dim: 64\nema: 0.5\nshift: [10, 20]\n"), {"ema": 0.9})
    assert (recipe.dim, recipe.ema, recipe.shift, recipe.arch) == (64, 0.9, (10, 20), Recipe().arch)
    assert resolve(None, {**as_dict(recipe)}) == recipe
    assert resolve(written(tmp_path, ""), {}) == Recipe()


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.yaml")))
def test_numbers_of_shipped_recipes_are_numbers(name):
    recipe = resolve(name, {})
    assert all(type(getattr(recipe, field)) is float for field in ("base_lr", "weight_decay", "ema", "dilate"))


def test_rates_without_a_point_are_numbers_too(tmp_path):
    recipe = resolve(written(tmp_path, "base_lr: 1e-2\nweight_decay: 1e-6\n"), {})  # YAML 1.1 reads 1e-2 as text
    assert recipe.learning_rate == pytest.approx(0.01) and recipe.weight_decay == 1e-6


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("base_lr: fast", "base_lr"),
        ("batch_size: many", "batch_size"),
        ("steps: 0", "steps"),
        ("steps: -4", "steps"),
        ("size: 32.5", "size"),
        ("batch_sise: 8", "did you mean 'batch_size'"),
        ("zzzzzz: 8", "known are"),
        ("batch_size: 24\nqueue: 100", "take 96"),
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
