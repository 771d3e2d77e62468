"""scripts/upscale.py as its users meet it: files, folders, going on, and mistakes."""

import os
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import skimage.data
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file
from tiny_run import write_tiny_model

from basicsr.utils.errors import FieldError
from basicsr.utils.img_util import read_picture
from ldm import shipped
from ldm.config import load_config
from ldm.inference import cli
from ldm.inference.picture import Picture
from ldm.inference.pipeline import Upscaler
from ldm.models.autoencoder import AutoencoderKL, AutoencoderKLResi
from ldm.util import instantiate_from_config

ROOT = Path(__file__).parents[1]
PHOTO = Image.fromarray(skimage.data.chelsea())
COMMAND = [sys.executable, str(ROOT / "scripts/upscale.py")]
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's config and checkpoints, written once: tiny.yaml, model.ckpt, sd.ckpt."""
    folder = tmp_path_factory.mktemp("weights")
    state = write_tiny_model(folder)
    torch.save({key: value for key, value in state.items() if ".spade." not in key}, folder / "sd.ckpt")
    return folder


@pytest.fixture
def here(linked_here: Callable[[Path], Path], weights: Path) -> Path:
    """A user's folder with the weights and a photo, as the working directory."""
    photo(linked_here(weights) / "photo.png")
    return Path.cwd()


