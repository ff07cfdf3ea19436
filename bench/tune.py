"""Find how a loader should stand on this machine and these files: `objcrop bench loader --tune`.

    objcrop bench loader --tune --catalog photos.arrow --boxes boxes.arrow --device cuda --batch-size 256

One option after the other (on a GPU what is decoded and by whom, threads, batches kept ready, on a GPU the memory to
decode in) is tried at each of its values, the others standing at the best so far. The values take turns, `repeats`
times; one wins that is faster than the default in every turn, and by more than 2 % in the median: less is chance. The
last lines are what to put into one's own call.

All is measured in a process of its own, which begins with what is safe everywhere: a value at which it dies has that in
its row, and another process goes on. A way of decoding that wins must pass the doctor's probe besides (objcrop/
decoding_probe.py), since the fastest may be one that makes wrong pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypedDict

import numpy as np

from objcrop.bench.contenders import ours
from objcrop.bench.loader import lap
from objcrop.bench.rivals.wanted import Wanted
from objcrop.child_process import Child, ChildDied
from objcrop.decoding_probe import Way, probe_decoding

CLEARLY = 1.02


class Trial(TypedDict):
    """What a value gave in each turn, images per second; GPU memory as in bench/loader.py, 0 on a CPU.

    `trouble` says how it died, or why it must not be used; "" where neither.
    """

    images_per_s: list[float]
    gpu_memory_mib: int
    trouble: str


Tried = dict[str, dict[str, Trial]]


def options_to_try(threads: int, device: str) -> dict[str, list[Any]]:
    """Return each option's values, the default first, which is safe on every GPU.

    Args:
        threads: the number of cores.
        device: "cpu" or "cuda".
    """
    fewer = [threads >> shift for shift in (1, 2, 3) if threads >> shift]
    of_both: dict[str, list[Any]] = {"threads": [threads, *fewer], "prefetch": [2, 1, 3, 4]}
    if device != "cuda":
        return of_both
    # The more threads decode beside it, the smaller the hardware decoder's best share: NVIDIA's own bench of DALI gives
    # it .12 beside 70 threads of a Hopper machine. Threads come after it: with all images its own, an H200 gave 5,800 a
    # second with 16 threads and 10,500 with 4.
    by_whom: dict[str, list[Any]] = {"hw_decoder_load": [0.0, 0.12, 0.25, 0.4, 0.65, 0.9, 1.0]}
    return {"decode": ["whole", "union"], **by_whom, **of_both, "decoder_padding": [16, 0, 4, 64]}


def bench_tune(
    wanted: Wanted, *, images: int, repeats: int, report: Callable[[dict[str, Any]], None] = lambda result: None
) -> dict[str, Any]:
    """Find the best options.

    Args:
        wanted: the data and the views.
        images: in each measurement.
        repeats: turns.
        report: is handed the result so far after every measurement.

    Returns:
        `tried`: of each option and value a `Trial`; `best`: the values; `verdict`: how to use them.
    """

    def result(tried: Tried, best: dict[str, Any]) -> dict[str, Any]:
        given = ", ".join(f"{name}={value!r}" for name, value in best.items())
        flags = " ".join(f"--set {name}={value}" for name, value in best.items())
        lines = [f"load_views(…, {given})", f"objcrop pretrain … {flags}"]
        return {"device": wanted.device, "tried": tried, "best": best, "verdict": lines}

    with Child(measure) as child:
        found = climb(
            options_to_try(wanted.threads, wanted.device),
            lambda options: child(wanted, options, images),
            repeats,
            refused=unsafe_decoding,
            report=lambda tried, best: report(result(tried, best)),
        )
    return result(*found)


def measure(wanted: Wanted, options: dict[str, Any], images: int) -> tuple[float, int]:
    """Be a child: return images per second of a choice of all options, and the GPU memory it takes, MiB."""
    others = {name: value for name, value in options.items() if name != "threads"}
    asked = replace(wanted, threads=options["threads"])
    taken = lap(ours(**others).batches, asked, max(images // wanted.batch_size, 1))
    return taken.watch.summary()["images_per_s"], round(taken.gpu_memory / 2**20)


def unsafe_decoding(name: str, options: dict[str, Any]) -> str:
    """Return why a choice must not be used, however fast it is, "" where it may.

    Args:
        name: of the option it changes; only a way of decoding can be unsafe.
        options: the choice.
    """
    if name not in Way._fields:
        return ""
    (way,) = probe_decoding("cuda", [Way(options["decode"], options["hw_decoder_load"])])
    return "" if way.safe else way.trouble or "wrong pixels, see `objcrop doctor`"


def climb(
    options: dict[str, list[Any]],
    measured: Callable[[dict[str, Any]], tuple[float, int]],
    repeats: int,
    refused: Callable[[str, dict[str, Any]], str] = lambda name, options: "",
    report: Callable[[Tried, dict[str, Any]], None] = lambda tried, best: None,
) -> tuple[Tried, dict[str, Any]]:
    """Settle one option after the other.

    Args:
        options: values of each, the default first.
        measured: images per second of a choice of all, and the GPU memory it takes, MiB; may raise `ChildDied`.
        repeats: turns.
        refused: why a choice that won must not be used, "" where it may; asked with the option that it changes.
        report: is handed what was tried so far, and the best so far, after every measurement.

    Returns:
        Of each option the trial of each value, by its text; and the best value of each.
    """
    best = {name: values[0] for name, values in options.items()}
    tried: Tried = {}
    for name, values in options.items():
        trials = [Trial(images_per_s=[], gpu_memory_mib=0, trouble="") for _ in values]
        tried[name] = dict(zip(map(str, values), trials))
        for _ in range(repeats):
            for value, trial in zip(values, trials):
                if not trial["trouble"]:
                    try:
                        rate, memory = measured({**best, name: value})
                        trial["images_per_s"].append(rate)
                        trial["gpu_memory_mib"] = max(trial["gpu_memory_mib"], memory)
                    except ChildDied as died:
                        trial["trouble"] = str(died)
                    report(tried, best)
        for place in _faster(trials):
            trials[place]["trouble"] = refused(name, {**best, name: values[place]})
            if not trials[place]["trouble"]:
                best[name] = values[place]
                break
        report(tried, best)
    return tried, best


def _faster(trials: list[Trial]) -> list[int]:
    """Return which values are clearly faster than the default, the fastest first; where that died, than the next."""
    living = [place for place, trial in enumerate(trials) if not trial["trouble"]]
    if not living:
        return []
    rates = np.array([trials[place]["images_per_s"] for place in living])
    gain = rates / rates[0]
    median = np.median(gain, 1)
    wins = (gain > 1).all(1) & (median > CLEARLY)
    wins[0] = living[0] != 0
    return [living[i] for i in np.argsort(-median, kind="stable").tolist() if wins[i]]
