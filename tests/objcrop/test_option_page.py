"""The page of options has each once, where it is declared."""

from dataclasses import dataclass
from types import SimpleNamespace

from children import ROOT

from objcrop.dali_pipes.loading import ViewOptions
from objcrop.option import option, options_of
from objcrop.option_page import option_page
from objcrop.option_value import whole
from objcrop.ssl.evaluation.probe_options import ProbeOptions
from objcrop.ssl.methods.by_name import METHODS
from objcrop.ssl.training.recipe import Recipe
from objcrop.ssl.transfer.by_name import TASKS


@dataclass(frozen=True)
class Bank(Recipe):
    """One more option, and another default."""

    own_defaults = {"base_lr": 0.125}  # noqa: RUF012

    bank: int = option(7, whole(1, 9), "rows of a | bank")


def test_every_option_is_there_and_a_new_one_comes_by_itself(monkeypatch):
    monkeypatch.setitem(METHODS, "mine", SimpleNamespace(options=Bank))
    page = option_page()
    for made_of in (ViewOptions, *(method.options for method in METHODS.values())):
        for name, each in options_of(made_of).items():
            assert f"| `{name}`" in page and each.says.replace("|", "\\|") in page, name
    once = {*options_of(ViewOptions), *options_of(Recipe), *options_of(ProbeOptions)}
    before, transfer = page.split("## Transfer")  # whose options have the names of pretraining's
    assert all(before.count(f"| `{name}`") == 1 for name in once)
    for task in TASKS.values():
        assert all(f"| `{name}`" in before + transfer for name in options_of(task.options))
    assert "## Method mine" in page and "| `bank` | `7` | rows of a \\| bank |" in page
    assert "Of other options it has defaults of its own: `base_lr` `0.125`." in page
    assert "`backend`, `--loader`" in page and "`crops`, `policy` in a recipe" in page


def test_the_page_in_the_repository_is_what_the_command_makes():
    assert (ROOT / "docs/options.md").read_text(encoding="utf-8") == option_page()
