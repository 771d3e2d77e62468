"""Weights on their way to the hub and back, against a local server. Run with -m diffusers."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Page, serving
from tiny_run import ROOT, TINY, write_tiny_model

from basicsr.utils.errors import FieldError, UserError
from ldm.config import load_config
from ldm.inference import Upscaler
from ldm.inference.settings import UpscaleSettings
from ldm.models.build import build_model

TOKEN = "hf_secretsecretsecret"
THERE_AND_BACK = """
import sys, torch
from ldm.inference import Upscaler
from ldm.inference.settings import UpscaleSettings
ours = Upscaler.from_checkpoint("tiny.yaml", "model.ckpt", device="cpu", settings=UpscaleSettings(steps=3, upscale=1))
print(ours.push_to_hub("me/new", private=True, commit_message="First weights"))
theirs = Upscaler.from_pretrained("me/new", device="cpu")
print("steps", theirs.settings.steps)
states = [each.networks.model.state_dict() for each in (ours, theirs)]
print("equal", all(torch.equal(states[0][key], states[1][key]) for key in states[0].keys() | states[1].keys()))
"""


@pytest.fixture
def pages() -> dict[str, Page]:
    return {"me/theirs": Page({}, read_only=True), "me/mine": Page({"README.md": b"old", "other.txt": b"stays"})}


@pytest.fixture
def hub(pages: dict[str, Page]) -> Iterator[str]:
    with serving(pages) as address:
        yield address


@pytest.fixture
def here(tmp_path: Path) -> Path:
    write_tiny_model(tmp_path)
    return tmp_path


def run(hub: str, here: Path, *words: str, token: str = TOKEN) -> tuple[int, str]:
    """Python's exit status and all output."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(here / "hf"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment |= {"HF_HUB_DISABLE_XET": "1", **({"HF_TOKEN": token} if token else {})}  # the storage of large files
    done = subprocess.run([sys.executable, *words], cwd=here, capture_output=True, text=True, env=environment)
    said = done.stdout + done.stderr
    assert TOKEN not in said, said
    return done.returncode, said


def export(*words: str) -> list[str]:
    return [
        "-c",
        "import sys; from ldm.entry import main; sys.exit(main(sys.argv[1:]))",
        "export",
        "model.ckpt",
        *words,
    ]


@pytest.mark.diffusers
def test_an_upscaler_goes_to_the_hub_and_comes_back_as_it_was(hub: str, here: Path, pages: dict[str, Page]) -> None:
    status, said = run(hub, here, "-c", THERE_AND_BACK)
    assert status == 0 and f"{hub}/me/new" in said, said
    assert "steps 3" in said and "equal True" in said, said
    page = pages["me/new"]
    assert set(page.files) == {"README.md", "config.json", "model.safetensors"}
    assert page.commits == ["main: First weights"] and page.visibility == "private"
    assert b'Upscaler.from_pretrained("me/new")' in page.files["README.md"]


@pytest.mark.diffusers
@pytest.mark.parametrize("form", ["hub-folder", "diffusers"])
def test_the_command_brings_a_folder_and_leaves_others_alone(
    hub: str, here: Path, form: str, pages: dict[str, Page]
) -> None:
    if form == "diffusers":  # which is of whole models
        text = "    cond_stage_config: {params: {arch: {width: 16, layers: 2, heads: 2}}}\n"
        (here / "tiny.yaml").write_text(TINY.replace("    first_stage_config", f"{text}    first_stage_config"))
        torch.save(build_model(load_config([here / "tiny.yaml"])).state_dict(), here / "model.ckpt")
    words = export("out", "--format", form, "--base", "tiny.yaml", "--push", "me/mine")
    status, said = run(hub, here, *words)
    assert status == 0 and f"{hub}/me/mine" in said, said
    read = (
        "import torch; from ldm.inference import Upscaler; "
        "print(len(Upscaler.from_pretrained('me/mine', device='cpu').networks.model.state_dict()))"
    )
    status, said = run(hub, here, "-c", read)
    assert status == 0, said
    assert pages["me/mine"].files["other.txt"] == b"stays" and pages["me/mine"].files["README.md"] != b"old"


@pytest.mark.diffusers
def test_what_cannot_be_brought_is_told_in_a_line(hub: str, here: Path) -> None:
    words = ("--format", "hub-folder", "--base", "tiny.yaml", "--push")
    for number, (repo, token) in enumerate([("me/theirs", TOKEN), ("me/new", "")]):
        status, said = run(hub, here, *export(f"out{number}", *words, repo), token=token)
        assert status == 2 and "Traceback" not in said, said
        assert f"error: hf://{repo}: there is no such model page, or this login may not use it" in said
    status, said = run("http://127.0.0.1:9", here, *export("out3", *words, "me/new"))
    assert status == 2 and "error: hf://me/new: the transfer broke off" in said, said


def test_a_saved_upscaler_is_read_as_it_was(here: Path) -> None:
    settings = UpscaleSettings(steps=3, upscale=1)
    ours = Upscaler.from_checkpoint(here / "tiny.yaml", here / "model.ckpt", device="cpu", settings=settings)
    ours.save_pretrained(here / "page")
    theirs = Upscaler.from_pretrained(here / "page", device="cpu", settings=settings)
    picture = torch.rand(3, 20, 12, generator=torch.Generator().manual_seed(0))
    pair = [upscaler(picture) for upscaler in (ours, theirs)]
    assert isinstance(pair[0], torch.Tensor) and isinstance(pair[1], torch.Tensor) and torch.equal(pair[0], pair[1])
    assert Upscaler.from_pretrained(here / "page", device="cpu").settings.steps == 3
    with pytest.raises(UserError, match="is there already"):
        ours.save_pretrained(here / "page")
    with pytest.raises(FieldError, match="'fp8'"):
        ours.save_pretrained(here / "other", dtype="fp8")
