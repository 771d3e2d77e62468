"""The edge experiment's arithmetic and its arms."""

import importlib
import json
import statistics
from pathlib import Path
from types import ModuleType

import pytest
from test_configs import flat

from ldm.config import load_config

ROOT = Path(__file__).parents[1]


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    folder, name = name.split(".")
    monkeypatch.syspath_prepend(ROOT / folder)
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module(name)


@pytest.fixture
def experiment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return module("scripts.edge_experiment", monkeypatch)


def test_arms_differ_in_the_edge_loss_alone(experiment: ModuleType) -> None:
    arms = {arm: flat(load_config([experiment.arm_file(arm)]).values) for arm in experiment.ARMS}
    weights = {arm: values.pop("model.params.edge_loss_weight") for arm, values in arms.items()}
    assert weights == {"none": 0.0, "plain": "auto:0.3", "crop_gate": "auto:0.3", "gradient": "auto:0.3"}
    for arm, own in (("plain", {}), ("gradient", {"edge_loss_type": "gradient"}),
                     ("crop_gate", {"edge_crop": 8, "edge_max_timestep": 400})):  # fmt: skip
        assert arms[arm] == arms["none"] | {f"model.params.{key}": value for key, value in own.items()}


def test_the_interval_is_students(experiment: ModuleType) -> None:
    values = [0.1, 0.4, 0.3, 0.2, 0.9]
    half = 2.776 * statistics.stdev(values) / 5**0.5
    assert experiment.interval(values).split() == [f"{statistics.mean(values):.4f}", "±", f"{half:.4f}"]
    assert "one seed" in experiment.interval([0.5])


def test_the_table_pairs_seeds(experiment: ModuleType) -> None:
    results = [
        experiment.ArmResult(arm, seed, stop, 10, 0.5 + 0.1 * index + 0.01 * seed, 10.0, 20.0)
        for index, arm in enumerate(experiment.ARMS) for seed in (1, 2) for stop in ("steps", "time")
    ]  # fmt: skip
    start = dict.fromkeys(experiment.METRICS, 0.25)
    lines = experiment.table(results, start, dict.fromkeys(experiment.ARMS, 1.5)).splitlines()
    assert "edge F1 0.2500" in lines[0]
    plain = next(line for line in lines if line.startswith("plain"))
    # Every seed gains exactly 0.1, however seeds differ among themselves.
    assert plain.split() == ["plain", "10", "1.50", "0.6150", "±", "0.0635", "0.1000", "±", "0.0000"]


def test_finished_work_is_not_repeated(experiment: ModuleType, tmp_path: Path) -> None:
    for value in (0.5, 0.7):  # what a second computation would give
        assert experiment.cached(tmp_path / "a.json", lambda value=value: {"f1": value}) == {"f1": 0.5}
    with pytest.raises(ZeroDivisionError):
        experiment.cached(tmp_path / "b.json", lambda: 1 / 0)
    for spoilt in (b"{", b"", b"[]", b"\xff"):
        (tmp_path / "a.json").write_bytes(spoilt)
        assert experiment.cached(tmp_path / "a.json", lambda: {"f1": 0.5}) == {"f1": 0.5}
    assert json.loads((tmp_path / "a.json").read_text()) == {"f1": 0.5} and len(list(tmp_path.iterdir())) == 1


def test_runs_of_other_settings_and_missing_weights_get_one_line(
    experiment: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.json").write_text('{"steps": 1}')
    pictures = [f"data.params.{role}.params.gt_path={ROOT}/tests" for role in ("train", "validation")]
    for word, line in (("model.params.ckpt_path=null", "holds runs of other settings"),
                       ("model.params.ckpt_path=gone.ckpt", "'gone.ckpt' is not there")):  # fmt: skip
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr("sys.argv", ["edge_experiment.py", "--out", str(tmp_path), word, *pictures])
        assert experiment.main() == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and line in error
