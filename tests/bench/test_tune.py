"""The climb finds the best of each option, and leaves defaults where nothing is clearly better."""

from pathlib import Path

from objcrop.bench.rivals.wanted import Wanted
from objcrop.bench.tune import climb, options_to_try, tune


def test_a_hill_is_climbed_and_chance_is_not_followed():
    def rate(options):
        return 100 - 10 * abs(options["threads"] - 4) + {2: 0, 1: -20, 3: 1}[options["prefetch"]]

    tried, best = climb({"threads": [8, 4, 2], "prefetch": [2, 1, 3]}, rate)
    assert best == {"threads": 4, "prefetch": 2}  # 3 is 1 % better: chance
    assert tried == {"threads": {"8": 60.0, "4": 100.0, "2": 80.0}, "prefetch": {"2": 100.0, "1": 80.0, "3": 101.0}}


def test_what_is_tried():
    assert options_to_try(1, "cpu") == {"threads": [1], "prefetch": [2, 1, 3, 4]}
    on_gpu = options_to_try(16, "cuda")
    assert on_gpu["threads"] == [16, 8, 4, 2] and on_gpu["decode"] == ["union", "whole"]


def test_tiny(photos):
    catalog, boxes = photos
    wanted = Wanted(catalog, boxes, "obj-obj", 16, 8, "cpu", 0, 2, Path("."))
    found = tune(wanted, images=8, repeats=1)
    assert set(found["best"]) == {"threads", "prefetch"} and found["verdict"][0].startswith("load_views(…, threads=")
