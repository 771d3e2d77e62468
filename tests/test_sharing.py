"""Work shared over processes: the same files whoever makes them, and no process left when one fails."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image
from tiny_run import ROOT, write_tiny_model, write_tiny_run

from ldm.inference.cfw_data import FOLDERS

ALONE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Small pictures, a tiny model, and a run of it with one checkpoint."""
    folder = tmp_path_factory.mktemp("shared")
    write_tiny_run(folder)
    write_tiny_model(folder)
    photo = Image.fromarray(skimage.data.coffee())
    (folder / "small").mkdir()
    for index in range(4):
        photo.crop((40 * index, 60, 40 * index + 12, 72)).save(folder / "small" / f"{index}.png")
    for place in ("checkpoints", "configs"):
        (folder / "runs/mine" / place).mkdir(parents=True)
    torch.save({**torch.load(folder / "model.ckpt"), "global_step": 7}, folder / "runs/mine/checkpoints/last.ckpt")
    config = folder / "runs/mine/configs/2026-01-31T12-00-00-config.yaml"
    config.write_bytes((folder / "tiny.yaml").read_bytes())
    return folder


def command(here: Path, script: str, *words: str) -> list[str]:
    model = ["--base", "tiny.yaml", "--ckpt", "model.ckpt", "--device", "cpu"] if script != "evaluate" else []
    return [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *model, *words]


def run(here: Path, script: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(here, script, *words), cwd=here, env=ALONE, capture_output=True, text=True, timeout=200
    )


