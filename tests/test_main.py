"""The trainer as its users meet it: the command line, resuming, Ctrl-C, several processes, and mistakes."""

import errno
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from tiny_run import write_tiny_run

from ldm.config import load_config
from ldm.training.loggers import read_metrics
from main import main

ROOT = Path(__file__).parents[1]
EVERY_STEP = "lightning.modelcheckpoint.params.every_n_train_steps=1"
NO_CALLBACKS = "lightning.callbacks=null"
COMMAND = [sys.executable, str(ROOT / "main.py")]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with four pictures and tiny.yaml, as the working directory."""
    write_tiny_run(tmp_path)
    (tmp_path / "five.yaml").write_text("base: 5")
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    return tmp_path


def train(*words: str) -> int:
    return main(["--base", "tiny.yaml", "--logger", "csv", NO_CALLBACKS, *words])


def only_run(folder: Path) -> Path:
    (run,) = (folder / "logs").iterdir()
    return run


def test_one_command_trains_and_leaves_everything(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--base", "tiny.yaml", "data.params.batch_size=2", "--max_steps", "3", "-n", "first", "-f", "_try"]
    assert main(words) == 0
    run = only_run(here)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d_first_try", run.name)
    for name in ("checkpoints/last.ckpt", "images/final.png", "metrics.csv", "loss_curves.png", "configs/run.yaml"):
        assert (run / name).is_file(), name
    rows = read_metrics(run / "metrics.csv")
    assert [row["step"] for row in rows if "train/loss" in row] == [0, 1, 2]
    assert all(row["train/loss_edge"] > 0 for row in rows if "train/loss" in row)
    config = yaml.safe_load(next(run.glob("configs/*-config.yaml")).read_text())
    assert config["data"]["params"]["batch_size"] == 2 and config["lightning"]["trainer"]["max_steps"] == 3
    out = capsys.readouterr().out
    assert out.count("W&B runs offline (no API key and no WANDB_MODE); send this run later with: wandb sync ") == 1
    assert len(list(run.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert re.search(r"^steps +3$", out, re.M) and re.search(r"^last loss_edge +\d", out, re.M) and str(run.name) in out
    assert "edge loss on the fixed validation batch: " in out


def wandb_history(run: Path) -> list[dict[str, float]]:
    """The points of an offline W&B run, read back from its file by W&B's own reader."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    reader = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    lines = subprocess.run(reader, capture_output=True, text=True, check=True).stdout.splitlines()
    records = [json.loads(line) for line in lines]
    return [record["history"]["item"] for record in records if record["type"] == "history"]


def test_the_edge_loss_arrives_in_wandb_and_the_yaml_switches_it(here: Path) -> None:
    histories = {}
    for weight in (0, 0.1):
        (here / "mine.yaml").write_text(f"base: tiny.yaml\nmodel: {{params: {{edge_loss_weight: {weight}}}}}\n")
        assert main(["--base", "mine.yaml", NO_CALLBACKS, "-n", f"weight{weight}"]) == 0
        histories[weight] = wandb_history(next((here / "logs").glob(f"*_weight{weight}")))
    plain, edged = histories[0], histories[0.1]
    assert len(plain) == len(edged) == 2
    assert not any("edge" in name for point in plain for name in point)
    for point in edged:
        assert point["train/loss_edge"] > 0 and 0 <= point["train/edge_map_mse"] <= 1
        total = point["train/loss_simple"] + 0.1 * point["train/loss_edge"]
        assert point["train/loss"] == pytest.approx(total, rel=1e-6)
    # Same seed, same first step: what the edge loss adds is all that differs.
    assert edged[0]["train/loss_simple"] == plain[0]["train/loss"]


