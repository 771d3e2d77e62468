"""hf:// as its users meet it: a command in a process of its own, against a local server. Run with -m diffusers."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from hub_server import Page, serving
from safetensors.torch import save

from basicsr.utils.errors import UserError
from ldm.models.formats.hub import is_reference, parse

ROOT = Path(__file__).parents[3]
TOKEN = "hf_secretsecretsecret"
UNET = save({"down_blocks.0.resnets.0.norm1.weight": torch.ones(4)})
VAE = save({"decoder.conv_norm_out.weight": torch.ones(4)})
LARGE = save({"model.diffusion_model.out.0.weight": torch.arange(300_000.0)})
HUGE = save({"model.diffusion_model.out.0.weight": torch.arange(4e6)})  # more than one of the client's chunks
READ = (
    "import sys; from ldm.console import configure_logging; from basicsr.utils.errors import UserError\n"
    "from ldm.models.formats.reading import read_state_dict\n"
    "configure_logging('ldm.models.formats')\n"
    "try: print(sorted(read_state_dict(sys.argv[1])))\n"
    "except UserError as error: sys.exit(f'error: {error}')"
)
PAGES: dict[str, Callable[[], Page]] = {
    "me/sd": lambda: Page(
        {
            "unet/diffusion_pytorch_model.safetensors": UNET,
            "unet/diffusion_pytorch_model.fp16.safetensors": b"not wanted",
            "vae/diffusion_pytorch_model.safetensors": VAE,
            "README.md": b"hello",
            "v2-1.ckpt": b"not wanted",
        }
    ),
    "me/one": lambda: Page({"weights/model.safetensors": b"no", "stablesr.safetensors": LARGE}),
    "me/many": lambda: Page({"a.ckpt": LARGE, "stablesr_000117.ckpt": LARGE}),
    "me/private": lambda: Page({}, status=401, error="RepoNotFound"),
    "me/gated": lambda: Page({"a.safetensors": LARGE}, status=403, error="GatedRepo"),
    "me/broken": lambda: Page({"a.safetensors": LARGE}, status=500),
    "me/wrong": lambda: Page({"a.safetensors": LARGE}, wrong_hash=True),
    "me/cut": lambda: Page({"a.safetensors": HUGE}, cut_after=11_000_000, cuts=1),
    "me/always_cut": lambda: Page({"a.safetensors": LARGE}, cut_after=0, cuts=-1),
}


class Hub:
    """The server, and a cache that is its own."""

    def __init__(self, folder: Path, address: str, pages: dict[str, Page]) -> None:
        self.folder, self.address, self.pages = folder, address, pages

    def read(self, source: str, **variables: str) -> tuple[int, str]:
        """The exit status and all output of reading `source`."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
        environment |= {"HF_ENDPOINT": self.address, "HF_HOME": str(self.folder / "hf"), "PYTHONPATH": str(ROOT)}
        environment |= {"HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1", **variables}
        done = subprocess.run([sys.executable, "-c", READ, source], capture_output=True, text=True, env=environment)
        said = done.stdout + done.stderr
        assert TOKEN not in said and "Traceback" not in said, said
        return done.returncode, said


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    pages = {name: make() for name, make in PAGES.items()}
    with serving(pages) as address:
        yield Hub(tmp_path, address, pages)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hf://me/sd", ("me/sd", "", None)),
        ("hf:/me/sd/", ("me/sd", "", None)),  # as a Path makes of it
        ("hf://me/sd/unet/a.safetensors@refs/pr/1", ("me/sd", "unet/a.safetensors", "refs/pr/1")),
        ("hf://me/sd@v1", ("me/sd", "", "v1")),
    ],
)
def test_a_place_has_its_parts(text: str, parts: tuple[str, str, str | None]) -> None:
    where = parse(text)
    assert is_reference(text) and (where.repo, where.path, where.revision) == parts


@pytest.mark.parametrize("text", ["hf://me", "hf://", "hf://me/sd/../../etc"])
def test_what_is_no_place_is_told(text: str) -> None:
    with pytest.raises(UserError, match="is no place on the hub: write hf://OWNER/NAME"):
        parse(text)


