"""The benchmark at tiny size: both sides give the same results, tables and comparison say what was measured."""

import json
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from basicsr.utils.errors import UserError
from benchmarks import block, compare, loader, loss_curves, machine, step, tables
from benchmarks.case import Case
from benchmarks.networks import ROOT
from benchmarks.results import SAME, Results, difference
from benchmarks.rows import GROUPS, ROWS

BOTH = [row for group in ("training", "sampling", "autoencoder", "data") for row in GROUPS[group]]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


def case(row: str, side: str, work: Path, precision: str = "fp32") -> Case:
    return Case(row, side, precision, "tiny", 32, 2, "cpu", 0.0, str(work))


@pytest.mark.parametrize("row", [row for row in BOTH if "baseline" in ROWS[row].sides])
def test_the_baseline_gives_what_ours_gives(row: str, work: Path) -> None:
    ours, baseline = case(row, "ours", work), case(row, "baseline", work)
    found = [block.measure(each) for each in (ours, baseline)]
    truth = torch.load(block.result_file(baseline))
    assert truth.isfinite().all() and truth.std() > 0
    assert difference(block.result_file(ours), block.result_file(baseline), ROWS[row]) < SAME
    assert all(min(each["seconds"]) > 0 and each["peak"] > 1e8 for each in found)
    if row not in GROUPS["data"]:  # neither side leaves anything out that the other computes
        least = 0.6 if row == "sample-guided" else 0.95  # of guidance, both texts share their structure
        assert least < found[0]["flop"] / found[1]["flop"] < 1.05


def test_a_window_of_the_edge_loss_costs_its_share(work: Path) -> None:
    plain, crop, full = (
        block.measure(replace(case(row, "ours", work), pixels=64))["flop"]
        for row in ("plain", "crop-edge", "full-edge")
    )
    # A quarter of the frame's cells, and attention, which grows with their square.
    assert 0 < crop - plain < (full - plain) / 4


def test_bf16_is_near_and_is_not_fp32(work: Path) -> None:
    exact, half = case("plain", "ours", work), case("plain", "ours", work, "bf16")
    for each in (exact, half):
        block.measure(each)
    assert 1e-5 < difference(block.result_file(half), block.result_file(exact), ROWS["plain"]) < 0.1


def test_flops_are_those_of_closed_forms() -> None:
    x, w = torch.randn(2, 3, 8, 8), torch.randn(5, 3, 3, 3)
    assert machine.count_flops(lambda: torch.conv2d(x, w, padding=1)) == 2 * 2 * 5 * 8 * 8 * 3 * 9
    q = torch.randn(2, 3, 16, 8, requires_grad=True)

    def attend() -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, q, q)

    forward = 2 * 2 * (2 * 3 * 16 * 16 * 8)
    assert machine.count_flops(attend) == forward
    assert machine.count_flops(lambda: attend().sum().backward()) == forward + forward * 5 // 2


@pytest.fixture(scope="module")
def measured(work: Path) -> dict[str, Any]:
    """What the command writes."""
    file = work / "results.json"
    words = [
        "--size",
        "tiny",
        "--seconds",
        "0",
        "--rounds",
        "1",
        "--device",
        "cpu",
        "--work",
        str(work),
        "--json",
        str(file),
    ]
    assert step.main([*words, "--rows", "decode"]) == 0
    content: dict[str, Any] = json.loads(file.read_text())
    return content


def test_the_command_measures_sides_and_precisions(measured: dict[str, Any]) -> None:
    kinds = [(entry["row"], entry["side"], entry["precision"]) for entry in measured["rows"]]
    assert sorted(kinds) == [("decode", "baseline", "fp32"), ("decode", "ours", "bf16"), ("decode", "ours", "fp32")]
    assert measured["matmul"]["fp32"] > 1e9 and measured["matmul"]["bf16"] > 1e8
    assert measured["machine"]["kind"] == machine.machine_of("cpu")["kind"]
    differences = {entry["precision"]: entry["difference"] for entry in measured["rows"] if entry["side"] == "ours"}
    assert differences["fp32"] < SAME < differences["bf16"]


