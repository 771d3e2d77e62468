"""The edge experiment: a study from its YAML to its report, in one sitting or several."""

import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
from PIL import Image
from safetensors.torch import save_file
from tiny_run import write_tiny_run

from basicsr.metrics.lpips import LPIPS
from basicsr.utils.errors import UserError
from ldm.config import check_config, load_config
from ldm.evaluation.report.statistics import student_mean
from ldm.study import results as kept
from ldm.study.judging import pooled
from ldm.study.plan import CONFIRM, VALIDATION, Study, load_study
from ldm.study.report import difference, write_report
from ldm.study.results import METRICS, STEPS, TIME, Evaluation, RunResult, metrics_of, read_results, write_result
from ldm.study.sitting import Sharing, missing_runs, seconds_per_step
from ldm.study.train import measure_seconds, run_arm, stops_of

ROOT = Path(__file__).parents[1]
STUDIES = sorted(path for path in (ROOT / "configs/demo/edge_experiment").glob("*.yaml") if path.stem != "none")

TINY = """\
title: Which, & why?
config: tiny.yaml
words: [model.params.time_replace=4, model.params.ckpt_path=null]
steps: 2
seeds: 2
budget_of: plain
sampling_steps: 1
lpips: alex.safetensors
pictures: {train: pictures, validation: held_out, confirm: held_out}
arms:
  none: []
  plain: [model.params.edge_loss_weight=auto:0.3]
questions:
  - {ask: "Does it pay?", first: plain, second: none}
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    write_tiny_run(tmp_path)
    (tmp_path / "held_out").mkdir()
    shutil.copy(tmp_path / "pictures/0.png", tmp_path / "held_out")
    (tmp_path / "study.yaml").write_text(TINY)
    random = LPIPS("alex", random_seed=0).features.state_dict()
    save_file({f"features.{name}": value for name, value in random.items()}, tmp_path / "alex.safetensors")
    monkeypatch.chdir(tmp_path)
    return load_study(Path("study.yaml"))


def result(arm: str, seed: int, value: float, steps: int = 2) -> RunResult:
    """A run all of whose metrics have one value at both stops."""
    evaluation = Evaluation(steps, dict.fromkeys(METRICS, value))
    return RunResult(arm, seed, {STEPS: evaluation, TIME: evaluation}, ((0, 1.0), (1, 0.5)), "a machine")


def fill(study: Study, out: Path, gain: float, part: str = VALIDATION) -> None:
    """Results of all runs: seeds differ much, the arms always by `gain`."""
    for arm, seed in study.runs:
        value = 0.3 * seed + gain * (arm.name == "plain")
        write_result(out, part, study, arm, result(arm.name, seed, value))


# What is shipped


@pytest.mark.parametrize("file", STUDIES, ids=lambda file: str(file.stem))
def test_the_shipped_studies_are_sound(file: Path) -> None:
    import pytorch_lightning as pl
    from pytorch_lightning.callbacks import ModelCheckpoint

    study = load_study(file)
    assert all(arm.seeds >= 5 for arm in study.arms.values()) and study.questions
    assert {"train", VALIDATION} <= set(study.pictures) <= {"train", VALIDATION, CONFIRM}
    asked = {name for each in study.questions for name in (each.first, each.second)}
    assert asked == set(study.arms)
    for arm in study.arms.values():
        config = load_config([study.config], [*study.words, *arm.words])
        check_config(config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)


@pytest.mark.parametrize("file", STUDIES, ids=lambda path: path.stem)
def test_what_was_found_is_whole_and_its_report_says_it(file: Path, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "docs/edge_experiment" / file.stem, tmp_path, dirs_exist_ok=True)
    study, said = load_study(file), (tmp_path / "report.md").read_text(encoding="utf-8")
    assert len(read_results(tmp_path, VALIDATION, study)) == len(study.runs)
    write_report(study, tmp_path)
    assert (tmp_path / "report.md").read_text(encoding="utf-8") == said


def test_seven_studies_are_shipped() -> None:
    assert len(STUDIES) == 7


# A sitting


def test_a_study_is_run_reported_and_gone_on_with(study: Study) -> None:
    def sit(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(ROOT / "scripts/edge_experiment.py"), "one.yaml", "--out", "out", *words]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=280, env=os.environ | {"OMP_NUM_THREADS": "1"}
        )

    Path("one.yaml").write_text(TINY.replace("seeds: 2", "seeds: 1"))
    study = load_study(Path("one.yaml"))
    done = sit("--jobs", "2", "--timing-rounds", "1")
    assert done.returncode == 0, done.stderr
    out = Path("out")
    timing = json.loads((out / "timing.json").read_text())
    found = read_results(out, VALIDATION, study)
    assert {(each.arm, each.seed) for each in found} == {(arm.name, seed) for arm, seed in study.runs}
    for each in found:
        assert each.stops[STEPS].steps == 2
        assert each.stops[TIME].steps == max(1, round(2 * timing["plain"] / timing[each.arm]))
        assert set(each.stops[STEPS].means) == set(METRICS) and each.losses[0][0] == 0
    assert not missing_runs(study, out) and not list(out.glob("unfinished_*"))
    assert done.stdout.rstrip().endswith("open out/report.html")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*_*.json")}
    for spoilt in ("[]", "{}", "{"):  # the last as after a crash of the disk
        (out / VALIDATION / "none_1.json").write_text(spoilt)
        assert [(arm.name, seed) for arm, seed in missing_runs(study, out)] == [("none", 1)]
    again = sit()
    assert again.returncode == 0
    after = {path: path.stat().st_mtime_ns for path in out.rglob("*_*.json")}
    assert {path for path in after if after[path] != before[path]} == {
        out / part / "none_1.json" for part in (VALIDATION, CONFIRM)
    }
    assert read_results(out, VALIDATION, study) == found  # the same seed, the same run


SECOND_STAGE = """
config: cfw.yaml
words: [data.params.batch_size=2, data.params.num_workers=0]
steps: 2
seeds: 1
budget_of: null
pictures: {train: samples, validation: samples}
arms:
  none: []
  magnitude: [model.params.edge_loss_weight=10, model.params.edge_loss_type=magnitude]
  plain: [model.params.edge_loss_weight=10]