def files(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*.png")}


def test_upscaling_by_two_processes_gives_the_same_files(here: Path) -> None:
    words = ("--input", "small", "--steps", "2", "--upscale", "2", "--batch", "1")
    done = [run(here, "upscale", *words, "--output", f"up{n}", "--devices", str(n)) for n in (1, 2)]
    assert [each.returncode for each in done] == [0, 0], done[1].stderr
    assert [each.stdout for each in done] == [f"4 upscaled; results: up{n}\n" for n in (1, 2)]
    assert files(here / "up1") == files(here / "up2") and len(files(here / "up1")) == 4
    (here / "up2/1.png").unlink()
    (here / "small/3.png").write_bytes(b"no picture")
    (here / "up2/3.png").unlink()
    again = run(here, "upscale", *words, "--output", "up2", "--devices", "2")
    assert "1 upscaled, 2 skipped, finished before (--overwrite), 1 failed" in again.stdout
    assert again.returncode == 1 and again.stderr.count("error: small/3.png") == 1


def test_a_manifest_is_one_for_all_machines_whatever_their_number(here: Path) -> None:
    (here / "many").mkdir()
    for index in range(4):
        Image.fromarray(skimage.data.coffee()[60:72, 40 * index :][:, :12]).save(here / f"many/{index}.png")
    (here / "many/broken.png").write_bytes(b"no picture")
    words = ("--input", "many", "--steps", "2", "--upscale", "2", "--output", "kept", "--manifest")
    machines = [
        subprocess.Popen(
            command(here, "upscale", *words, "--nodes", "2"),
            cwd=here,
            env={**ALONE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29631", "NODE_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [machine.communicate(timeout=200) for machine in machines]
    assert [machine.returncode for machine in machines] == [1, 0], said
    assert (
        said[0][0] == "4 upscaled, 1 failed; results: kept; what failed: kept/manifest/failed.txt\n" and not said[1][0]
    )
    done = [(here / f"kept/manifest/done-{rank}.jsonl").read_text().splitlines() for rank in (0, 1)]
    assert sorted(done[0] + done[1]) == [f'"{index}.png"' for index in range(4)] and min(map(len, done)) == 2
    (here / "many/broken.png").unlink()
    for file in (here / "kept").glob("*.png"):
        file.unlink()
    again = run(here, "upscale", *words)
    assert again.returncode == 0 and not files(here / "kept"), again.stderr
    assert again.stdout == "4 skipped, finished before (--overwrite); results: kept\n"


def test_evaluation_by_two_processes_gives_the_same_report(here: Path) -> None:
    words = ("--run", "runs/mine", "--also", "bicubic", "--data", "pictures", "--steps", "2", "--sampler", "ddim")
    done = [run(here, "evaluate", *words, "--out", f"report{n}", "--devices", str(n)) for n in (1, 2)]
    assert [each.returncode for each in done] == [0, 0], done[1].stderr
    assert done[1].stdout.count("8 results") == 1 and done[1].stderr.count("4 pictures, ") == 1
    for file in ("results.csv", "checkpoints.csv"):
        assert (here / "report1" / file).read_bytes() == (here / "report2" / file).read_bytes()
    assert files(here / "report1/restored") == files(here / "report2/restored")


def children(pid: int) -> set[int]:
    """Of a process, and of its children, by what the kernel says."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True).stdout.split()
    return {int(each) for each in found}.union(*(children(int(each)) for each in found))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait(until: Callable[[], bool], seconds: float = 60) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if until():
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("which", ["first", "second"])
def test_a_killed_process_takes_the_others_along_and_the_rest_is_made_later(which: str, here: Path) -> None:
    output = here / f"cfw-{which}"
    words = ("--input", "pictures", "--repeats", "3", "--steps", "30", "--batch", "1", "--workers", "0")
    whole = here / "cfw-whole"
    if not whole.exists():
        assert run(here, "generate_cfw_data", *words, "--output", str(whole)).returncode == 0
    arguments = command(here, "generate_cfw_data", *words, "--output", str(output), "--devices", "2")
    with subprocess.Popen(arguments, cwd=here, env=ALONE, stderr=subprocess.DEVNULL) as first:
        assert wait(lambda: len(list(output.glob("samples/*"))) >= 2)
        others = children(first.pid)
        assert others
        os.kill(first.pid if which == "first" else min(others), signal.SIGKILL)
        assert wait(lambda: first.poll() is not None and not any(map(alive, others)), 15)
    left = {file.relative_to(output): file.read_bytes() for kind in FOLDERS for file in (output / kind).iterdir()}
    assert run(here, "generate_cfw_data", *words, "--output", str(output), "--devices", "2").returncode == 0
    made = {file.relative_to(output): file.read_bytes() for kind in FOLDERS for file in (output / kind).iterdir()}
    want = {file.relative_to(whole): file.read_bytes() for kind in FOLDERS for file in (whole / kind).iterdir()}
    assert made == want and len(left) < len(want)


RAISING = """
import sys
from pathlib import Path
from basicsr.utils.errors import UserError
from ldm.console import exit_status
from ldm.inference.sharing import Team

def run():
    team = Team.of(2, device="cpu")
    team.gathered("here")
    if str(team.rank) == sys.argv[1]:
        Path("raised").touch()
        raise UserError("the disk is full")
    team.sums(1)
    return 0

sys.exit(exit_status(run, interrupted="interrupted"))
"""


@pytest.mark.parametrize("which", [0, 1])
def test_a_process_that_fails_says_why_and_the_other_ends_without_a_trace(which: int, tmp_path: Path) -> None:
    (tmp_path / "raising.py").write_text(RAISING)
    arguments = [sys.executable, "raising.py", str(which)]
    with subprocess.Popen(arguments, cwd=tmp_path, env=ALONE, stderr=subprocess.PIPE, text=True) as first:
        assert wait((tmp_path / "raised").exists)
        others = children(first.pid)
        assert wait(lambda: first.poll() is not None and not any(map(alive, others)), 15)
        said = first.stderr.read() if first.stderr else ""
    # The first one waits for the second: it says so, unless Lightning ends it before.
    line = "error: one of the 2 processes failed, as it says itself, or was killed; the same command goes on"
    expected = {"error: the disk is full"} | ({line} if which else set())
    assert "error: the disk is full" in said.splitlines() and set(said.splitlines()) <= expected, said
    assert first.returncode != 0


def test_what_all_processes_find_is_told_once(here: Path) -> None:
    (here / "bad.ckpt").write_bytes(b"no weights")
    words = ["--base", "tiny.yaml", "--ckpt", "bad.ckpt", "--input", "small", "--output", "none", "--devices", "2"]
    for script in ("upscale", "generate_cfw_data"):
        command = [sys.executable, str(ROOT / "scripts" / f"{script}.py"), *words]
        done = subprocess.run(command, cwd=here, env=ALONE, capture_output=True, text=True, timeout=200)
        assert done.returncode == 2
        assert done.stderr.count("error: bad.ckpt cannot be read") == 1 and len(done.stderr.splitlines()) == 1, (
            done.stderr
        )
