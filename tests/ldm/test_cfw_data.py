"""CFW's data, made by the command as people run it, with a tiny model of random weights."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_run import ROOT, write_tiny_model, write_tiny_run

from basicsr.utils.img_util import read_rgb
from ldm.config import load_config
from ldm.inference import cfw_data
from ldm.inference.cfw_data import FOLDERS, Degraded, list_jobs
from ldm.inference.generate_cfw_data import main
from ldm.inference.networks import Networks
from ldm.models.diffusion.sampling import Sampling
from ldm.models.formats import detect


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with four pictures, tiny.yaml and model.ckpt."""
    folder = tmp_path_factory.mktemp("cfw")
    write_tiny_run(folder)
    write_tiny_model(folder)
    return folder


def command(run: Path, output: Path, *more: str) -> list[str]:
    files = ["--base", str(run / "tiny.yaml"), "--ckpt", str(run / "model.ckpt"), "--input", str(run / "pictures")]
    return [*files, "--output", str(output), "--steps", "3", "--device", "cpu", "--workers", "0", *more]


def made(folder: Path) -> dict[str, bytes]:
    """Every file of the samples."""
    files = (file for kind in FOLDERS for file in (folder / kind).iterdir())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


@pytest.fixture(scope="module")
def alone(run: Path) -> Path:
    """What one process makes, one picture at a time."""
    assert main(command(run, run / "alone", "--batch", "1")) == 0
    return run / "alone"


def test_the_files_are_what_the_published_reader_expects(run: Path, alone: Path) -> None:
    assert set(made(alone)) == {f"{kind}/{index}{suffix}" for kind, suffix in FOLDERS.items() for index in range(4)}
    latent = np.load(alone / "latents/2.npy")
    assert latent.shape == (1, 4, 16, 16)
    assert latent.dtype == np.float32
    networks = Networks.load(run / "tiny.yaml", run / "model.ckpt", device="cpu")
    with torch.no_grad():
        decoded = networks.model.decode(torch.from_numpy(latent))[0]
    sample = torch.from_numpy(read_rgb(alone / "samples/2.png")).permute(2, 0, 1)
    assert (sample - (decoded.clamp(-1, 1) + 1) * 127.5).abs().max() <= 0.5 + 1e-3
    sizes = {Image.open(alone / kind / "2.png").size for kind in ("inputs", "gts", "samples")}
    assert sizes == {(32, 32)}
    summary = json.loads((alone / "summary.json").read_text())
    assert summary["samples"] == summary["asked_for"] == summary["made_now"] == 4
    assert summary["not_finite"] == 0
    assert summary["settings"]["steps"] == 3


def test_the_truth_is_a_crop_of_the_picture_and_the_input_is_degraded(run: Path) -> None:
    config = load_config([run / "tiny.yaml"], ["model.params.use_usm=false", "degradation.no_degradation_prob=0"])
    frames = Degraded(list_jobs([str(run / "pictures")]), config, str(run / "pictures"), 23)[0]
    assert not isinstance(frames, str)
    picture = torch.from_numpy(read_rgb(run / "pictures/0.png").copy()).permute(2, 0, 1)
    crop = (frames.gt_01 * 255).round().to(torch.uint8)
    windows = picture.unfold(1, 32, 1).unfold(2, 32, 1)  # (3, rows, columns, 32, 32)
    assert any(
        bool((windows == each[:, None, None]).all(dim=4).all(dim=3).all(dim=0).any()) for each in (crop, crop.flip(2))
    )
    assert not torch.equal(frames.lq_01, frames.gt_01)


def test_two_processes_make_the_same_files(run: Path, alone: Path) -> None:
    script = [sys.executable, str(ROOT / "scripts/generate_cfw_data.py")]
    subprocess.run([*script, *command(run, run / "two", "--batch", "1", "--devices", "2")], check=True, timeout=200)
    assert made(run / "two") == made(alone)
    assert json.loads((run / "two/summary.json").read_text())["processes"] == 2


