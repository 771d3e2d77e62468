"""What the demo stands on: its pictures, its autoencoder's weights, and the scripts that make them."""

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from tiny_run import write_tiny_run

from ldm.config import Config, load_config
from ldm.study.demo import changed, verdict
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
    assert 0.4 < config.get("model.params.scale_factor") * z.std() < 2


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


def test_the_demo_ends_with_a_page_and_says_which(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shipped command, on few and small frames and for few steps."""
    write_tiny_run(tmp_path)
    (tmp_path / "data/demo").mkdir(parents=True)
    (tmp_path / "pictures").rename(tmp_path / "data/demo/train")
    (tmp_path / "data/demo/validation").mkdir()
    for name in ("0.png", "1.png"):
        shutil.copy(tmp_path / "data/demo/train" / name, tmp_path / "data/demo/validation")
    words = ["lightning.trainer.max_steps=2", "lightning.trainer.val_check_interval=1",
             "lightning.callbacks.edge_probe.params.every=1", "data.params.num_workers=0",
             "data.params.train.params.queue_size=4"]  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["demo.py", *words])
    monkeypatch.setattr("ldm.study.demo.SIDE", 64)
    assert script("demo").run() == 0
    last = capsys.readouterr().out.rstrip().splitlines()[-1]
    page = Path(last.removeprefix("open ")).read_text(encoding="utf-8")
    assert "After 2 steps with the edge loss, on 2 held-out photographs: loss_edge " in page
    pictures = json.loads(page.partition('id="slider-data">')[2].partition("</script>")[0])
    assert len(pictures) == 4 and all([*each] == ["degraded", "before", "after", "true"] for each in pictures.values())
    assert page.count("<polyline") >= 2 and "http" not in page


def test_frames_of_one_photograph_count_once() -> None:
    names = ["a", "b", "a", "b"]
    before = [{"loss_edge": 0.2, "edge_f1": 0.5, "psnr_y": 20.0}] * 4
    gains = (0.1, 0.3, 0.3, 0.1)
    after = [{"loss_edge": 0.2, "edge_f1": 0.5 + gain, "psnr_y": 19.0} for gain in gains]
    loss, f1, psnr = changed(names, before, after)
    assert f1.difference.pictures == 2 and f1.difference[:3] == pytest.approx((0.2, 0.2, 0.2))
    assert (f1.better, psnr.better, loss.better) == (True, False, None)
    told = verdict(Config({"lightning": {"trainer": {"max_steps": 7}}}, {}), [loss, f1, psnr], 2)
    assert "After 7 steps" in told and "outside chance: edge F1 better, PSNR, dB worse" in told
    assert "not told apart from chance: loss_edge" in told
