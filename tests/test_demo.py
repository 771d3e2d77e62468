"""What the demo stands on: its pictures, its autoencoder's weights, and the scripts that make them."""

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from ldm.config import load_config
from ldm.util import instantiate_from_config

ROOT = Path(__file__).parents[1]
FRAME = 96  # pixels, the demo's


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def frames(photo: np.ndarray) -> torch.Tensor:
    """A photograph (H, W, 3) cut into the demo's frames: (N, 3, 96, 96) in [-1, 1]."""
    starts = [range(0, side - FRAME + 1, FRAME) for side in photo.shape[:2]]
    cut = np.stack([photo[y : y + FRAME, x : x + FRAME] for y in starts[0] for x in starts[1]])
    return torch.from_numpy(cut.astype(np.float32)).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.mark.parametrize("photo", ["chelsea", "rocket"])
def test_the_autoencoder_knows_photographs_that_it_never_saw(photo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    config = load_config([ROOT / "configs/demo/edge_cpu.yaml"])
    first_stage = instantiate_from_config(config.get("model.params.first_stage_config")).eval()
    assert config.get("degradation.gt_size") == FRAME
    assert f"{photo}.png" in {Path(name).with_suffix(".png").name for name in script("demo_photos").VALIDATION}
    gt_pm1 = frames(getattr(skimage.data, photo)())
    with torch.no_grad():
        z = first_stage.encode(gt_pm1).mode()
        decoded = first_stage.decode(z).clamp(-1, 1)
    assert 10 * torch.log10(4 / (decoded - gt_pm1).square().mean()) >= 26  # dB; peak to peak is 2
    # The scale factor brings latents to the unit variance that the noise schedule expects, as far as photographs agree.
    assert 0.5 < config.get("model.params.scale_factor") * z.std() < 2


def test_the_weights_are_small() -> None:
    assert (ROOT / "configs/demo/autoencoder.safetensors").stat().st_size <= 4_000_000


def test_pictures_are_cut_into_tiles_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos = script("demo_photos")
    monkeypatch.setattr(photos, "TRAIN", ("astronaut.png", "brick.png"))
    monkeypatch.setattr(photos, "VALIDATION", ("coffee.png",))
    photos.write(tmp_path)
    tiles = sorted((tmp_path / "train").glob("*.png"))
    assert {Image.open(tile).size for tile in tiles} == {(192, 192)}
    # 512 and 256 pixels take 3 x 3 and 2 x 2 tiles; three channel orders of a colour photograph, two of a grey one.
    assert len(tiles) == 13 * 3 + 13 * 2
    assert np.array_equal(np.asarray(Image.open(tiles[0])), skimage.data.astronaut()[:192, :192])
    assert np.array_equal(np.asarray(Image.open(tmp_path / "validation" / "coffee.png")), skimage.data.coffee())
    tiles[0].write_bytes(b"mine")
    photos.write(tmp_path)
    assert tiles[0].read_bytes() == b"mine"
