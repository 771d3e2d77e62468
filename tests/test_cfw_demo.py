"""The second stage from end to end, by the commands of the README: its data, its training, its pictures."""

from pathlib import Path

import numpy as np
import pytest
from tiny_run import ROOT, write_tiny_model, write_tiny_run

import main as training
from basicsr.utils.img_util import read_rgb
from ldm.inference.generate_cfw_data import main as generate_cfw_data
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import UpscaleSettings

# Three levels: CFW fuses at the second and the third.
THREE_LEVELS = "{ch: 32, ch_mult: [1, 1, 1], num_res_blocks: 1, norm_groups: 1}"


def test_data_training_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_tiny_run(tmp_path)
    tiny = tmp_path / "tiny.yaml"
    tiny.write_text(tiny.read_text().replace("ch: 32, ch_mult: [1, 1]", "ch: 32, ch_mult: [1, 1, 1]"))
    text, write = tiny.read_text(), Path.write_text
    with monkeypatch.context() as patch:  # the model of this very config
        patch.setattr(Path, "write_text", lambda file, *_: write(file, text))
        write_tiny_model(tmp_path)
    stage_1 = ["--base", str(tiny), "--ckpt", "model.ckpt"]
    made = ["--input", "pictures", "--steps", "2", "--device", "cpu", "--workers", "0", "--output"]
    assert generate_cfw_data([*stage_1, *made, "data/demo/cfw/train"]) == 0
    assert generate_cfw_data([*stage_1, *made, "data/demo/cfw/validation", "--seed", "1"]) == 0

    words = [
        "model.params.ckpt_path=null", f"model.params.ddconfig={THREE_LEVELS}", "data.params.batch_size=2",
        "data.params.num_workers=0", "model.params.lossconfig.params.disc_num_layers=1",
        "model.params.lossconfig.params.disc_start=1",
    ]  # fmt: skip
    options = ["--base", str(ROOT / "configs/demo/cfw.yaml"), "--max_steps", "3", "--logger", "csv", "-n", "cfw"]
    assert training.main([*options, *words]) == 0
    (run,) = Path("logs").iterdir()
    assert (run / "images/final.png").is_file()
    header = (run / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"train/rec_loss", "train/disc_loss", "val/rec_loss", "train/d_weight"} <= set(header)

    cfw = run / "checkpoints/last.ckpt"
    small = read_rgb(tmp_path / "pictures/0.png")[:16, :16]
    results = []
    for weight in (0.0, 1.0):
        settings = UpscaleSettings(steps=2, dec_w=weight, upscale=2)
        upscaler = Upscaler.from_checkpoint(tiny, "model.ckpt", cfw_ckpt=cfw, settings=settings, device="cpu")
        results.append(np.asarray(upscaler(small)))
    assert results[0].shape == (32, 32, 3)
    assert not np.array_equal(results[0], results[1])
