"""The experiment: its statistics against scipy, all of it in miniature, and what goes on after it was broken off."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

import objcrop.effect as effect
from objcrop.cli import main
from objcrop.sample_scenes import SceneKind


@given(st.floats(0, 50), st.integers(1, 40))
def test_p_is_students(t, degrees):
    assert effect.two_sided_p(t, degrees) == pytest.approx(2 * stats.t.sf(t, degrees), rel=1e-6, abs=1e-12)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8))
def test_gains_are_paired(pairs):
    first, second = np.array(pairs).T
    found = effect.paired(first, second)
    gains = first - second
    assert found["gain"] == pytest.approx(gains.mean(), abs=1e-5)
    if found["p"] is not None and gains.std() > 1e-6:
        asked = stats.ttest_rel(first, second)
        low, high = asked.confidence_interval(0.95)
        assert found["p"] == pytest.approx(asked.pvalue, rel=1e-2, abs=1e-9)
        assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-3 + 1e-3 * (high - low))


def test_one_pair_has_no_interval():
    assert effect.paired([0.5], [0.25]) == {"gain": 0.25, "low": None, "high": None, "p": None}


@pytest.fixture
def miniature(monkeypatch):
    """A few scenes, two steps, and no process each, which would load PyTorch anew; the list holds what was run."""
    ran = []

    def in_this_process(waiting, at_once):
        for stage in waiting:
            stage.folder.mkdir(parents=True, exist_ok=True)
            main(stage.command)
            effect_stage._note_done(stage, 0)
            ran.append(stage.name)
            yield stage, None

    import objcrop.ssl.reproduction.stage as effect_stage

    kind = SceneKind(size=(96, 64), objects=(1, 3), sides=(0.3, 0.6), classes=3)
    monkeypatch.setattr(effect, "DRAWN", {name: (kind, 24, seed) for seed, name in enumerate(effect.DRAWN)})
    monkeypatch.setattr(effect, "OPTIONS", {**effect.OPTIONS, "steps": 2, "batch_size": 8})
    monkeypatch.setattr(effect, "run_together", in_this_process)
    return ran


def test_all_of_it_in_miniature_and_again(miniature, tmp_path, capsys):
    main_words = ["demo", "--effect", "--seeds", "1", "-o", str(tmp_path)]
    main(main_words)
    assert len(miniature) == 2 * 2 * 2 + 1 and miniature[-1] == "untrained"
    result = json.loads((tmp_path / "effect.json").read_text())
    for world in ("scenes", "iconic"):
        runs = result["worlds"][world]["linear_map"]
        assert {policy: len(of_policy) for policy, of_policy in runs.items()} == {"scene-scene": 1, "within-box": 1}
        gains = np.subtract(runs["within-box"], runs["scene-scene"])
        assert result["worlds"][world]["gain"] == pytest.approx(gains.mean(), abs=1e-5)
    assert (tmp_path / "effect.png").stat().st_size > 10_000
    said = capsys.readouterr().out
    assert "untrained" in said and "effect.html" in said and "effect.html" in said.splitlines()[-1]

    miniature.clear()
    (next((tmp_path / "stages").glob("iconic-within-box-101-probe-*")) / "stage.json").unlink()
    main(main_words)
    assert miniature == ["iconic-within-box-101"]
    assert json.loads((tmp_path / "effect.json").read_text()) == result


@pytest.mark.slow
def test_boxes_teach_more_of_small_objects(tmp_path):
    """One seed of the real thing, all four runs of it: far more than seeds differ by, and not so on iconic images."""
    result = effect.run_effect(tmp_path, seeds=1, console=Console(quiet=True))
    scenes, iconic = (result["worlds"][world] for world in ("scenes", "iconic"))
    assert scenes["gain"] > 0.03 and scenes["gain"] > iconic["gain"]
    for world in (scenes, iconic):
        assert world["linear_map"]["within-box"][0] > result["untrained"] + 0.1


@pytest.mark.parametrize(
    "words, says",
    [
        (["--seeds", "3"], "--seeds cannot act without --effect"),
        (["--effect", "--scenes", "100"], "--scenes cannot act beside --effect"),
        (["--effect", "--steps", "2"], "--steps cannot act beside --effect"),
    ],
)
def test_what_cannot_act_is_refused(words, says, tmp_path, capsys):
    with pytest.raises(SystemExit) as left:
        main(["demo", *words, "-o", str(tmp_path / "out")])
    assert left.value.code == 2 and says in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out" / "data").exists()


def test_picture_of_a_result_without_an_interval():
    of_world = {"linear_map": {"scene-scene": [0.4], "within-box": [0.5]}, **effect.paired([0.5], [0.4])}
    result = {"worlds": {"scenes": of_world, "iconic": of_world}, "untrained": 0.2, "chance": 0.1}
    assert len(effect.effect_figure(result).axes) == 2
    assert effect.in_lines(result)[0] == "scenes   scene-scene 40.0, within-box 50.0: +10.0 mAP"