def photo(path: Path, width: int = 10, height: int = 12, mode: str = "RGB", **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    PHOTO.crop((100, 60, 100 + width, 60 + height)).convert(mode).save(path, **options)


WORDS = ["--base", "tiny.yaml", "--ckpt", "model.ckpt", "--steps", "1", "--upscale", "2"]


def run(*words: str) -> int:
    return cli.main([*WORDS, *words])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_one_picture(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--input", "photo.png", "--save_edges", "--compare") == 0
    assert files(here / "results") == {"photo.png", "photo_edges.png", "photo_edges_input.png", "photo_compare.png"}
    result = Image.open("results/photo.png")
    assert result.mode == "RGB" and result.size == (20, 24)
    assert Image.open("results/photo_edges.png").size == (20, 24)
    assert set(np.unique(np.asarray(Image.open("results/photo_edges_input.png")))) <= {0, 255}
    assert Image.open("results/photo_compare.png").size[0] > 2 * 160
    assert "1 upscaled; results: results" in capsys.readouterr().out


def test_a_folder_keeps_its_structure_and_is_gone_on_with(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "in/a.png")
    photo(here / "in/sub/a.jpg", exif=exif(6))
    photo(here / "in/sub/b.jpg", mode="L")
    photo(here / "in/sub/b.png")
    photo(here / "in/sub/deep/c.webp", 11, 17)
    names = {"a.png", "sub/a.jpg.png", "sub/b.jpg.png", "sub/b.png", "sub/deep/c.webp.png"}
    assert run("--input", "in", "--output", "in/out", "--batch", "2") == 0
    assert files(here / "in/out") == names
    turned = Image.open("in/out/sub/a.jpg.png")
    assert turned.size == (24, 20) and dict(turned.getexif()) == {0x010E: "a cat"}
    assert Image.open("in/out/sub/b.jpg.png").mode == "L"
    first = {name: (here / "in/out" / name).stat().st_mtime_ns for name in names}
    (here / "in/out/a.png").unlink()
    capsys.readouterr()
    assert run("--input", "in", "--output", "in/out") == 0
    assert "1 upscaled, 4 skipped, finished before (--overwrite)" in capsys.readouterr().out
    again = {name: (here / "in/out" / name).stat().st_mtime_ns for name in names}
    assert {name for name in names if again[name] != first[name]} == {"a.png"}
    assert run("--input", "in", "--output", "in/out", "--overwrite") == 0
    assert "5 upscaled; results" in capsys.readouterr().out


def test_a_result_keeps_its_name_whatever_lies_beside_its_picture(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo(here / "in/a.jpg")
    photo(here / "in/b.PNG")
    assert run("--input", "in") == 0
    first = {name: (here / "results" / name).read_bytes() for name in ("a.jpg.png", "b.png")}
    for name in ("a.png", "a.tif", "a.JPG", "a.b.jpg", "b.jpg"):
        photo(here / "in" / name, mode="L")
    capsys.readouterr()
    assert run("--input", "in") == 0
    assert "5 upscaled, 2 skipped" in capsys.readouterr().out
    assert all((here / "results" / name).read_bytes() == content for name, content in first.items())
    assert files(here / "results") == {*first, "a.png", "a.tif.png", "a.JPG.png", "a.b.jpg.png", "b.jpg.png"}
    assert run("--input", "in/a.jpg") == 0  # alone it has the same name
    assert "1 skipped" in capsys.readouterr().out


def test_a_result_that_is_not_finite_is_failed_and_never_finished(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    state = torch.load("model.ckpt", weights_only=True)["state_dict"]
    for part in ("weight", "bias"):
        state[f"model.diffusion_model.input_blocks.0.0.{part}"] *= 1e6  # fine in fp32, beyond fp16
    torch.save(state, "large.ckpt")
    for _ in range(2):
        assert run("--input", "photo.png", "--ckpt", "large.ckpt", "--precision", "fp16") == 2
        said = capsys.readouterr()
        assert said.err.splitlines()[-1].startswith(
            "error: photo.png: --precision is fp16, in which this result is not"
        )
        assert "choose bf16 or fp32" in said.err and "upscaled" not in said.out and not files(here / "results")
    assert run("--input", "photo.png", "--ckpt", "large.ckpt") == 0


def test_one_failure_in_a_batch_is_that_pictures_alone(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):
        photo(here / f"in/{name}.png", mode="L" if name == "b" else "RGB")
    whole = Upscaler.upscale

    def fails_for_grey(self: Upscaler, pictures: Sequence[Picture], *others: Any, **named: Any) -> list[Picture]:
        if any(picture.grey for picture in pictures):
            raise FieldError("precision", "is fp16")
        return whole(self, pictures, *others, **named)

    monkeypatch.setattr(Upscaler, "upscale", fails_for_grey)
    assert run("--input", "in", "--batch", "3") == 1
    assert files(here / "results") == {"a.png", "c.png"}


def test_the_limit_on_pixels_may_be_raised_and_lowered(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--input", "photo.png", "--max_pixels", "119") == 2
    assert "photo.png: has more than 119 pixels; raise max_pixels to read it" in capsys.readouterr().err
    assert run("--input", "photo.png", "--max_pixels", "120") == 0
    assert run("--input", "photo.png", "--max_pixels", "0") == 2
    assert "--max_pixels is 0: give 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["picture", "seed", "bits"])
def test_a_result_of_something_else_is_neither_finished_nor_overwritten(
    here: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    assert run("--input", "photo.png") == 0
    before = (here / "results/photo.png").read_bytes()
    if change == "picture":
        photo(here / "photo.png", mode="L")
    words = {"picture": [], "seed": ["--seed", "5"], "bits": ["--bits", "16"]}[change]
    assert run("--input", "photo.png", *words) == 2
    assert "is there, made from another picture or with other settings; overwrite" in capsys.readouterr().err
    assert (here / "results/photo.png").read_bytes() == before
    assert run("--input", "photo.png", *words, "--overwrite") == 0
    assert (here / "results/photo.png").read_bytes() != before


@pytest.mark.parametrize(("names", "flags"), [
    (("a.png", "a_compare.png"), ["--compare"]), (("a.jpg", "a.jpg.png"), []), (("a.png", "A/../a.PNG"), []),
])  # fmt: skip
def test_two_pictures_never_share_a_file(
    here: Path, capsys: pytest.CaptureFixture[str], names: tuple[str, ...], flags: list[str]
) -> None:
    for name in names:
        photo(here / "in" / name)
    assert run("--input", "in", *flags) == 2
    assert re.search("error: .* and .* would both be written to .*; rename one of them", capsys.readouterr().err)
    assert not files(here / "results")


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112], tags[0x010E] = orientation, "a cat"
    return tags


def test_one_broken_file_does_not_stop_the_rest(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "in/b.png")
    (here / "in/a.png").write_text("no picture")
    (here / "in/c.jpg").write_bytes((here / "in/b.png").read_bytes()[:90])
    photo(here / "in/d.png", 1, 1)
    assert run("--input", "in") == 1
    said = capsys.readouterr()
    assert files(here / "results") == {"b.png"} and "1 upscaled, 3 failed" in said.out
    assert [line.split(":")[1].strip() for line in said.err.splitlines() if line.startswith("error: ")] == [
        "in/a.png",
        "in/c.jpg",
        "in/d.png",
    ]


def deep(path: str) -> np.ndarray:
    """A 16-bit picture as int64."""
    pixels = read_picture(path).pixels
    assert pixels.dtype == np.uint16
    return pixels.astype(int)


def test_a_picture_is_the_same_alone_and_in_a_folder(here: Path) -> None:
    for index, size in enumerate([(10, 12), (16, 16), (40, 9)]):
        photo(here / f"in/{index}.png", *size)
    words = ["--bits", "16", "--seed", "7"]
    assert run("--input", "in", "--output", "all", "--batch", "4", *words) == 0
    for index in range(3):
        assert run("--input", f"in/{index}.png", "--output", "alone", "--batch", "1", *words) == 0
        pair = [deep(f"{folder}/{index}.png") for folder in ("all", "alone")]
        assert abs(pair[0] - pair[1]).max() <= 1 + 65535e-5
    assert run("--input", "in/0.png", "--output", "other", "--bits", "16", "--seed", "8") == 0
    assert abs(deep("other/0.png") - deep("alone/0.png")).max() > 100


def test_a_cfw_checkpoint_changes_the_decoder(here: Path) -> None:
    config = yaml.safe_load((here / "tiny.yaml").read_text())
    stage = config["model"]["params"]["first_stage_config"]["params"]
    stage["ddconfig"] = {"ch": 32, "ch_mult": [1, 1, 1]}
    config["model"]["params"]["unet_config"]["params"]["channel_mult"] = [1, 1]
    (here / "three.yaml").write_text(yaml.safe_dump(config))
    block = dict(load_config(["three.yaml"]).values["model"])
    block.pop("base_learning_rate")
    model = instantiate_from_config(block)
    torch.save({"state_dict": model.state_dict()}, "three.ckpt")
    params = block["params"]["first_stage_config"]["params"]
    cfw = AutoencoderKLResi(params["ddconfig"], params["lossconfig"], 4)
    cfw.load_state_dict(model.first_stage_model.state_dict(), strict=False)
    torch.nn.init.normal_(cfw.decoder.get_parameter("fusion_layer_1.encode_enc_3.conv2.weight"))
    torch.save({"state_dict": cfw.state_dict() | {"loss.logvar": torch.zeros(1)}}, "cfw.ckpt")
    words = ["--base", "three.yaml", "--ckpt", "three.ckpt", "--input", "photo.png"]
    assert run(*words, "--output", "plain") == 0
    assert run(*words, "--output", "wrong", "--cfw_ckpt", "three.ckpt") == 2  # no second stage
    for weight in ("0", "1"):
        assert run(*words, "--output", weight, "--cfw_ckpt", "cfw.ckpt", "--dec_w", weight) == 0
    plain, none, full = (np.asarray(Image.open(f"{folder}/photo.png")).astype(int) for folder in ("plain", "0", "1"))
    assert np.array_equal(plain, none) and abs(full - plain).max() > 1


def test_without_a_checkpoint_the_demo_weights_are_taken(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "configs/demo").mkdir(parents=True)
    # As they are stored: in half precision, without the autoencoder, which has a file of its own.
    state = torch.load("model.ckpt", weights_only=True)["state_dict"]
    halves = {key: value.half() for key, value in state.items() if not key.startswith("first_stage_model.")}
    save_file(halves, "configs/demo/upscaler.safetensors")
    stage = load_config(["tiny.yaml"]).get("model.params.first_stage_config.params")
    torch.manual_seed(0)
    first_stage = AutoencoderKL(stage["ddconfig"], stage["lossconfig"], 4)
    save_file(first_stage.state_dict(), "vae.safetensors")
    (here / "configs/demo/upscaler.yaml").write_text(
        f"base: {here}/tiny.yaml\n"
        "model: {params: {first_stage_config: {params: {ckpt_path: vae.safetensors}}}}\n"
    )
    monkeypatch.setattr(shipped, "root", lambda: here)
    assert cli.main(["--input", "photo.png"]) == 0
    assert Image.open("results/photo.png").size == (40, 48)
    model = Upscaler.from_checkpoint().networks.model
    assert torch.equal(model.first_stage_model.decoder.conv_in.weight, first_stage.decoder.conv_in.weight)


def truncated(file: str) -> str:
    Path("cut.ckpt").write_bytes(Path(file).read_bytes()[:5000])
    return "cut.ckpt"


@pytest.mark.parametrize(("words", "line"), [
    (["--steps", "0"], "--steps is 0"),
    (["--steps", "1001"], "cannot choose 1001 of 1000 steps"),
    (["--steps", "many"], "--steps: invalid int value: 'many'"),
    (["--tile", "32"], "--tile is 32: give 64 pixels or more"),
    (["--tile", "half"], "--tile is 'half'"),
    (["--tile_overlap", "32"], "choose less than the tiles' 32 pixels"),
    (["--sampler", "dpm"], "did you mean 'ddpm'?"),
    (["--precision", "fp8"], "--precision is 'fp8'"),
    (["--device", "abacus"], "--device abacus is not there"),
    (["--bits", "12"], "--bits is 12"),
    (["--dec_w", "2"], "--dec_w is 2"),
    (["--start_t", "1000"], "--start_t is 1000"),
    (["--start_t", "2", "--steps", "4"], "--steps is 4: from start_t 2 on at most 3 can be taken"),
    (["--start_t", "-1"], "--start_t is -1"),
    (["--unknown"], "--unknown"),
    (["--input", "gone.png"], "--input gone.png is not there"),
    (["--input", "text.png"], "text.png: cannot be read as a picture (its content is of no known type)"),
    (["--input", "cut.png"], "cut.png: cannot be read as a picture"),
    (["--input", "one.png"], "one.png: it is 1 x 1 pixels: each side must be 8 or more"),
    (["--input", "thread.png"], "thread.png: it is 20000 x 3 pixels"),
    (["--input", "empty"], "holds no pictures"),
    (["--output", "."], "--output is .: the result would replace photo.png"),
    (["--output", "text.png/sub"], "cannot be written (Not a directory)"),
    (["--output", "/proc/results"], "cannot be written"),
    (["--base", "gone.yaml"], "gone.yaml is not there"),
    (["--base", "text.png"], "text.png"),
    (["--base", "vae.yaml"], "model.target is ldm.models.autoencoder.AutoencoderKL; upscaling needs Latent"),
    (["--ckpt", "gone.ckpt"], "no checkpoint at gone.ckpt"),
    (["--ckpt", "cut.ckpt"], "cut.ckpt cannot be read as a checkpoint"),
    (["--ckpt", "text.png"], "text.png cannot be read as a checkpoint"),
    (["--ckpt", "sd.ckpt"], "sd.ckpt holds no SPADE weights"),
    (["--ckpt", "model.ckpt", "--base", "wide.yaml"], "has shape"),
    (["--cfw_ckpt", "model.ckpt"], "CFW wants an autoencoder of three levels or more"),
])  # fmt: skip
def test_mistakes_get_one_line_and_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], words: list[str], line: str
) -> None:
    (here / "text.png").write_text("no picture")
    (here / "cut.png").write_bytes((here / "photo.png").read_bytes()[:200])
    (here / "empty").mkdir()
    truncated("model.ckpt")
    photo(here / "one.png", 1, 1)
    Image.new("RGB", (20000, 3)).save("thread.png")
    (here / "wide.yaml").write_text("base: tiny.yaml\nmodel: {params: {unet_config: {params: {model_channels: 64}}}}\n")
    (here / "vae.yaml").write_text("model: {target: ldm.models.autoencoder.AutoencoderKL, params: {embed_dim: 4}}\n")
    assert run("--input", "photo.png", *words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and line in said.err, said.err
    assert not said.out and not (here / "results").exists() or not files(here / "results")


def test_a_config_without_its_checkpoint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*WORDS[:2], "--input", "photo.png"]) == 2
    assert "the two belong together" in capsys.readouterr().err


def test_no_room_on_the_disk(here: Path) -> None:
    # A file may not grow beyond 300 bytes: writing fails in the middle, as on a full disk.
    # Nor may what measures coverage, whose own file would be the one that fails.
    env = {name: value for name, value in ONE_THREAD.items() if not name.startswith("COV")}
    done = subprocess.run(
        [*COMMAND, *WORDS, "--input", "photo.png"],
        capture_output=True,
        text=True,
        env=env,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
    )
    assert done.returncode == 2 and "no room on the disk" in done.stderr and "Traceback" not in done.stderr
    assert files(here / "results") == set()


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_not_enough_memory(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo(here / "large.png", 300, 200)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, before[1]))
    try:
        assert run("--input", "large.png", "--tile", "none", "--upscale", "16") == 2
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    error = capsys.readouterr().err
    assert error.startswith("error: large.png: not enough memory for a result of 4800 x 3200 pixels; choose smaller")
    assert "such as tile" in error and error.count("\n") == 1
    assert files(here / "results") == set()


def heed_ctrl_c() -> None:
    """Undo what a shell does to its background jobs, which this test may run in: they ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_keeps_what_is_finished(here: Path) -> None:
    photo(here / "in/a.png")
    photo(here / "in/b.png", 200, 200)
    process = subprocess.Popen(
        [*COMMAND, *WORDS, "--steps", "20", "--input", "in"],
        stderr=subprocess.PIPE,
        text=True,
        env=ONE_THREAD,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    assert process.stderr is not None
    assert "a.png" in process.stderr.readline()
    os.killpg(process.pid, signal.SIGINT)
    assert "interrupted: finished pictures are kept" in process.stderr.read() and process.wait(timeout=60) == 130
    assert files(here / "results") == {"a.png"}
