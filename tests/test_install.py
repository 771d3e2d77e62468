"""The package as `pip install` leaves it: built, installed into an empty folder, used from another one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import skimage.data
from PIL import Image

ROOT = Path(__file__).parents[1]


def run(folder: Path, *words: str, packages: Path | None = None) -> str:
    """What a Python program says; it sees `packages` before anything that is installed, and nothing of the clone."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if packages is not None:
        environment["PYTHONPATH"] = str(packages)
    done = subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the package and nothing else, installed from a wheel; what it needs is in the environment."""
    folder = tmp_path_factory.mktemp("install")
    pip = ("-m", "pip", "--disable-pip-version-check", "--no-input", "--quiet")
    run(folder, *pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", "wheels", str(ROOT))
    (wheel,) = (folder / "wheels").glob("stablesr_edge-*-py3-none-any.whl")
    run(folder, *pip, "install", "--no-deps", "--no-index", "--target", "packages", str(wheel))
    return folder / "packages"


def test_it_upscales_a_picture_from_any_folder(packages: Path, tmp_path: Path) -> None:
    Image.fromarray(skimage.data.chelsea()[100:148, 150:206]).save(tmp_path / "cat.png")
    code = (
        "import ldm; from ldm.inference import Upscaler; from PIL import Image;"
        "Upscaler.from_checkpoint()(Image.open('cat.png')).save('large.png'); print(ldm.__file__)"
    )
    assert Path(run(tmp_path, "-c", code, packages=packages).strip()).is_relative_to(packages)
    assert Image.open(tmp_path / "large.png").size == (4 * 56, 4 * 48)


def test_the_command_upscales_a_picture_from_any_folder(packages: Path, tmp_path: Path) -> None:
    Image.fromarray(skimage.data.chelsea()[100:148, 150:206]).save(tmp_path / "cat.png")
    command = str(packages / "bin" / "stablesr-edge")
    run(tmp_path, command, "upscale", "--input", "cat.png", "--output", "results", packages=packages)
    assert Image.open(tmp_path / "results" / "cat.png").size == (4 * 56, 4 * 48)


def test_the_configs_are_found_and_their_targets_build(packages: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: stableSRNew/v2-finetune_text_T_512_edge_800.yaml\n")
    code = (
        "import pytorch_lightning as pl; from pytorch_lightning.callbacks import ModelCheckpoint;"
        "from ldm.config import check_config, check_paths, load_config\n"
        "for name in ('mine.yaml', 'demo/edge_cpu.yaml', 'configs/demo/edge_cpu.yaml'):\n"
        "    check_config(load_config([name]), trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)\n"
        "check_paths(load_config(['demo/edge_cpu.yaml']), ('model',))"
    )
    run(tmp_path, "-c", code, packages=packages)


def test_only_the_package_and_its_data_are_installed(packages: Path) -> None:
    assert {path.name for path in packages.iterdir() if path.suffix != ".dist-info"} == {"basicsr", "bin", "ldm"}
    ours = {path.relative_to(ROOT) for folder in ("basicsr", "ldm") for path in (ROOT / folder).rglob("*.*")}
    ours |= {Path("ldm", path.relative_to(ROOT)) for path in (ROOT / "configs").rglob("*.*")}
    installed = {path.relative_to(packages) for room in ("basicsr", "ldm") for path in (packages / room).rglob("*.*")}
    assert {path for path in ours if path.suffix != ".pyc"} == {path for path in installed if path.suffix != ".pyc"}
