"""What happens to the machine under a training: the disk is full, a folder vanishes, a loader's worker dies."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from faults.kills import Stage
from tiny_run import write_tiny_run

from ldm.evaluation.measure.cli import main as evaluate
from ldm.inference.cli import main as upscale
from ldm.training.cli import main


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """A full disk for who may mount none: no file grows beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("error: ") for line in lines) == 1 and "Traceback" not in "\n".join(lines)
    return lines[-1]


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    stage = Stage(tmp_path / "toy", 1, 12)
    stage.phases.write_bytes(bytes(64))
    monkeypatch.chdir(stage.folder)
    return ["--base", "toy.yaml", "--trust_config", "--logger", "csv", "--name", "a", "--resume", "auto"]


def test_a_full_disk_costs_no_more_than_the_steps_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    command = ["--base", "tiny.yaml", "--logger", "csv", "lightning.callbacks=null", "-n", "a", "--resume", "auto"]
    assert main([*command, "--max_steps", "1"]) == 0
    capsys.readouterr()
    with files_of_at_most(1_000_000):
        assert main([*command, "--max_steps", "2"]) == 2
    assert "last.ckpt cannot be written (no room on the disk: free some); last.ckpt is as it was. Make room, " in (
        last_line(capsys)
    )
    (run,) = (tmp_path / "logs").iterdir()
    last = run / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 1
    assert [file.name for file in last.parent.iterdir()] == ["last.ckpt"]
    assert main([*command, "--max_steps", "2"]) == 0

    words = ["--base", "tiny.yaml", "--ckpt", str(last), "--input", "pictures", "--steps", "1", "--upscale", "1"]
    measuring = ["--run", str(run), "--data", "pictures", "--out", "report", "--steps", "1", "--checkpoints", "last"]
    for program, line, at in ((upscale, words, "results"), (evaluate, measuring, "report")):
        capsys.readouterr()
        with files_of_at_most(400):
            assert program(line) == 2
        assert "cannot be written (no room on the disk: free some)" in last_line(capsys)
        assert not list(Path(at).rglob("*.part"))
        assert program(line) == 0


def test_a_run_folder_that_vanishes(toy: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*toy, f"model.params.loses={Path.cwd() / 'logs'}"]) == 2
    assert "metrics.csv cannot be written (No such file or directory)" in last_line(capsys)
    assert main(toy) == 0


@pytest.mark.parametrize("place", ["/proc/runs", "toy.yaml/runs"])
def test_a_place_that_takes_no_runs(toy: list[str], place: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*toy, "-l", place]) == 2
    line = last_line(capsys)
    assert f"the run folder {place}" in line and "cannot be written" in line and "--logdir" in line


@pytest.mark.parametrize(
    ("pictures", "said"),
    [("DyingPictures", "a worker of the loader died"), ("PicturesWithoutSharedMemory", "out of shared memory")],
)
def test_a_worker_that_dies(toy: list[str], pictures: str, said: str, capfd: pytest.CaptureFixture[str]) -> None:
    words = [f"data.params.train.target=faults.toy.{pictures}", "data.params.num_workers=1"]
    assert main([*toy, *words]) == 2
    lines = capfd.readouterr().err.splitlines()
    assert lines[-1].lstrip("\0").startswith("error: ") and said in lines[-1] and "--resume the run" in lines[-1]
    assert main([*toy, "data.params.num_workers=0"]) == 0
