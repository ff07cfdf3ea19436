"""The tables of README.md and docs/numbers.md, from the files in bench/results.

    objcrop bench readme          rewrites what stands between `<!-- table: NAME -->` and `<!-- end -->`

A file is named MACHINE_WHAT.json; what has no file yet has no row. A test holds both pages to what this makes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from objcrop.bench.machine import read_result

PAGES = (Path("README.md"), Path("docs/numbers.md"))
RESULTS = Path("bench/results")  # docs/bench links here, so that one address serves both pages
Result = dict[str, Any]


def with_numbers(page: str, results: Path = RESULTS) -> str:
    """Return the text of a page with its tables made anew.

    Raises:
        ObjcropError: a result file is missing or is none.
    """

    def block(found: re.Match[str]) -> str:
        return f"{found[1]}\n\n{BLOCKS[found[2]](results)}\n\n{found[3]}"

    names = "|".join(BLOCKS)
    return re.sub(rf"(<!-- table: ({names}) -->)\n.*?(<!-- end -->)", block, page, flags=re.DOTALL)


def _table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [heads, ["---"] * len(heads), *rows])


# ---- speed: one row a file


# The few that the README shows.
TELLING = (
    "h200_cpu_loader",
    "cpu_loader",
    "cpu_sources",
    "cpu_plan",
    "h200_compiled_train",
    "h200_where",
    "h200_kernels",
)


def speed(results: Path) -> str:
    """Return the machines and one row for each file of a bench of speed, GPUs first."""
    found = [(path, kind) for kind in ROWS for path in results.glob(f"*_{kind}.json")]
    found.sort(key=lambda each: each[0].name.startswith("cpu"))  # stable: the kinds stay in order
    return _speed(found)


def telling(results: Path) -> str:
    """Return the few rows of `speed` that say most."""
    kind_of = {name: next(kind for kind in ROWS if name.endswith(f"_{kind}")) for name in TELLING}
    return _speed([(results / f"{name}.json", kind) for name, kind in kind_of.items()])


def _speed(found: list[tuple[Path, str]]) -> str:
    machines: dict[str, str] = {}
    rows = []
    for path, kind in found:
        result = read_result(path)
        name, where = path.name.partition("_")[0], result["machine"]
        machines[name] = f"{where['gpu'] + ', ' if where['gpu'] else ''}{where['cpu']}, {where['cores']} cores"
        what, number = ROWS[kind](result)
        rows.append([what, number, f"[{name}]({path.as_posix()})", f"`{where['command']}`"])
    said = " ".join(f"*{name}*: {machine}." for name, machine in machines.items())
    return f"{said} Trust the ratios within a run.\n\n" + _table(["what", "number", "machine", "command"], rows)


def _loader(result: Result) -> tuple[str, str]:
    rate = {name: row["images_per_s"] for name, row in (result["loaders"] | result["ceilings"]).items()}
    cpu = {name: row["images_per_cpu_s"] for name, row in result["loaders"].items()}
    what = f"two `{result['crops']}` moco-v2 views of {result['size']} px, {_data(result)}"
    if result["device"] == "cpu":
        pil, dali = cpu["PIL"], cpu["dali, cpu"]
        what += f", {result['threads']} threads or processes"
        return (
            f"{what}: images a processor second, PIL and a DataLoader → `dali` on the CPU",
            f"{pil:,.0f} → {dali:,.0f}, {dali / pil:.1f} times",
        )
    dali, best = rate["dali, cuda"], max(rate[name] for name in result["ceilings"] if name.startswith("decoding"))
    beside = {"torch, colour=pil": f"`torch` with PIL colour and {result['workers']} workers"}
    beside["DALI as in solo-learn, gpu"] = "solo-learn's graph"
    said = [f"{dali:,.0f}: {dali / best:.0%} of decoding alone"]
    said += [f"{dali / rate[name]:.1f} times {other}" for name, other in beside.items() if name in rate]
    # What crashes on a machine is in none of its rows.
    cached = rate.get("dali, cuda, cache=device")
    by_hardware = rate.get("dali, cuda, hardware decoder")
    more = "" if by_hardware is None else f"; {by_hardware:,.0f} with the hardware decoder"
    more += "" if cached is None else f'; {cached:,.0f} with `cache="device"`'
    return f"{what}: images a second, `dali` on the GPU", ", ".join(said) + more


def _where(result: Result) -> tuple[str, str]:
    stages = ", ".join(f"{name} {round(cost, 2) + 0.0:.2f}" for name, cost in result["stages"].items())
    return f"one loader by stage, {_data(result)}: milliseconds of processor time an image", stages


def _sources(result: Result) -> tuple[str, str]:
    parts = ", ".join(f"{name} {row['share_of_folder']:.2f}" for name, row in result["sources"].items())
    what = f"{result['images']} images, a bucket {1000 * result['delay_s']:.0f} ms away, {result['loader_cores']} core"
    return f"the same views by source, {what} for the loader: speed as a share of a folder's", parts


def _plan(result: Result) -> tuple[str, str]:
    rate = result["policies"]["obj-obj+dilate"]["images_per_cpu_s"]
    return "planning alone, `obj-obj+dilate`, two views: images a processor second", f"{rate:,.0f}"


def _train(result: Result) -> tuple[str, str]:
    median = {name: row["median"] for name, row in result["figures"].items()}
    what = f"{result['method']}, {result['arch']} at {result['size']} px, batches of {result['batch_size']}"
    what += ", `--compile`" * result.get("compile", False)
    device_waits = "waits" in result or result.get("device") == "cpu"  # others say how long a GPU's host waited
    return (
        f"training, {what}, loader `{result['loader']}`: images a second, slow-down by the loader",
        f"{median['real_images_per_s']:,.1f}, {median['slow_down']:.1%}; the loader alone could feed "
        f"{median['loader_over_step']:.1f} such steps"
        + (f", and was waited for {median['starvation']:.1%} of the time" if device_waits else ""),
    )


def _step(result: Result) -> tuple[str, str]:
    what = f"{result['method']}, {result['arch']} at {result['size']} px, batches of {result['batch_size']}"
    ours, theirs = (sorted(result[f"{name}_s"])[len(result["ours_s"]) // 2] for name in ("ours", "lightly"))
    ratio = result["ratio"]
    return (
        f"a step without its views, {what}: seconds of ours and of lightly's, their ratio",
        f"{ours:.2f}, {theirs:.2f}: {ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})",
    )


def _kernels(result: Result) -> tuple[str, str]:
    sizes, ms = result["sizes"], {name: row["ms"] for name, row in result["kernels"].items()}
    return (
        f"kernels: {sizes['views']} views of {sizes['view_size']} px coloured; {sizes['maps']} maps of anchors scored "
        "and suppressed, milliseconds",
        f"{ms['colour, kernel']:.3f} ({result['share_of_copy_bandwidth']:.0%} of the copy bandwidth); "
        f"{ms['anchors, kernel']:.3f}",
    )


def _proposing(result: Result) -> tuple[str, str]:
    rates = {name: row["images_per_s"] for name, row in result["rates"].items()}
    shares = ", ".join(f"{n} {rates[n]:,.0f} ({s:.0%})" for n, s in result["share_of_decoding"].items())
    return "`propose`: images a second, and as a share of decoding alone", shares


def _data(result: Result) -> str:
    return f"{result['catalog_images']} images" if result["data"].endswith(".arrow") else result["data"]


ROWS: dict[str, Callable[[Result], tuple[str, str]]] = {
    "loader": _loader,
    "train": _train,
    "kernels": _kernels,
    "proposals_rate": _proposing,
    "where": _where,
    "sources": _sources,
    "plan": _plan,
    "densecl_step": _step,
    "swav_step": _step,
    "mae_step": _step,
}

# ---- loaders


def loaders(results: Path) -> str:
    """Return one row a loader of the bench on a CPU, the cheapest first."""
    return _loaders(read_result(results / "cpu_loader.json"), "images_per_cpu_s", "images_per_s")


def loaders_gpu(results: Path) -> str:
    """Return one row a loader of the bench on a GPU, the fastest first."""
    return _loaders(read_result(results / "h200_loader.json"), "images_per_s", "images_per_cpu_s")


def _loaders(result: Result, first: str, second: str) -> str:
    """Return the table, by the first of two rates; it leaves out columns of what was not measured."""
    heads = {"images_per_s": "images a second", "images_per_cpu_s": "images a processor second"}
    rows = []
    for name, row in sorted(result["loaders"].items(), key=lambda each: -each[1][first]):
        same = row.get("sameness", {})
        wrong = [*same.get("failed", ()), *map("({})".format, same.get("cannot_tell", ()))]
        cells = {
            "loader": f"**{name}**" if row["ours"] else name,
            heads[first]: f"{row[first]:,.0f} ({row[f'{first}_min']:,.0f} to {row[f'{first}_max']:,.0f})",
            heads[second]: f"{row[second]:,.0f}",
            "start, s": f"{row['start_s']:.1f}",
            "MiB": f"{row['memory_mib']:,.0f}",
            "GPU MiB": f"{row['gpu_memory_mib']:,.0f}" if "gpu_memory_mib" in row else "",
            "checks": f"{same['passed']} of {same['checks']}" if "passed" in same else "",
            "fails (cannot tell)": same.get("error") or ", ".join(wrong),
        }
        rows.append(cells)
    measured = [head for head in rows[0] if any(cells[head] for cells in rows)]
    table = _table(measured, [[cells[head] for head in measured] for cells in rows])
    left_out = "; ".join(f"{name}: {why}" for name, why in result["left_out"].items())
    return f"{table}\n\n`{result['machine']['command']}`" + (f"\n\nLeft out: {left_out}." if left_out else "")


# ---- boxes

# CIB Table 2, COCO: mean share of object pixels, %.
CIB = {
    "gt": "100",
    "gt-pad, .5": "48.2 (best padding)",
    "poor": "20.1",
    "image": "36.4",
    "grid": "39.8",
    "anchors, mean-sqrt-area": "52.6 (theirs)",
}


def proposals(results: Path) -> str:
    """Return one row a method of the bench of proposals on VOC."""
    result = read_result(results / "proposals_voc07_test.json")
    rows = []
    for name, row in result["methods"].items():
        recall = [_share(row["recall"][k]) if k in row["recall"] else "" for k in ("10", "100", "1000")]
        for k in (2, 1):  # more boxes than a method has find no more
            recall[k] = "" if recall[k] == recall[k - 1] else recall[k]
        price = row["images_per_cpu_s"]
        rows.append(
            [
                name,
                *recall,
                f"{100 * row['object_share']:.1f}",
                CIB.get(name, ""),
                " / ".join(f"{row[kind]:.2f}".lstrip("0") for kind in ("poor", "coarse", "precise")),
                f"{row['area']:.2f}",
                "" if price is None else f"{price:.{0 if price >= 100 else 1}f}",
            ]
        )
    heads = ["boxes", "recall at 10", "100", "1000", "object", "CIB says", "poor / coarse / precise", "area"]
    return _table([*heads, "images per CPU-second"], rows) + f"\n\n`{result['machine']['command']}`"


# ---- policies


def policies(results: Path) -> str:
    """Return one row a contender of the first experiment, the mean of its seeds."""
    result = read_result(results / "voc07_cpu.json")
    kinds = ("linear_map", "linear_map_11_point", "knn_map")
    rows = [["untrained", *(_share(result["untrained"][kind]) for kind in kinds)]]
    for name, row in result["contenders"].items():
        seeds = row["seeds"]
        rows.append([name, *(_share(sum(seed[kind] for seed in seeds) / len(seeds)) for kind in kinds)])
    table = _table(["crops", "linear mAP", "11-point", "neighbours, mAP"], rows)
    return table + f"\n\n`{result['machine']['command']}`"


# ---- transfer


def transfer(results: Path) -> str:
    """Return one row an origin of the first transfer on photos."""
    result = read_result(results / "voc07_transfer_cpu.json")
    kinds = ("linear_map", "linear_map_11_point", "fine_tuned_map", "fine_tuned_map_11_point", "detection_voc07_ap50")
    rows = [[name, *(_share(row[kind]) for kind in kinds)] for name, row in result["origins"].items()]
    table = _table(["begins with", "linear mAP", "11-point", "fine-tuned mAP", "11-point", "detection AP50"], rows)
    return table + f"\n\n`{result['machine']['command']}`"


def _share(value: float) -> str:
    return f"{value:.3f}".lstrip("0") if value < 0.9995 else "1"


BLOCKS: dict[str, Callable[[Path], str]] = {
    "telling": telling,
    "speed": speed,
    "loaders": loaders,
    "loaders_gpu": loaders_gpu,
    "proposals": proposals,
    "policies": policies,
    "transfer": transfer,
}
