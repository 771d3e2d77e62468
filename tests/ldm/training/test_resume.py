"""Resuming as users do it: what they change, a torn checkpoint, `--resume auto`, signals, several processes."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny_run import write_tiny_run

from basicsr.data.pack import pack
from ldm.training.options import REQUEUE
from main import main

ROOT = Path(__file__).parents[3]
EVERY_STEP = "lightning.modelcheckpoint.params.every_n_train_steps=1"
COMMON = ["--logger", "csv", "lightning.callbacks=null"]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def only_run(folder: Path) -> Path:
    (run,) = (folder / "logs").iterdir()
    return run


def test_the_learning_rate_that_is_given_is_used(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--base", "tiny.yaml", *COMMON, "--max_steps", "1"]) == 0
    run = only_run(here)
    assert main(["--resume", str(run), "--max_steps", "2", "model.base_learning_rate=1e-9"]) == 0
    assert "learning rate 1e-09" in capsys.readouterr().out
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["optimizer_states"][0]["param_groups"][0]["lr"] == 1e-9


@pytest.mark.parametrize(
    "word",
    [
        "model.params.ckpt_path=tiny.yaml",
        "model.params.linear_end=0.02",
        "model.params.parameterization=eps",
        "model.params.use_ema=true",
        "model.params.edge_loss_type=adversarial",
        "model.params.first_stage_config.params.ckpt_path=tiny.yaml",
    ],
)
def test_what_would_have_no_effect_is_refused_by_name(
    here: Path, capsys: pytest.CaptureFixture[str], word: str
) -> None:
    run = here / "logs" / "2026-01-31T12-00-00_a"
    (run / "checkpoints").mkdir(parents=True)
    (run / "configs").mkdir()
    torch.save(
        {"state_dict": {}, "global_step": 1, "loops": {}, "optimizer_states": [{}]}, run / "checkpoints" / "last.ckpt"
    )
    (run / "configs" / "2026-01-31T12-00-00-config.yaml").write_text(f"base: {here}/tiny.yaml\n")
    settings = "name: a\nseed: 23\nscale_lr: false\nproject: p\nlogger: csv\nwandb_id: w\n"
    (run / "configs" / "run.yaml").write_text(settings)
    assert main(["--resume", str(run), word]) == 2
    error = capsys.readouterr().err
    assert f"command line: {word.partition('=')[0]}: cannot change from" in error and error.count("\n") == 1


def test_a_torn_checkpoint_falls_back_loudly(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keep = "lightning.modelcheckpoint.params.save_top_k=-1"
    assert main(["--base", "tiny.yaml", *COMMON, EVERY_STEP, keep]) == 0
    checkpoints = only_run(here) / "checkpoints"
    (checkpoints / "step000002.ckpt").unlink()
    torn = checkpoints / "last.ckpt"
    content = bytearray(torn.read_bytes())
    content[len(content) // 2] ^= 255  # of the right length and with a sound table, but one byte is another
    torn.write_bytes(content)
    assert main(["--resume", str(only_run(here)), "--max_steps", "3"]) == 0
    out = capsys.readouterr().out
    assert f"{torn} is damaged or missing: going on from {checkpoints / 'step000001.ckpt'} instead" in out
    assert "(resumed at step 1)" in out


def test_auto_goes_on_with_the_run_of_that_name_or_starts_anew(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--base", "tiny.yaml", *COMMON, "--name", "mine", "--resume", "auto"]
    assert main([*command, "--max_steps", "1"]) == 0
    assert main([*command, "--max_steps", "2"]) == 0
    assert "(resumed at step 1)" in capsys.readouterr().out and only_run(here).name.endswith("_mine")
    assert main([*command, "--max_steps", "2"]) == 0
    assert "nothing to do: " in capsys.readouterr().out
    assert main(["--base", "tiny.yaml", *COMMON, "-n", "other", "--resume", "auto", "--max_steps", "1"]) == 0
    assert len(list((here / "logs").iterdir())) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_schedulers_signal_saves_and_asks_to_be_started_again(here: Path, number: signal.Signals) -> None:
    """Which it sends to all processes of a job: here to a loader's worker, too."""
    command = [sys.executable, str(ROOT / "main.py"), "--base", "tiny.yaml", *COMMON, "--max_steps", "100000"]
    process = subprocess.Popen(
        [*command, "data.params.num_workers=1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        said += line
        if line.startswith("step 1/"):
            os.killpg(process.pid, number)
            break
    said += process.stdout.read()
    assert process.wait(timeout=60) == REQUEUE, said
    assert "with everything saved" in said and (only_run(here) / "checkpoints" / "last.ckpt").is_file()


def test_from_tar_files_a_run_is_that_from_their_folder_also_stopped_in_the_midst_of_one(here: Path) -> None:
    """With the pool, and from the degradation on: the same weights, to the bit."""
    assert pack(here / "pictures", here / "pack", "tar", 10**9) == 4
    words = [f"data.params.train.params.{word}" for word in ("gt_path=pack", "io_backend={type: tar}")]
    for name, steps, more in (("folder", "4", []), ("tar", "4", words), ("parted", "3", words)):
        assert main(["--base", "tiny.yaml", *COMMON, "-n", name, "--max_steps", steps, *more]) == 0
    runs = [next((here / "logs").glob(f"*_{name}")) for name in ("folder", "tar", "parted")]
    assert main(["--resume", str(runs[2]), "--max_steps", "4"]) == 0
    folder, *others = (torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in runs)
    for other in others:
        assert folder.keys() == other.keys() and all(torch.equal(value, other[key]) for key, value in folder.items())


@pytest.mark.parametrize("pool", ["pixels", "latents"])
def test_two_processes_go_on_with_the_pools_of_both(here: Path, pool: str) -> None:
    """Each rank's pool is full after two steps of the queue's size 2, so that later steps draw from it."""
    flags = ["--accelerator", "cpu", "--devices", "2", "--strategy", "ddp", *COMMON, f"model.params.pool={pool}"]

    def run(*words: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(ROOT / "main.py"), *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    run("--base", "tiny.yaml", "-n", "straight", "--max_steps", "4", *flags)
    run("--base", "tiny.yaml", "-n", "parted", "--max_steps", "3", *flags)
    straight, parted = (next((here / "logs").glob(f"*_{name}")) for name in ("straight", "parted"))
    run("--resume", str(parted), "--max_steps", "4")
    states = [torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (straight, parted)]
    for key, value in states[0]["state_dict"].items():
        assert torch.equal(value, states[1]["state_dict"][key]), key
    pools = (
        states[0]["latent_pool"]["ranks"] if pool == "latents" else states[0]["DataModuleFromConfig"]["pool_origins"]
    )
    assert len(pools) == 2
