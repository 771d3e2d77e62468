"""The scripts under examples/cluster: what they would run, and a training that torchrun starts on two CPU processes."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import ROOT, write_tiny_run

from ldm.training.cli import parse_arguments
from ldm.training.options import REQUEUE

SCRIPTS = ROOT / "examples" / "cluster"
WORDS = ["--base", "tiny.yaml", "strategy/ddp.yaml", "--name", "mine"]
TOLD = {
    "torchrun.sh": {"GPUS": "4", "NODES": "2"},
    "slurm.sh": {"SLURM_NTASKS_PER_NODE": "4", "SLURM_JOB_NUM_NODES": "2"},
}


@pytest.mark.parametrize("script", TOLD)
def test_dry_run_shows_a_command_that_main_understands(script: str) -> None:
    environment = {**os.environ, **TOLD[script], "DRY_RUN": "1", "PYTHON": "python"}
    command = ["bash", str(SCRIPTS / script), *WORDS, "a.b=two words"]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    words = shlex.split(said)
    options = parse_arguments(words[words.index("main.py") + 1 :])
    assert options.base == ["tiny.yaml", "strategy/ddp.yaml"] and options.overrides == ["a.b=two words"]
    assert (options.trainer["devices"], options.trainer["num_nodes"], options.resume) == (4, 2, "auto")


def test_slurm_asks_to_be_queued_again_only_when_all_is_saved(tmp_path: Path) -> None:
    for name, body in {"srun": 'exit "$STATUS"', "scontrol": 'echo "$@" >> asked'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    for status in (0, 1, REQUEUE):
        environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "STATUS": str(status)}
        command = ["bash", str(SCRIPTS / "slurm.sh"), *WORDS]
        done = subprocess.run(command, cwd=tmp_path, env={**environment, "SLURM_JOB_ID": "7"}, check=False)
        assert done.returncode == status
        assert (tmp_path / "asked").exists() == (status == REQUEUE)
    assert (tmp_path / "asked").read_text() == "requeue 7\n"


@pytest.mark.parametrize(
    ("told", "node", "status"),
    [("75", 0, REQUEUE), ("0", 0, 0), ("0", 1, REQUEUE), ("", 0, 1), ("", 1, 1), ("2", 0, 2)],
)
def test_torchrun_asks_to_be_started_again_only_when_all_is_saved(
    tmp_path: Path, told: str, node: int, status: int
) -> None:
    """`python`, which would be torchrun, passes the signal on, has the training tell of its end, and says 1."""
    at_signal = f'printf "%s" "{told}" > "$STATUS_FILE"; exit 1'
    stand_in = f"trap '{at_signal}' TERM\necho ready\nwhile :; do sleep 0.1; done\n"
    (tmp_path / "python").write_text(f"#!/bin/bash\n{stand_in}")
    (tmp_path / "python").chmod(0o755)
    environment = {**os.environ, "GPUS": "2", "PYTHON": str(tmp_path / "python"), "NODE_RANK": str(node)}
    environment |= {"TMPDIR": str(tmp_path)}
    command = ["bash", str(SCRIPTS / "torchrun.sh"), *WORDS]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None and script.stdout.readline() == "ready\n"
        script.send_signal(signal.SIGUSR1)
        assert script.wait(timeout=60) == status
    assert [file.name for file in tmp_path.iterdir()] == ["python"]  # nothing stays behind


def test_torchrun_trains_in_one_folder_and_goes_on_after_a_signal(tmp_path: Path) -> None:
    write_tiny_run(tmp_path)
    (tmp_path / "main.py").symlink_to(ROOT / "main.py")
    told = {"GPUS": "2", "ACCELERATOR": "cpu", "MASTER_PORT": "29617", "PYTHON": sys.executable}
    environment = {**os.environ, **told, "PYTHONPATH": str(ROOT)}
    flags = ["--logger", "csv", "--no-test", "lightning.callbacks=null"]
    command = ["bash", str(SCRIPTS / "torchrun.sh"), *WORDS, *flags]
    first = subprocess.Popen(
        [*command, "--max_steps", "100000"],
        cwd=tmp_path,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert first.stdout is not None
    said = ""
    for line in first.stdout:
        said += line
        if line.startswith("step 1/"):
            first.send_signal(signal.SIGUSR1)
            break
    said += first.stdout.read()
    assert first.wait(timeout=100) == REQUEUE, said
    (run,) = (tmp_path / "logs").iterdir()  # of both processes
    assert (run / "checkpoints" / "last.ckpt").is_file()
    again = subprocess.run(
        [*command, "--max_steps", "1"], cwd=tmp_path, env=environment, text=True, capture_output=True
    )
    assert again.returncode == 0 and "nothing to do" in again.stdout, again.stdout + again.stderr
    assert list((tmp_path / "logs").iterdir()) == [run]