def test_a_side_is_measured_alone(tmp_path: Path, work: Path) -> None:
    words = ["--size", "tiny", "--seconds", "0", "--rounds", "1", "--work", str(work), "--precision", "fp32"]
    file = tmp_path / "results.json"
    words += ["--device", "cpu", "--json", str(file), "--sides", "ours"]
    assert step.main([*words, "--rows", "decode"]) == 0
    (found,) = json.loads(file.read_text())["rows"]
    assert (found["side"], "difference" in found) == ("ours", False)


def test_what_fails_is_told_and_the_rest_goes_on(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--size", "tiny", "--seconds", "0", "--rounds", "2", "--work", str(work), "--precision", "fp32"]
    # The autoencoder halves the sides, the U-Net once more: 30 pixels do not fit it.
    assert step.main([*words, "--device", "cpu", "--rows", "sample", "--pixels", "30"]) == 1
    told = capsys.readouterr()
    assert "sample ours: status 1" in told.err and "multiples of" in told.err


def entry(side: str, seconds: list[float], **more: Any) -> dict[str, Any]:
    about = {"row": "plain", "side": side, "precision": "fp32", "size": "full", "pixels": 256, "batch": 1}
    return {**about, "unit": "step", "seconds": seconds, "peak": 2e9, "flop": 1.2e12, **more}


CONTENT: dict[str, Any] = {
    "machine": {**machine.machine_of("cpu"), "name": "A", "kind": "a", "memory_gb": 25.4, "cores": 2},
    "matmul": {"fp32": 2e11, "bf16": 4e11},
    "rows": [
        entry("baseline", [8.0, 10.0, 9.0], peak=4e9, operators=[["aten::bmm", 3.0, 4]]),
        entry("ours", [7.5, 8.5, 8.0], difference=1e-6),
        entry("ours", [4.0], precision="bf16"),
        entry("ours", [32.0], precision="bf16", pixels=512, peak=6e9),
    ],
}


def test_tables_say_what_was_measured() -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.steps_table(CONTENT).splitlines()]
    assert lines[2][2:] == ["published", "9 (8–10)", "–", "4.00", "–", "1.2", "67%", "–"]
    assert lines[3][2:] == ["ours fp32", "8 (7.5–8.5)", "0.89", "2.00", "0.50", "1.2", "75%", "1.0e-06"]
    assert lines[4][2:] == ["ours bf16", "4 (4–4)", "0.44", "2.00", "0.50", "1.2", "75%", "–"]
    growth = tables.growth_table(CONTENT).splitlines()
    assert growth[-1] == "| training step, full, bf16 | 512 | 1 | 32 s | 8.00 | 6.00 GB | 3.00 |" and len(growth) == 4
    assert "| published | `bmm` 3 s |" in tables.operators_table(CONTENT)
    assert "200 GFLOP/s in fp32" in tables.machine_line(CONTENT)
    assert "bf16 | 4 s | 0.44 | 2.0 GB |" in tables.hardware_table(CONTENT)


def test_pages_say_what_their_files_say() -> None:
    assert tables.main(["--check"]) == 0
    readme = (ROOT / "README.md").read_text()
    assert "<!-- benchmark hardware benchmarks/results/" in readme


def test_blocks_are_filled_anew(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(CONTENT))
    page = "before\n<!-- benchmark machine a.json -->\nold\n<!-- end -->\nafter\n"
    filled = tables.filled(page, tmp_path)
    assert filled == page.replace("old", tables.machine_line(CONTENT)) and tables.filled(filled, tmp_path) == filled
    for wrong in (page.replace("machine", "weather"), page.replace("a.json", "b.json")):
        with pytest.raises(UserError):
            tables.filled(wrong, tmp_path)


