"""The study of what edges as a condition are worth: its pictures, its table, and that runs are kept."""

from pathlib import Path

import pytest
from PIL import Image

from ldm.config import load_config
from ldm.evaluation.report.statistics import student_half_width
from scripts import edge_condition_study as study


def values() -> study.Values:
    """The leak is 0.1, 0.2 and 0.3 for the three seeds."""
    found: study.Values = {("plain", ""): {seed: dict.fromkeys(study.SHOWN, 0.5) for seed in (1, 2, 3)}}
    for arm in ("lq", "gt_oracle"):
        for condition in study.CONDITIONS:
            gain = 0.1 if (arm, condition) == ("gt_oracle", "gt") else 0.0
            by_seed = {seed: dict.fromkeys(study.SHOWN, 0.5 + seed * gain) for seed in (1, 2, 3)}
            found[arm, condition] = by_seed
    return found


def test_differences_are_paired_by_seed_with_their_intervals() -> None:
    lines = study.table(values()).splitlines()
    leak = lines[next(index for index, line in enumerate(lines) if line.startswith("THE LEAK")) + 1]
    half = student_half_width([0.1, 0.2, 0.3])
    assert leak.split()[-3:] == ["+0.2000", "±", f"{half:.4f}"]
    assert sum(line.startswith(("lq", "gt_oracle", "plain")) for line in lines) == 9
    without = {key: value for key, value in values().items() if key[0] != "plain"}
    assert "against the model without" not in study.table(without) and "THE LEAK" in study.table(without)


def test_every_arm_is_a_config_that_fits() -> None:
    channels = "model.params.structcond_stage_config.params.in_channels"
    seen = {arm: load_config([study.BASE], words) for arm, words in study.ARMS.items()}
    assert {arm: config.get(channels) for arm, config in seen.items()} == {"lq": 8, "gt_oracle": 8, "plain": 4}
    assert seen["gt_oracle"].get("model.params.edge_condition.source") == "gt"
    assert seen["plain"].get("model.params.edge_condition") is None


def test_finished_runs_are_kept_and_other_settings_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (300, 200), "teal").save(tmp_path / "photo.png")
    study.cut_pictures(tmp_path, tmp_path / "cut")
    assert Image.open(tmp_path / "cut/photo.png").size == (study.SIDE, study.SIDE)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/settings.txt").write_text("steps 7\n\n")
    assert study.main(["--out", str(tmp_path / "out"), "--data", str(tmp_path), "model.params.ckpt_path=null"]) == 2
    assert "holds runs of other settings" in capsys.readouterr().err
