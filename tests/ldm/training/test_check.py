"""`--check`: all problems of a config at once, with file and line, and what would be trained."""

from pathlib import Path

import pytest
from tiny_run import write_tiny_run

from main import main


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


WRONG = """\
base: tiny.yaml
modl: 1
model:
  base_learning_rate: 0
  params:
    edge_loss_weight: 0
    edge_dilate: 2
    scale_factor: -1
    time_replace: 2000
    unet_config:
      params: {chanel_mult: [1]}
degradation:
  jpg_range: [1, 2]
  noise_range: [9, 1]
data:
  params:
    batch_size: many
    num_workers: -1
    train: {params: {gt_path: nowhere}}
lightning:
  trainer: {min_steps: 9, max_steps: 3, max_stps: 2}
  callbacks:
    image_logger: {params: {max_images: 0}}
    own: {target: antigravity.Callback}
"""


def test_all_problems_at_once_with_file_and_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "wrong.yaml").write_text(WRONG)
    assert main(["--base", "wrong.yaml", "--check"]) == 2
    out = capsys.readouterr().out
    for line in (
        "wrong.yaml, line 2: unknown top-level key 'modl'",
        "model.base_learning_rate is 0",
        "wrong.yaml, line 7: model.params.edge_dilate: has no effect: model.params.edge_loss_weight is 0",
        "wrong.yaml, line 11: model.params.unet_config.params.chanel_mult: ",
        "wrong.yaml, line 13: degradation.jpg_range: unknown key; did you mean 'jpeg_range'?",
        "wrong.yaml, line 14: degradation.noise_range: is [9, 1]",
        "wrong.yaml, line 17: data.params.batch_size: main.DataModuleFromConfig takes int",
        "wrong.yaml, line 19: data.params.train.params.gt_path: 'nowhere' is not there",
        "wrong.yaml, line 21: lightning.trainer.max_stps: Trainer has no parameter",
        "wrong.yaml, line 21: lightning.trainer.min_steps: is 9, above max_steps=3",
        "wrong.yaml, line 24: lightning.callbacks.own.target: antigravity.Callback is outside the known packages",
    ):
        assert line in out, line
    assert "Traceback" not in out and not (here / "logs").exists()


def test_values_out_of_range_are_all_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["model.params.scale_factor=-1", "model.params.time_replace=2000", "data.params.num_workers=-1",
             "lightning.callbacks.image_logger.params.max_images=0"]  # fmt: skip
    assert main(["--base", "tiny.yaml", "--check", *words]) == 2
    out = capsys.readouterr().out
    for word in words:
        assert f"command line: {word.partition('=')[0]}: is {word.partition('=')[2]}: " in out
    assert "\nproblems: 4" in out


def test_a_sound_config_says_what_would_be_trained(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", "tiny.yaml", "--check", "model.base_learning_rate=1e-5"]) == 0
    out = capsys.readouterr().out
    for line in ("length        2 steps", "train         pictures", "edge loss weight 0.1", "learning rate 1e-05"):
        assert line in out
    assert "problems: none" in out and not (here / "logs").exists()


def test_it_says_what_an_edge_loss_weight_means(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for word, line in (
        (
            "0.1",
            "edge loss weight 0.1: how hard that pulls depends on the model (train/edge_grad_ratio tells it every ",
        ),
        ("auto:0.3", "edge loss weight auto:0.3: its gradient is held at 0.3 of the main loss's\n"),
        ("0", "edge loss weight 0\n"),
    ):
        assert main(["--base", "tiny.yaml", "--check", f"model.params.edge_loss_weight={word}"]) == 0
        assert line in capsys.readouterr().out


def test_code_outside_the_known_packages_is_not_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "own_code.py").write_text("open('ran', 'w').close()\nclass Own: ...\n")
    words = ["--base", "tiny.yaml", "--logger", "csv", "lightning.callbacks.own={target: own_code.Own}"]
    assert main(words) == 2
    assert "to run its code, pass --trust_config" in capsys.readouterr().err and not (here / "ran").exists()
