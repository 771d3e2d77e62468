"""Measuring: choices of checkpoints, degraded pictures, records, and the arms beside runs."""

from pathlib import Path

import pytest
import skimage.data
import torch
from PIL import Image

from basicsr.utils.errors import UserError
from ldm.config import load_config
from ldm.evaluation.measure.pictures import made_pictures, read_tensor
from ldm.evaluation.measure.runs import TrainedRun, read_checkpoint, select_checkpoints

ROOT = Path(__file__).parents[2]
CONFIG = load_config([ROOT / "configs/demo/edge_cpu.yaml"])


def write_checkpoint(folder: Path, name: str, step: int, **more: object) -> None:
    state = {"a": torch.full((3,), float(step))}
    torch.save({"state_dict": state, "global_step": step, **more}, folder / f"{name}.ckpt")


@pytest.fixture
def run(tmp_path: Path) -> TrainedRun:
    folder = tmp_path / "2026-01-31T12-00-00_mine" / "checkpoints"
    folder.mkdir(parents=True)
    for step in (10, 20, 30, 40):
        write_checkpoint(folder, f"step{step:06d}", step)
    monitor = {"monitor": "val/edge_f1", "best_model_path": "/elsewhere/step000020.ckpt"}
    write_checkpoint(folder, "last", 40, callbacks={"StepCheckpoint{}": monitor, "other": {"x": 1}})
    return TrainedRun(folder.parent, CONFIG)


def test_choices_of_checkpoints(run: TrainedRun) -> None:
    def names(which: str) -> list[str]:
        return [each.path.stem for each in select_checkpoints(run, which)[0]]

    assert names("all") == ["step000010", "step000020", "step000030", "step000040"]  # last.ckpt is step 40 again
    assert names("last") == ["step000040"]
    assert names("every:3") == ["step000010", "step000040"]
    assert run.label == "mine" and run.edge_loss_weight == 0.1
    with pytest.raises(UserError, match="monitors no metric"):  # step000040 has no callbacks
        names("best")
    (run.checkpoints / "step000040.ckpt").unlink()
    assert names("best") == ["step000020"]  # though the folder was moved
    (run.checkpoints / "step000020.ckpt").unlink()
    with pytest.raises(UserError, match="step000020.ckpt, the best by val/edge_f1, is gone"):
        names("best")


def test_identity_is_that_of_the_content(run: TrainedRun) -> None:
    file = run.checkpoints / "step000010.ckpt"
    before = read_checkpoint(file)
    copy = file.with_name("copy.ckpt")
    copy.write_bytes(file.read_bytes())
    assert read_checkpoint(copy).identity == before.identity
    torch.save({"state_dict": {"a": torch.ones(3)}, "global_step": 10}, file)
    assert read_checkpoint(file).identity != before.identity and read_checkpoint(file).step == 10
    torch.save({"a": torch.ones(3)}, file)
    with pytest.raises(UserError, match="is not a checkpoint of a training run"):
        read_checkpoint(file)


def test_degraded_pictures_depend_on_seed_and_name_alone(tmp_path: Path) -> None:
    photo = Image.fromarray(skimage.data.chelsea())
    for folder, names in (("two", ("a", "b")), ("one", ("b",))):
        (tmp_path / folder).mkdir()
        for name in names:
            photo.crop((0, 0, 72, 48)).save(tmp_path / folder / f"{name}.png")
    made = {}
    for key, folder, seed in (("two", "two", 1), ("one", "one", 1), ("other seed", "one", 2)):
        pictures, left_out = made_pictures(str(tmp_path / folder), CONFIG, seed, tmp_path / f"lq {key}")
        made[key] = {picture.name: read_tensor(picture.lq) for picture in pictures if picture.lq}
        assert left_out == []
    assert made["two"]["a"].shape == (3, 48, 72)
    assert torch.equal(made["two"]["b"], made["one"]["b"])
    assert not torch.equal(made["two"]["a"], made["two"]["b"])  # one content, two names
    assert not torch.equal(made["one"]["b"], made["other seed"]["b"])
    gt = read_tensor(tmp_path / "one" / "b.png")
    assert 0.01 < (made["one"]["b"] - gt).abs().mean() < 0.2
