"""The climb finds the best of each option, leaves defaults where nothing is clearly better, and outlives what dies."""

import io
from pathlib import Path

from rich.console import Console

from objcrop.bench import tune as tuning
from objcrop.bench.rivals.wanted import Wanted
from objcrop.bench.table import print_tried
from objcrop.bench.tune import bench_tune, climb, options_to_try
from objcrop.child_process import ChildDied
from objcrop.decoding_probe import Probed
from objcrop.ssl.training.recipe import Recipe


def test_a_hill_is_climbed_and_chance_is_not_followed():
    turn = {1: 0, 2: 0, 3: 0}

    def measured(options):
        threads, prefetch = options["threads"], options["prefetch"]
        turn[prefetch] += 1
        # 3 is a third faster, but in one turn in four it is slower: chance.
        by_chance = 30 if prefetch == 3 and turn[prefetch] % 4 else 0
        return 100 - 10 * abs(threads - 4) - 20 * (prefetch == 1) + by_chance - (prefetch == 3), 7

    tried, best = climb({"threads": [8, 4, 2], "prefetch": [2, 1, 3]}, measured, 4)
    assert best == {"threads": 4, "prefetch": 2}
    rates = {name: {value: row["images_per_s"] for value, row in trials.items()} for name, trials in tried.items()}
    assert rates["threads"] == {"8": [60] * 4, "4": [100] * 4, "2": [80] * 4}
    assert rates["prefetch"] == {"2": [100] * 4, "1": [80] * 4, "3": [129, 129, 129, 99]}
    assert tried["prefetch"]["3"]["gpu_memory_mib"] == 7


def test_what_is_a_little_faster_every_time_does_not_win():
    assert climb({"prefetch": [2, 3]}, lambda options: (100 + options["prefetch"], 0), 3)[1] == {"prefetch": 2}


def test_a_value_that_kills_its_process_is_a_row_and_not_the_end():
    """Once everything measured so far was lost with it."""
    asked, reports = [], []

    def measured(options):
        asked.append(tuple(options.values()))
        if options["decode"] == "union":
            raise ChildDied("killed by SIGSEGV")
        return 100 + 50 * options["hw_decoder_load"], 7

    def report(tried, best):
        reports.append((len(tried), dict(best)))

    tried, best = climb({"decode": ["whole", "union"], "hw_decoder_load": [0.0, 0.5]}, measured, 2, report=report)
    assert best == {"decode": "whole", "hw_decoder_load": 0.5}
    assert asked.count(("union", 0.0)) == 1  # and not again in the second turn
    assert tried["decode"]["union"] == {"images_per_s": [], "gpu_memory_mib": 0, "trouble": "killed by SIGSEGV"}
    assert tried["hw_decoder_load"]["0.5"]["images_per_s"] == [125, 125]
    assert [n for n, _ in reports] == [1] * 4 + [2] * 5 and reports[-1][1] == best


def test_where_the_default_dies_the_best_of_the_others_is_taken():
    def measured(options):
        if options["threads"] == 8:
            raise ChildDied("no word for 120 s")
        return {4: 100, 2: 150}[options["threads"]], 0

    assert climb({"threads": [8, 4, 2]}, measured, 2)[1] == {"threads": 2}
    assert climb({"threads": [8, 4]}, measured, 2)[1] == {"threads": 4}
    assert climb({"threads": [8]}, measured, 2)[1] == {"threads": 8}


def test_the_fastest_is_not_taken_where_its_pixels_are_wrong(monkeypatch):
    def wrong_above(device, ways):
        return [Probed(*ways[0], moved=0.1 if ways[0].hw_decoder_load > 0.6 else 0.0)]

    def measured(options):
        return 100 + 10 * options["hw_decoder_load"] + 50 * (options["threads"] == 4), 0

    options = {"threads": [8, 4], "decode": ["whole"], "hw_decoder_load": [0.0, 0.4, 0.9]}
    monkeypatch.setattr(tuning, "probe_decoding", wrong_above)
    tried, best = climb(options, measured, 2, refused=tuning.unsafe_decoding)
    assert best == {"threads": 4, "decode": "whole", "hw_decoder_load": 0.4}
    assert tried["hw_decoder_load"]["0.9"]["trouble"].startswith("wrong pixels")
    monkeypatch.setattr(tuning, "probe_decoding", lambda device, ways: [Probed(*ways[0], trouble="killed by SIGSEGV")])
    tried, best = climb(options, measured, 2, refused=tuning.unsafe_decoding)
    assert best["hw_decoder_load"] == 0.0 and tried["hw_decoder_load"]["0.4"]["trouble"] == "killed by SIGSEGV"


def test_what_is_tried():
    assert options_to_try(1, "cpu") == {"threads": [1], "prefetch": [2, 1, 3, 4]}
    on_gpu = options_to_try(16, "cuda")
    # Safe first, whatever is reported of a GPU's decoders.
    assert on_gpu["threads"] == [16, 8, 4, 2] and on_gpu["decode"] == ["whole", "union"]
    assert all(on_gpu[name][0] == getattr(Recipe(), name) for name in on_gpu if name not in ("threads", "decode"))


def test_few_threads_beside_a_hardware_decoder_are_found():
    """As on an H200. Once threads were settled first, at as many as the processor's decoding wants."""

    def measured(options):
        load, threads = options["hw_decoder_load"], options["threads"]
        return 330 * threads * (1 - load) + load * (10_500 - 390 * (threads - 4) if threads >= 4 else 7_000), 7

    best = climb(options_to_try(16, "cuda"), measured, 2)[1]
    assert best["hw_decoder_load"] == 1.0 and best["threads"] == 4


class Here:
    """A child that is none, which takes ten seconds less; test_smoke.py has a real one."""

    def __init__(self, function):
        self.function = function

    def __enter__(self):
        return self.function

    def __exit__(self, *_):
        pass


def test_tiny(photos, monkeypatch):
    monkeypatch.setattr(tuning, "Child", Here)
    catalog, boxes = photos
    wanted = Wanted(catalog, boxes, "obj-obj", 16, 8, "cpu", 0, 2, Path("."))
    reports = []
    found = bench_tune(wanted, images=8, repeats=1, report=reports.append)
    assert set(found["best"]) == {"threads", "prefetch"} and found["verdict"][0].startswith("load_views(…, threads=")
    assert all(row["images_per_s"] and not row["trouble"] for rows in found["tried"].values() for row in rows.values())
    assert len(reports) == (2 + 1) + (4 + 1) and reports[-1] == found


def test_the_table_shows_what_died():
    dead = {"images_per_s": [], "gpu_memory_mib": 0, "trouble": "killed by SIGSEGV"}
    good = {"images_per_s": [5000.0, 5200.0], "gpu_memory_mib": 900, "trouble": ""}
    console = Console(file=io.StringIO(), width=120)
    tried = {"decode": {"whole": good, "union": dead}}
    print_tried({"device": "cuda", "tried": tried, "best": {"decode": "whole"}}, console)
    rows = [line.split() for line in console.file.getvalue().splitlines()]
    assert ["decode", "whole", "5,100", "(5,000–5,200)", "900", "←"] in rows
    assert ["decode", "union", "0", "killed", "by", "SIGSEGV"] in rows
