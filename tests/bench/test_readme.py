"""The pages of numbers say what the result files say, and will know those of a GPU."""

import json
from pathlib import Path

import pytest

from objcrop.bench.readme import BLOCKS, PAGES, with_numbers
from objcrop.errors import ObjcropError

ROOT = Path(__file__).resolve().parents[2]
H200 = {"gpu": "NVIDIA H200", "cpu": "Xeon", "cores": 16, "command": "objcrop bench …"}


def test_the_pages_are_as_made(monkeypatch):
    monkeypatch.chdir(ROOT)
    pages = [page.read_text(encoding="utf-8") for page in PAGES]
    assert all("".join(pages).count(f"<!-- table: {name} -->") == 1 for name in BLOCKS)
    assert [with_numbers(page) for page in pages] == pages


def test_the_readme_is_read_in_three_minutes():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize(
    ("name", "result", "says"),
    [
        (
            "h200_loader",
            {
                "crops": "obj-obj",
                "size": 224,
                "device": "cuda",
                "workers": 16,
                "data": "drawn scenes",
                "loaders": {
                    name: {"images_per_s": rate, "images_per_cpu_s": 1}
                    for name, rate in {
                        "dali, cuda": 9000,
                        "torch, colour=pil": 1000,
                        "DALI as in solo-learn, gpu": 4500,
                        "dali, cuda, hardware decoder": 12000,
                        "dali, cuda, cache=device": 21000,
                    }.items()
                },
                "ceilings": {
                    "decoding whole images": {"images_per_s": 10000},
                    "decoding the views' union": {"images_per_s": 7000},
                },
            },
            "9,000: 90% of decoding alone, 9.0 times `torch` with PIL colour and 16 workers, 2.0 times solo-learn's "
            'graph; 12,000 with the hardware decoder; 21,000 with `cache="device"`',
        ),
        (
            "h200_train",
            {
                "method": "moco-v2",
                "arch": "resnet50",
                "size": 224,
                "batch_size": 256,
                "waits": "of the device",
                "loader": "dali",
                "figures": {
                    "real_images_per_s": {"median": 2100.0},
                    "starvation": {"median": 0.01},
                    "slow_down": {"median": 0.015},
                    "loader_over_step": {"median": 3.9},
                },
            },
            "2,100.0, 1.5%; the loader alone could feed 3.9 such steps, and was waited for 1.0% of the time",
        ),
        (
            "h200_kernels",
            {
                "sizes": {"views": 512, "view_size": 224, "maps": 256},
                "kernels": {"colour, kernel": {"ms": 0.25}, "anchors, kernel": {"ms": 0.8}},
                "share_of_copy_bandwidth": 0.3,
            },
            "0.250 (30% of the copy bandwidth); 0.800",
        ),
        (
            "h200_proposals_rate",
            {"rates": {"bing": {"images_per_s": 8100}}, "share_of_decoding": {"bing": 0.81}},
            "bing 8,100 (81%)",
        ),
    ],
)
def test_rows_of_a_gpu(tmp_path, name, result, says):
    (tmp_path / f"{name}.json").write_text(json.dumps({"machine": H200, **result}))
    text = with_numbers("a\n<!-- table: speed -->\nold\n<!-- end -->\nz", tmp_path)
    assert text.startswith("a\n<!-- table: speed -->\n\n*h200*: NVIDIA H200, Xeon, 16 cores.")
    assert f"| {says} | [h200](" in text and text.endswith("<!-- end -->\nz") and "old" not in text


def test_a_file_that_is_none(tmp_path):
    (tmp_path / "cpu_plan.json").write_text("{")
    with pytest.raises(ObjcropError, match=r"cpu_plan\.json cannot be read as a bench result"):
        with_numbers("<!-- table: speed -->\n<!-- end -->", tmp_path)


def test_what_crashed_on_a_machine_is_in_no_row(tmp_path):
    rows = {"dali, cuda": {"images_per_s": 9000, "images_per_cpu_s": 1}}
    result = {"crops": "obj-obj", "size": 224, "device": "cuda", "workers": 16, "data": "drawn scenes"}
    result |= {"loaders": rows, "ceilings": {"decoding whole images": {"images_per_s": 10000}}}
    (tmp_path / "h200_loader.json").write_text(json.dumps({"machine": H200, **result}))
    text = with_numbers("<!-- table: speed -->\n<!-- end -->", tmp_path)
    assert "| 9,000: 90% of decoding alone | [h200](" in text


def test_loaders_stand_by_price_with_what_their_audit_found(tmp_path):
    rows = {
        name: {"ours": name == "dali, cpu", "images_per_cpu_s": rate, "images_per_cpu_s_min": rate - 9}
        | {
            "images_per_cpu_s_max": rate + 9,
            "images_per_s": 2 * rate,
            "start_s": 1.26,
            "memory_mib": 1234,
            "sameness": same,
        }
        for name, rate, same in (
            ("SPDL", 150.4, {"passed": 18, "checks": 20, "failed": {"resume": "…"}, "cannot_tell": {"ranks": "…"}}),
            ("kornia", 80, {"error": "it ended"}),
            ("dali, cpu", 480, {"passed": 20, "checks": 20, "failed": {}, "cannot_tell": {}}),
        )
    }
    result = {"machine": H200, "loaders": rows, "left_out": {"ffcv": "not installed"}}
    (tmp_path / "cpu_loader.json").write_text(json.dumps(result))
    lines = with_numbers("<!-- table: loaders -->\n<!-- end -->", tmp_path).splitlines()
    assert lines[4:7] == [
        "| **dali, cpu** | 480 (471 to 489) | 960 | 1.3 | 1,234 | 20 of 20 |  |",
        "| SPDL | 150 (141 to 159) | 301 | 1.3 | 1,234 | 18 of 20 | resume, (ranks) |",
        "| kornia | 80 (71 to 89) | 160 | 1.3 | 1,234 |  | it ended |",
    ]
    assert lines[-3] == "Left out: ffcv: not installed."


def test_loaders_of_a_gpu_stand_by_speed_without_columns_that_nobody_fills(tmp_path):
    rows = {
        name: {"ours": name == "dali, cuda", "start_s": 1.26, "memory_mib": 1234, "gpu_memory_mib": 2345}
        | {f"images_per_s{end}": rate + more for end, more in (("", 0), ("_min", -9), ("_max", 9))}
        | {"images_per_cpu_s": 10}
        for name, rate in (("dali, cuda", 480), ("DALI, gpu", 4800))
    }
    (tmp_path / "h200_loader.json").write_text(json.dumps({"machine": H200, "loaders": rows, "left_out": {}}))
    lines = with_numbers("<!-- table: loaders_gpu -->\n<!-- end -->", tmp_path).splitlines()
    assert lines[2].split(" | ")[-1] == "GPU MiB |"
    assert lines[4:6] == [
        "| DALI, gpu | 4,800 (4,791 to 4,809) | 10 | 1.3 | 1,234 | 2,345 |",
        "| **dali, cuda** | 480 (471 to 489) | 10 | 1.3 | 1,234 | 2,345 |",
    ]
    assert lines[-3] == "`objcrop bench …`"