def test_worse_by_a_tenth_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = deepcopy(CONTENT)
    for each in new["rows"][:3]:
        each["seconds"] = [2 * value for value in each["seconds"]]  # a busy machine: ratios are as they were
    files = [tmp_path / name for name in ("old.json", "new.json")]

    def status() -> int:
        for file, content in zip(files, (CONTENT, new), strict=True):
            file.write_text(json.dumps(content))
        return compare.main([str(file) for file in files])

    assert status() == 0 and "WORSE" not in capsys.readouterr().out
    new["rows"][1]["seconds"] = [2 * 8.0 * 1.15]
    assert status() == 1
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("WORSE")]
    assert "plain full 256 1 ours fp32" in line and "+15%" in line
    new["machine"]["kind"] = "b"
    assert status() == 2


def test_a_file_is_completed_row_by_row(tmp_path: Path, work: Path) -> None:
    file, here = tmp_path / "a.json", machine.machine_of("cpu")
    file.write_text(json.dumps({**CONTENT, "machine": here}))
    results = Results.at(file, here)
    for row, pixels in (("encode", 256), ("plain", 512)):
        again = replace(case(row, "ours", work, "bf16"), size="full", pixels=pixels, batch=1)
        results.forget(again)
        results.add(again, ROWS[row], {"seconds": [3.0], "peak": 1, "flop": 1.0})
    results.peak("fp32", 1e11)  # slower than before
    results.save()
    content = json.loads(file.read_text())
    found = [(each["row"], each["pixels"], each["side"], each["seconds"][0]) for each in content["rows"]]
    kept = [("plain", 256, "baseline", 8.0), ("plain", 256, "ours", 4.0), ("plain", 256, "ours", 7.5)]
    assert found == [("encode", 256, "ours", 3.0), *kept, ("plain", 512, "ours", 3.0)]
    assert content["matmul"]["fp32"] == 2e11


def test_results_of_another_machine_are_not_completed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(CONTENT))
    with pytest.raises(UserError, match="this is"):
        Results.at(tmp_path / "a.json", machine.machine_of("cpu"))


def test_losses_are_told_at_equal_steps_and_at_equal_time() -> None:
    def arm(seconds: float, steps: int, first: float) -> dict[str, Any]:
        validation = {str(step): first - step / 100 for step in range(2, steps + 1, 2)}
        return {
            "train": [first] * steps,
            "seconds": [seconds * s for s in range(1, steps + 1)],
            "validation": validation,
        }

    content = {"steps": 8, "arms": {"fp32": arm(1, 8, 0.5), "bf16": arm(0.5, 16, 0.51)}, "psnr": {"made": [60, 70]}}
    head, _, *rows, _, line = tables.losses_table(content).splitlines()
    assert "half of 8 steps" in head and "all of 8 s" in head
    assert rows[0] == "| fp32 | 1 | 0.4800 | 0.4600 | 0.4200 | 0.4800 | 0.4600 | 0.4200 |"
    assert rows[1] == "| bf16 | 0.5 | 0.4900 | 0.4700 | 0.4300 | 0.4700 | 0.4300 | 0.3500 |"
    assert "differs by 2.0% at most, 2.0% on average; pictures: made 60.0 to 70.0 dB." in line


def test_a_curve_is_read_from_a_run_s_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(
        "step,train/loss,curve/seconds,curve/cpu,curve/loss\n0,0.5,1,2,\n1,0.4,2,4,0.45\n1,,,,\n"
    )
    curve = loss_curves.curve_of(tmp_path)
    assert curve == {"train": [0.5, 0.4], "seconds": [1, 2], "cpu": [2, 4], "validation": {2: 0.45}}


def test_the_loader_is_told_by_number_of_workers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert loader.main(["--size", "tiny", "--work", str(tmp_path), "--workers", "0", "1", "--pictures", "6"]) == 0
    told = capsys.readouterr().out
    assert "| 0 | " in told and "| 1 | " in told and "to read and decode the file" in told