"""
CFW = f"""
base: {ROOT}/configs/demo/cfw.yaml
model:
  params:
    ckpt_path: null
    ddconfig: {{ch: 32, ch_mult: [1, 1, 1], norm_groups: 1}}
    lossconfig: {{params: {{disc_num_layers: 1}}}}
"""


def test_the_second_stage_is_studied_on_its_own_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("cfw.yaml").write_text(CFW)
    Path("study.yaml").write_text(SECOND_STAGE)
    rng = np.random.default_rng(0)
    for kind in ("gts", "inputs", "samples"):
        (tmp_path / "samples" / kind).mkdir(parents=True)
        for index in range(3):
            part = skimage.data.astronaut()[60 * index : 60 * index + 32, 200:232]
            Image.fromarray(part).save(tmp_path / "samples" / kind / f"{index}.png")
    (tmp_path / "samples/latents").mkdir()
    for index in range(3):
        np.save(tmp_path / f"samples/latents/{index}.npy", rng.standard_normal((1, 4, 8, 8), dtype=np.float32))
    study = load_study(Path("study.yaml"))
    for arm in study.arms.values():
        run_arm(study, tmp_path, arm, 1, {})
    none, magnitude, plain = read_results(tmp_path, VALIDATION, study)
    assert none.stops.keys() == {STEPS} and none.losses[0][0] == 0
    assert set(none.stops[STEPS].means) == set(METRICS) - {"lpips"} == set(metrics_of(study))
    assert none.losses[0] == magnitude.losses[0]  # rec_loss, before any step
    for first, second in ((none, magnitude), (magnitude, plain)):
        assert first.stops[STEPS].means != second.stops[STEPS].means
    with pytest.raises(UserError, match="steps of the second stage are not timed"):
        measure_seconds(study, [study.arms["none"]], 1)
    write_report(study, tmp_path)
    assert "LPIPS" not in (tmp_path / "report.md").read_text()


def test_machines_share_the_runs_without_one_being_left_or_done_twice(study: Study) -> None:
    shares = [Sharing(share=(k, 3)).mine(study.runs) for k in (1, 2, 3)]
    assert sorted((arm.name, seed) for share in shares for arm, seed in share) == sorted(
        (arm.name, seed) for arm, seed in study.runs
    )


def test_the_same_time_is_the_budgets(study: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = replace(study, steps=60)
    seconds = {"none": 0.2, "plain": 0.5}
    assert stops_of(study, study.arms["none"], seconds) == {STEPS: 60, TIME: 150}
    assert stops_of(replace(study, budget_of=None), study.arms["none"], seconds) == {STEPS: 60}
    # An arm that is added later is timed beside the budget's, on a machine that is twice as slow by then.
    (tmp_path / "timing.json").write_text('{"plain": 0.5}')
    monkeypatch.setattr("ldm.study.train.measure_seconds", lambda *_: {"plain": 1.0, "none": 0.4})
    assert seconds_per_step(study, tmp_path, 1) == pytest.approx(seconds)


def test_a_run_of_other_settings_is_not_taken_for_this_one(study: Study, tmp_path: Path) -> None:
    fill(study, tmp_path, 0.1)
    for other in (replace(study, steps=3), replace(study, lpips="vgg.safetensors"), replace(study, lpips=None)):
        with pytest.raises(UserError, match="other settings than study.yaml has now: choose another --out"):
            missing_runs(other, tmp_path)


@pytest.mark.parametrize(("old", "new", "line"), [
    ("second: none", "second: nune", "'nune' is not an arm; did you mean 'none'?"),
    ("seeds: 2", "seeds: 0", "seeds is 0"),
    ("lpips: alex.safetensors", "lpips: 3", "lpips is 3: give a file"),
    ("title:", "titel:", "unknown key 'titel'; did you mean 'title'?"),
    ("  none: []", "  none: 3", "3 is not a list of words"),
    ("arms:", "arms: []\nnotes:", "is not a study"),
    ("ask:", "ask: [", "cannot be read as a study"),
])  # fmt: skip
def test_a_mistake_in_a_study_is_one_line(study: Study, old: str, new: str, line: str) -> None:
    Path("wrong.yaml").write_text(TINY.replace(old, new))
    with pytest.raises(UserError) as error:
        load_study(Path("wrong.yaml"))
    assert line in str(error.value) and "\n" not in str(error.value) and "wrong.yaml" in str(error.value)


# The report


def test_the_interval_is_students_and_pairs_seeds() -> None:
    values = [0.1, 0.4, 0.3, 0.2, 0.9]
    interval = student_mean(values)
    half = 2.776 * statistics.stdev(values) / 5**0.5
    assert interval[:3] == pytest.approx((0.38, 0.38 - half, 0.38 + half), abs=1e-4)
    second = dict(enumerate(values))
    found = difference("edge_f1", {seed: value + 0.1 for seed, value in second.items()}, second | {9: 5.0})
    assert found.interval[:3] == pytest.approx((0.1, 0.1, 0.1)) and found.interval.pictures == 5
    assert found.better is True
    assert difference("false_edges", {1: 2.0, 2: 2.1}, {1: 1.0, 2: 1.1}).better is False
    assert difference("gradient_strength", {1: 2.0, 2: 2.1}, {1: 1.0, 2: 1.1}).verdict == "differs"
    assert difference("edge_f1", {1: 1.0, 2: 0.0}, {1: 0.5, 2: 0.5}).verdict == "not told apart"
    assert difference("edge_f1", {1: 1.0}, {1: 0.5}).verdict == "one seed"
    assert difference("edge_f1", {}, {1: 0.5}).verdict == "no pair yet"


def test_the_report_answers_from_files_alone(study: Study, tmp_path: Path) -> None:
    fill(study, tmp_path, 0.1)
    page = write_report(study, tmp_path)
    content: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    (answer,) = (each for each in content["answers"] if each["stop"] == STEPS)
    assert answer["differences"]["edge_f1"]["mean"] == pytest.approx(0.1)
    assert answer["differences"]["edge_f1"] | {"verdict": "better", "seeds": 2} == answer["differences"]["edge_f1"]
    assert answer["differences"]["false_edges"]["verdict"] == "worse"
    assert content["missing"] == 0
    html, text = page.read_text(), (tmp_path / "report.md").read_text()
    assert "Which, &amp; why?" in html and "Does it pay?" in html and "<svg" in html
    assert "| Does it pay? | plain − none, after the same steps | +0.1000 ± 0.0000 ✓ |" in text
    assert "by chance alone" in text
    kept.result_file(tmp_path, VALIDATION, "none", 2).unlink()
    write_report(study, tmp_path)
    assert "1 of the study's still missing" in (tmp_path / "report.md").read_text()


def test_held_out_pictures_are_looked_at_once(study: Study, tmp_path: Path) -> None:
    fill(study, tmp_path, 0.1)
    fill(study, tmp_path, -0.1, CONFIRM)
    page = write_report(study, tmp_path)
    assert "confirm pictures" not in page.read_text().partition("How it was made")[0]
    write_report(study, tmp_path, confirm=["plain"])
    assert "Differences on the confirm pictures" in (tmp_path / "report.md").read_text()
    write_report(study, tmp_path)  # what was looked at stays in the report
    assert "−0.1000 ± 0.0000 ✗" in (tmp_path / "report.md").read_text()
    with pytest.raises(UserError, match="have been looked at already, for plain"):
        write_report(study, tmp_path, confirm=["none"])
    with pytest.raises(UserError, match="'plein' is not an arm; did you mean 'plain'"):
        write_report(study, tmp_path / "other", confirm=["plein"])


def test_edges_of_all_frames_are_pooled() -> None:
    empty, line, noise = np.zeros((3, 16, 16), bool)
    line[:, 5], noise[8, 9] = True, True
    assert pooled([(line, line), (empty, empty)]) == {"edge_f1": 1, "false_edges": 0}
    # A false pixel in an empty frame is one of 17: as a mean over frames F1 would fall to a half.
    found = pooled([(line, line), (noise, empty)])
    assert found["false_edges"] == pytest.approx(1 / 17) and found["edge_f1"] == pytest.approx(2 * 16 / 17 / (33 / 17))
    bottom, top = np.zeros((2, 16, 16), bool)
    bottom[15], top[0] = True, True
    assert pooled([(bottom, empty), (empty, top)])["edge_f1"] == 0  # neighbours in the pile only