def test_batches_change_rounding_alone(run: Path, alone: Path) -> None:
    assert main(command(run, run / "batch", "--batch", "3")) == 0
    for name in made(alone):
        if name.endswith(".npy"):
            assert np.abs(np.load(run / "batch" / name) - np.load(alone / name)).max() < 1e-4
        else:
            ours, theirs = (read_rgb(folder / name).astype(int) for folder in (run / "batch", alone))
            assert np.abs(ours - theirs).max() <= 1


def test_a_stopped_run_goes_on(run: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def stop_in_the_second_sample(file: Path, content: bytes) -> None:
        if len(written) == 6:
            raise KeyboardInterrupt
        written.append(file)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    output = run / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(cfw_data, "write_whole", stop_in_the_second_sample)
        assert main(command(run, output, "--batch", "1")) == 130
    kept = written[0].stat().st_mtime_ns
    assert main(command(run, output, "--batch", "1")) == 0
    assert made(output) == made(alone)
    assert written[0].stat().st_mtime_ns == kept
    assert json.loads((output / "summary.json").read_text())["made_now"] == 3


def test_other_settings_want_another_folder(run: Path, alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(run, alone, "--seed", "7")) == 2
    assert "seed 23 (now 7): choose another folder" in capsys.readouterr().err


def test_what_is_not_finite_or_cannot_be_read_is_left_out(
    run: Path, alone: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    good = cfw_data.SampleWriter._sampled

    def spoilt(
        self: cfw_data.SampleWriter, jobs: list[cfw_data.Job], lq_01: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        z, sample = good(self, jobs, lq_01)
        z[[job.name == "1" for job in jobs]] = torch.nan
        return z, sample

    monkeypatch.setattr(cfw_data.SampleWriter, "_sampled", spoilt)
    (tmp_path / "pictures").mkdir()
    for file in (run / "pictures").iterdir():
        (tmp_path / "pictures" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "pictures/2.png").write_bytes(b"no picture")
    arguments = command(run, tmp_path / "out", "--batch", "2")
    arguments[arguments.index("--input") + 1] = str(tmp_path / "pictures")
    assert main(arguments) == 1
    assert {name.split("/")[1].split(".")[0] for name in made(tmp_path / "out")} == {"0", "3"}
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["samples"], summary["not_finite"], summary["unreadable"]) == (2, 1, 1)


def test_a_batch_too_large_for_the_memory_is_halved(run: Path, alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, sizes = cfw_data.SampleWriter._sampled, []

    def small_memory(self: cfw_data.SampleWriter, jobs: list[cfw_data.Job], lq_01: torch.Tensor) -> object:
        sizes.append(len(jobs))
        if len(jobs) > 1:
            raise torch.OutOfMemoryError
        return good(self, jobs, lq_01)

    monkeypatch.setattr(cfw_data.SampleWriter, "_sampled", small_memory)
    assert main(command(run, run / "small", "--batch", "4")) == 0
    assert sizes == [4, 2, 1, 1, 1, 1]
    assert made(run / "small") == made(alone)


def test_samples_have_names_of_their_own(tmp_path: Path) -> None:
    for name in ("a/b.png", "a/c.jpg", "a/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    assert {job.name for job in list_jobs([str(tmp_path)])} == {"a__b", "a__c.jpg", "a__c.png"}
    assert {job.name for job in list_jobs([str(tmp_path / "a")], 2)} == {
        "b",
        "b-2",
        "c.jpg",
        "c.jpg-2",
        "c.png",
        "c.png-2",
    }


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--batch", "0"], "--batch is 0: give 1 or more"),
        (["--sampler", "plms"], "--sampler is 'plms'"),
        (["--devices", "0"], "--devices is 0: give 1"),
        (["--steps", "2000"], "2000"),
    ],
)
def test_bad_words_are_told(
    words: list[str], problem: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(run, tmp_path / "out", *words)) == 2
    assert problem in capsys.readouterr().err


def test_the_published_sampling_is_the_default() -> None:
    assert Sampling() == Sampling(200, "ddpm")


def test_faces_are_degraded_by_their_own_data_set(run: Path) -> None:
    target = "basicsr.data.ffhq_degradation_dataset.FFHQDegradationDataset"
    config = load_config([run / "tiny.yaml"], [f"data.params.train.target={target}"])
    config.values["data"]["params"]["train"]["params"] = {"dataroot_gt": "elsewhere", "out_size": 32, "gray_prob": 0.0}
    frames = [
        Degraded(list_jobs([str(run / "pictures")]), config, str(run / "pictures"), seed)[0] for seed in (1, 1, 2)
    ]
    assert not any(isinstance(each, str) for each in frames)
    assert torch.equal(frames[0].lq_01, frames[1].lq_01)  # type: ignore[union-attr]  # no str among them, as asserted above
    assert not torch.equal(frames[0].lq_01, frames[2].lq_01)  # type: ignore[union-attr]  # no str among them, as asserted above
    assert frames[0].gt_01.shape == frames[0].lq_01.shape == (3, 32, 32)  # type: ignore[union-attr]  # no str among them, as asserted above


def test_a_manifest_goes_on_without_a_look_at_the_files(run: Path, tmp_path: Path) -> None:
    pictures, output = tmp_path / "pictures", tmp_path / "out"
    shutil.copytree(run / "pictures", pictures)
    (pictures / "9.png").write_text("no picture")
    os.utime(pictures, (0, 0))
    words = [*command(run, output, "--batch", "1", "--manifest"), "--input", str(pictures)]
    assert main(words) == 1
    kept = output / "manifest"
    assert sorted((kept / "done-0.jsonl").read_text().split()) == [f'"{index}"' for index in range(4)]
    assert "9.png" in (kept / "failed.txt").read_text()
    shutil.rmtree(output / "samples")  # nobody looks
    shutil.copy(pictures / "0.png", pictures / "9.png")
    os.utime(pictures, (0, 0))
    assert main(words) == 0 and not (kept / "failed.txt").exists()
    assert [file.name for file in (output / "samples").iterdir()] == ["9.png"]
    summary = json.loads((output / "summary.json").read_text())
    assert (summary["samples"], summary["asked_for"], summary["made_now"]) == (5, 5, 1)
    assert main([word for word in words if word != "--manifest"]) == 0  # but here
    assert len(made(output)) == 20
    (output / "summary.json").unlink()
    assert main([*words, "--seed", "7"]) == 2


def test_stable_diffusion_and_a_module_make_the_samples_of_the_whole(run: Path, alone: Path, tmp_path: Path) -> None:
    whole = torch.load(run / "model.ckpt")["state_dict"]
    added = {key: value for key, value in whole.items() if "spade" in key or "structcond" in key}
    torch.save(added, tmp_path / "module.ckpt")
    torch.save({"state_dict": {k: v for k, v in whole.items() if k not in added}}, tmp_path / "sd.ckpt")
    words = command(run, tmp_path / "out", "--batch", "1")
    words[words.index(str(run / "model.ckpt"))] = str(tmp_path / "module.ckpt")
    assert main([*words, "--sd", str(tmp_path / "sd.ckpt")]) == 0
    assert made(tmp_path / "out") == made(alone)


def test_without_a_config_a_variant_says_which_it_is(
    run: Path, alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(detect, "VARIANTS", {"512": str(run / "tiny.yaml"), "768v": "gone.yaml"})
    words = command(run, tmp_path / "out", "--batch", "1")
    assert main([*words, "--variant", "512"]) == 2
    assert "--variant is given without need: a config says it" in capsys.readouterr().err
    del words[: words.index("--ckpt")]
    assert main(words) == 2 and "say which it is, 512, 768v" in capsys.readouterr().err
    assert main([*words, "--variant", "1024"]) == 2 and "--variant is '1024'" in capsys.readouterr().err
    assert main([*words, "--variant", "512"]) == 0
    assert made(tmp_path / "out") == made(alone)