@pytest.mark.parametrize("first", [3, 4])  # in the middle of an epoch of four, and at its end
def test_a_resumed_run_is_the_straight_one(here: Path, first: int) -> None:
    assert train("-n", "straight", "--max_steps", "6") == 0
    assert train("-n", "parted", "--max_steps", str(first)) == 0
    straight, parted = (next((here / "logs").glob(f"*_{name}")) for name in ("straight", "parted"))
    assert main(["--resume", str(parted), "--max_steps", "6"]) == 0
    columns = list(read_metrics(straight / "metrics.csv")[0])
    losses = [
        [tuple(row.get(key) for key in columns) for row in read_metrics(run / "metrics.csv") if "train/loss" in row]
        for run in (straight, parted)
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 6


ALL_EDGE_OPTIONS = [f"model.params.edge_{word}" for word in (
    "loss_weight=auto:0.2", "warmup_steps=3", "max_timestep=800", "min_snr=0.001", "crop=4", "crop_by=edges",
    "target=pixels", "operator=sobel", "dilate=1", "base_weight=0.2", "normalize=mean1", "loss_type=gradient",
)]  # fmt: skip


def test_all_edge_options_in_a_run_that_is_resumed(here: Path) -> None:
    assert train("-n", "straight", "--max_steps", "4", *ALL_EDGE_OPTIONS) == 0
    assert train("-n", "parted", "--max_steps", "2", *ALL_EDGE_OPTIONS) == 0
    straight, parted = (next((here / "logs").glob(f"*_{name}")) for name in ("straight", "parted"))
    assert main(["--resume", str(parted), "--max_steps", "4"]) == 0
    rows = [row for row in read_metrics(straight / "metrics.csv") if "train/loss" in row]
    assert rows == [row for row in read_metrics(parted / "metrics.csv") if "train/loss" in row] and len(rows) == 4
    active = [row for row in rows if row["train/edge_active"]]
    assert active and all(row["train/edge_grad_ratio"] > 0 and "train/loss_edge" in row for row in active)


def test_a_window_that_does_not_fit_ends_the_run_with_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("model.params.edge_crop=99") == 2
    error = capsys.readouterr().err
    assert "error: model.params.edge_crop is 99 cells and the latents are 16 x 16" in error and "Traceback" not in error


def test_resuming_from_one_checkpoint_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(EVERY_STEP, "lightning.modelcheckpoint.params.save_top_k=-1") == 0
    run = only_run(here)
    files = {path.name for path in (run / "checkpoints").iterdir()}
    assert files == {"step000001.ckpt", "step000002.ckpt", "last.ckpt"}
    assert main(["--resume", str(run / "checkpoints" / "step000001.ckpt")]) == 0
    assert "(resumed at step 1)" in capsys.readouterr().out
    assert [row["step"] for row in read_metrics(run / "metrics.csv")] == [0, 1]
    assert main(["--resume", str(run)]) == 2
    assert "stands at step 2, the last of this run" in capsys.readouterr().err


def test_scaled_learning_rate(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data.params.batch_size=2", "model.base_learning_rate=1e-4", "--accumulate_grad_batches", "2"]
    assert train("--scale_lr", *words, "--max_steps", "1") == 0
    line = "learning rate 0.0004 = 0.0001 (base) x 1 (processes) x 2 (batch) x 2 (accumulation), on 1 x cpu"
    assert line in capsys.readouterr().out


def test_a_pass_over_test_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = load_config(["tiny.yaml"]).values["data"]
    params = {"batch_size": 2, "num_workers": 0, "test": block["params"]["validation"]}
    (here / "test.yaml").write_text(yaml.safe_dump({"test_data": {"target": block["target"], "params": params}}))
    words = ["--base", "tiny.yaml", "test.yaml", "--logger", "csv", "--train", "false"]
    assert main(words) == 0
    assert re.search(r"^test_data: val/loss.* \d", capsys.readouterr().out, re.M)
    assert main([*words, "--no-test"]) == 0
    assert main([*words, "test_data.params.test.params.gt_path=gone"]) == 0
    assert re.search("no test pass: .*gone", capsys.readouterr().out)


def run_command(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        words,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def test_ctrl_c_saves_and_the_command_it_prints_goes_on(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    process = run_command([*COMMAND, "--base", "tiny.yaml", "--logger", "csv", "--max_steps", "100000", NO_CALLBACKS])
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("step 1/"):
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does
            break
    said += process.stdout.read()
    assert process.wait(timeout=60) == 130, said
    run = only_run(here)
    assert (run / "checkpoints" / "last.ckpt").is_file() and "Traceback" not in said
    step = int(re.search(r"stopped after step (\d+) with everything saved", said)[1])  # type: ignore[index]  # None fails, as it should
    assert len(read_metrics(run / "metrics.csv")) >= step // 50
    script, *words = shlex.split(re.search("go on with: python (.*)", said)[1])  # type: ignore[index]  # None fails, as it should
    assert script == COMMAND[1] and main([*words, "--max_steps", str(step + 1)]) == 0
    assert f"(resumed at step {step})" in capsys.readouterr().out


def test_two_processes_train_as_one_run(here: Path) -> None:
    flags = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", "--logger", "csv", "--scale_lr"]
    process = run_command([*COMMAND, "--base", "tiny.yaml", *flags, EVERY_STEP, NO_CALLBACKS])
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    run = only_run(here)  # one folder, though each process took the time
    assert (run / "checkpoints" / "last.ckpt").is_file()
    assert [row["step"] for row in read_metrics(run / "metrics.csv") if "train/loss" in row] == [0, 1]
    for line in ("run folder: ", "learning rate 0.001 = ", "Edge loss enabled", "steps  "):
        assert said.count(line) == 1, said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "no config"),
        (["--base", "tiyn.yaml"], "did you mean 'tiny.yaml'?"),
        (["--base", "tiny.yaml", "--max_stps", "1"], "unknown flag --max_stps; did you mean '--max_steps'?"),
        (["--base", "tiny.yaml", "loose"], "loose"),
        (["--base", "tiny.yaml", "--max_steps", "many"], "Trainer takes int for 'max_steps', not 'many'"),
        (["--base", "tiny.yaml", "--gpus", "0,", "--devices", "1"], "give one of them"),
        (["--base", "tiny.yaml", "--precision", "17"], "precision"),
        (["--base", "tiny.yaml", "--scale_lr", "perhaps"], "neither true nor false"),
        (["--base", "tiny.yaml", "model.params.edge_loss_wieght=1"], "did you mean 'edge_loss_weight'?"),
        (["--base", "tiny.yaml", "model.params.edge_loss_weight=auto:no"], "auto:FRACTION"),
        (["--base", "tiny.yaml", "model.params.edge_crop_by=edges"], "there is no window: set edge_crop"),
        (["--base", "tiny.yaml", "data.params.batch_size=9"], "takes 9 pictures and the training set has 4"),
        (["--base", "tiny.yaml", "data.params.batch_size=4"], "size=2 is not a multiple of data.params.batch_size=4"),
        (["--base", "tiny.yaml", "model.base_learning_rate=0"], "must be a number above 0"),
        (["--base", "tiny.yaml", "model.params.ckpt_path=gone.ckpt"], "; get v2-1_512-ema"),
        (["--base", "tiny.yaml", "degradation.nose_range=[1,2]"], "noise_range"),
        (["--base", "tiny.yaml", "--seed", "-1"], "--seed is -1"),
        (["--base", "tiny.yaml", "--accumulate_grad_batches", "0"], "lightning.trainer.accumulate_grad_batches is 0"),
        (["--base", "tiny.yaml", "--precision", "bf16-true"], "precision is 'bf16-true': choose one of 32-true,"),
        (["--base", "tiny.yaml", "data.params.train=[]"], "command line: Cannot merge"),
        (["--base", "tiny.yaml", "test_data=3"], "test_data: must be a mapping"),
        (["--base", "tiny.yaml", "model.base_learning_rate=.inf"], "it must be a number above 0"),
        (["--base", "tiny.yaml", "-n", "a/b"], "a name of at most"),
        (["--base", "tiny.yaml", "model.params.ckpt_path=''"], "model.params.ckpt_path: is empty"),
        (["--base", "tiny.yaml", "lightning.trainer.logger=true"], "use --logger instead"),
        (["--base", "five.yaml"], "five.yaml: base: 5 is not a YAML file's name"),
        (["--resume", "logs/none"], "there is no such folder or file"),
        (["--resume", "pictures"], "last.ckpt is not there"),
        (["--resume", "pictures", "--seed", "-1"], "--seed is -1"),
        (["--resume", "garbage", "-n", "x"], "keeps its folder"),
    ],
)
def test_mistakes_get_one_line(here: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and line in error
    assert not (here / "logs").exists()


@pytest.mark.parametrize(("words", "line"), [
    (["-l", "pictures/0.png"], "the run folder pictures/0.png/"),
    (["degradation.gt_size=30"], "multiples of 2, these have 15 x 15 cells"),
    (["model.params.scale_factor=0"], "model.params.scale_factor is 0: give a number of 1e-06 or more"),
    (["model.params.time_replace=2000"], "model.params.time_replace is 2000: give a number from 1 to 1000"),
    (["data.params.num_workers=-1"], "data.params.num_workers is -1: give a number of 0 or more"),
    (["data.params.train.params.crop_size=0"], "data.params.train.params.crop_size is 0"),
    (["--val_check_interval", "1000"], "lightning: `val_check_interval` (1000) must be"),
])  # fmt: skip
def test_mistakes_that_show_later_get_one_line_too(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    assert train(*words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: ") and line in error


@pytest.mark.parametrize(("spoil", "line"), [
    (lambda file: file.write_bytes(b"no checkpoint"), "cannot be read as a checkpoint"),
    (lambda file: file.write_bytes(file.read_bytes()[:5000]), "cannot be read as a checkpoint"),
    (lambda file: file.unlink(), "last.ckpt is not there"),
])  # fmt: skip
def test_a_spoilt_checkpoint(here: Path, capsys: pytest.CaptureFixture[str], spoil: object, line: str) -> None:
    assert train("--max_steps", "1") == 0
    run = only_run(here)
    spoil(run / "checkpoints" / "last.ckpt")  # type: ignore[operator]  # one of several functions, as parametrised
    capsys.readouterr()
    assert main(["--resume", str(run), "--max_steps", "2"]) == 2
    assert line in capsys.readouterr().err


def test_a_full_disk_leaves_the_former_checkpoint(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(checkpoint: object, file: Path) -> None:
        file.write_bytes(b"half a checkpo")
        raise OSError(errno.ENOSPC, "No space left on device")

    assert train("--max_steps", "1") == 0
    last = only_run(here) / "checkpoints" / "last.ckpt"
    before = last.read_bytes()
    capsys.readouterr()
    monkeypatch.setattr(torch, "save", fill)
    assert main(["--resume", str(only_run(here)), "--max_steps", "2"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "last.ckpt cannot be written (no room on the disk: free some); last.ckpt is as it was" in error
    assert last.read_bytes() == before and [file.name for file in last.parent.iterdir()] == ["last.ckpt"]


def test_a_failed_resume_leaves_the_run_as_it_was(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--max_steps", "1") == 0
    run = only_run(here)
    resume = ["--resume", str(run), "--max_steps", "2"]
    assert main([*resume, "model.params.unet_config.params.model_channels=64"]) == 2
    assert "does not fit the config's model: size mismatch" in capsys.readouterr().err
    assert main(resume) == 0


def test_help_lists_both_kinds_of_flags(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    for flag in ("--base", "--resume", "--scale_lr", "--no-test", "--gpus", "--max_steps", "--accumulate_grad_batches"):
        assert flag in out