@pytest.mark.diffusers
def test_of_a_pipeline_only_what_is_read_is_fetched_once_and_offline_it_is_there(hub: Hub) -> None:
    status, said = hub.read("hf://me/sd")
    assert status == 0 and "first_stage_model.decoder.norm_out.weight" in said
    for data in (UNET, VAE):
        assert f"sha256 {hashlib.sha256(data).hexdigest()}" in said
    page = hub.pages["me/sd"]
    fetched = {line.split()[2] for line in page.asked if line.startswith("GET cdn")}
    assert fetched == {"unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"}
    assert any(TOKEN in each for each in page.authorised)
    count = sum(line.startswith("GET cdn") for line in page.asked)
    for source, variables in (("hf://me/sd", {}), ("hf://me/sd", {"HF_HUB_OFFLINE": "1"}), ("hf://me/sd/unet", {})):
        assert hub.read(source, **variables)[0] == 0
    assert sum(line.startswith("GET cdn") for line in page.asked) == count
    assert hub.read("hf://me/sd", HF_ENDPOINT="http://127.0.0.1:9")[0] == 0  # nobody answers there


@pytest.mark.diffusers
def test_a_transfer_that_is_cut_goes_on_where_it_was(hub: Hub) -> None:
    status, said = hub.read("hf://me/cut/a.safetensors")
    assert status == 0 and hashlib.sha256(HUGE).hexdigest() in said
    ranges = [line.split()[-1] for line in hub.pages["me/cut"].asked if line.startswith("GET cdn") and "bytes=" in line]
    assert ranges and all(int(each.removeprefix("bytes=").rstrip("-")) > 0 for each in ranges)


@pytest.mark.diffusers
@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf://me/one", "['model.diffusion_model.out.0.weight']"),
        ("hf://me/one/stablesr.safetensors@v1", "['model.diffusion_model.out.0.weight']"),
        ("hf://me/many", "which file is meant? Write hf://me/many/FILE; files there: a.ckpt, stablesr_000117.ckpt"),
        (
            "hf://me/many/stablesr_00017.ckpt",
            "there is no 'stablesr_00017.ckpt' on this page; did you mean 'stablesr_000117.ckpt'?",
        ),
        ("hf://me/many/a.ckpt@v9", "this page has no revision 'v9'"),
        ("hf://me/nothing", "there is no such model page, or this login may not use it"),
        ("hf://me/private/a.ckpt", "there is no such model page, or this login may not use it"),
        ("hf://me/gated/a.safetensors", "its owner asks for consent first"),
        ("hf://me/broken", "the hub answers 500; try again later"),
        ("hf://me/wrong/a.safetensors", "a.safetensors arrived damaged: its sha256 is"),
        ("hf://me/always_cut/a.safetensors", "the transfer broke off"),
    ],
)
def test_what_the_user_sees(source: str, said: str, hub: Hub) -> None:
    status, output = hub.read(source)
    assert said in output, output
    if "[" not in said:
        assert status == 1 and f"error: {source}: " in output


@pytest.mark.diffusers
def test_without_a_connection_and_without_the_package(hub: Hub) -> None:
    line = "it is not in the cache, and the hub cannot be reached (no connection, or HF_HUB_OFFLINE is set)"
    for source in ("hf://me/one", "hf://me/one/stablesr.safetensors"):
        assert line in hub.read(source, HF_HUB_OFFLINE="1")[1]
    assert line in hub.read("hf://me/one/stablesr.safetensors", HF_ENDPOINT="http://127.0.0.1:9")[1]


@pytest.mark.diffusers
def test_a_damaged_file_does_not_stay_in_the_cache(hub: Hub) -> None:
    assert hub.read("hf://me/wrong/a.safetensors")[0] == 1
    hub.pages["me/wrong"].wrong_hash = False
    assert hub.read("hf://me/wrong/a.safetensors")[0] == 0
