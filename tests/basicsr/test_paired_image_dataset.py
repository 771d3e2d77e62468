"""Pairs from folders: aligned to the pixel at every factor, matched by name, refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.utils.errors import FieldError, UserError

# GT's colour is its place: red rises by 4 levels a pixel to the right, green downwards, blue with both.
LEVELS = 4


def place_coded(height: int, width: int, factor: int = 1) -> np.ndarray:
    """(H, W, 3) uint8 whose pixel (x, y) says where its centre lies in the picture `factor` times as large."""
    y, x = (LEVELS * (np.arange(side) * factor + (factor - 1) / 2) for side in (height, width))
    red, green = np.broadcast_to(x, (height, width)), np.broadcast_to(y[:, None], (height, width))
    levels = np.stack([red, green, (red + green) / 2], axis=2)
    assert levels.max() <= 255 and np.array_equal(levels, levels.round())  # nothing is lost in 8 bits
    return levels.astype(np.uint8)


def save(file: Path, pixels: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(file)


def write_pairs(folder: Path, names: tuple[str, ...] = ("a", "b"), factor: int = 2, template: str = "{}") -> None:
    for name in names:
        save(folder / "gt" / f"{name}.png", place_coded(48, 60))
        lq = Path(name).with_name(template.format(Path(name).name))
        save(folder / "lq" / f"{lq}.png", place_coded(48 // factor, 60 // factor, factor))


def pairs(folder: Path, **options: Any) -> PairedImageDataset:
    return PairedImageDataset(str(folder / "gt"), str(folder / "lq"), **{"gt_size": 24, **options})


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
@pytest.mark.parametrize("gt_size", [24, 26, 31])  # multiples of every factor, and not
def test_crops_are_aligned_to_the_pixel(factor: int, gt_size: int, tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a",), factor)
    data = pairs(tmp_path, gt_size=gt_size, use_rot=True)
    corners = set()
    for epoch in range(12):
        sample = data[epoch]
        gt, lq = sample["gt"] * 255, sample["lq"] * 255
        assert gt.shape == lq.shape == (3, gt_size, gt_size)
        corners.add(tuple(gt[:2, 0, 0].tolist()))
        # Away from the window's border, enlarging a ramp gives the ramp itself, but for what PyTorch's bicubic filter
        # adds within a step, which goes either way. A pixel's shift would be 4 levels one way.
        edge = 2 * factor if factor > 1 else 0
        inside = (slice(None), slice(edge, gt_size - edge), slice(edge, gt_size - edge))
        assert (lq - gt)[inside].abs().max() < LEVELS / 2
        assert (lq - gt)[inside].mean((1, 2)).abs().max() < 0.25
        steps = gt[:2].diff(dim=2).abs().sum(0)
        assert torch.all(steps.sub(LEVELS).abs() < 1e-3)  # neighbours in GT are neighbours in the file
    assert len(corners) > 6


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_lq_is_enlarged_as_stage_1_does(factor: int, tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a",), factor)
    noise = np.random.default_rng(0).integers(0, 256, (48 // factor, 60 // factor, 3), dtype=np.uint8)
    save(tmp_path / "lq" / "a.png", noise)
    sample = pairs(tmp_path, phase="val", gt_size=None)[0]
    small = torch.from_numpy(noise.transpose(2, 0, 1) / np.float32(255))[None]
    torch.testing.assert_close(sample["lq"], F.interpolate(small, size=(48, 60), mode="bicubic")[0].clamp(0, 1))


def test_validation_cuts_out_the_middle_always(tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a",), 4)
    data = pairs(tmp_path, phase="val", gt_size=24)
    first, later = data[0], data[5]
    assert torch.equal(first["gt"], later["gt"]) and torch.equal(first["lq"], later["lq"])
    torch.testing.assert_close(first["gt"][:2, 0, 0] * 255, torch.tensor([16.0, 12.0]) * LEVELS)


def test_small_pictures_are_mirrored_alike(tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a",), 2)
    sample = pairs(tmp_path, phase="val", gt_size=80)[0]
    assert sample["gt"].shape == sample["lq"].shape == (3, 80, 80)
    assert torch.equal(sample["lq"][:, 48:60], sample["lq"][:, 35:47].flip(1))
    assert (sample["lq"] - sample["gt"]).abs()[:, 4:-4, 4:56].max() * 255 < LEVELS / 2


def test_seed_epoch_and_index_decide_a_sample(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    assert torch.equal(pairs(tmp_path)[3]["gt"], pairs(tmp_path)[3]["gt"])
    assert not torch.equal(pairs(tmp_path)[3]["gt"], pairs(tmp_path)[5]["gt"])
    assert not torch.equal(pairs(tmp_path)[3]["gt"], pairs(tmp_path, seed=4)[3]["gt"])


def test_partners_are_found_by_name(tmp_path: Path) -> None:
    write_pairs(tmp_path, ("town/b", "a"), template="{}_x2")
    (tmp_path / "lq" / "a_x2.png").rename(tmp_path / "lq" / "a_x2.bmp")  # the type does not matter
    data = pairs(tmp_path, filename_tmpl="{}_x2")
    found = [(pair.gt.name, pair.lq.name) for pair in data.pairs]
    assert found == [("a.png", "a_x2.bmp"), ("b.png", "b_x2.png")]
    with pytest.raises(FieldError, match="lacks the partners of 2 pictures.*: a.png, town/b.png"):
        pairs(tmp_path)


def test_several_folders_and_their_own_factors(tmp_path: Path) -> None:
    roots = [tmp_path / "one", tmp_path / "two"]
    for root, factor in zip(roots, (2, 4), strict=True):
        write_pairs(root, ("a",), factor)
    folders = {key: [str(root / key) for root in roots] for key in ("gt", "lq")}
    data = PairedImageDataset(folders["gt"], folders["lq"], gt_size=24)
    assert [pair.factor for pair in data.pairs] == [2, 4]
    assert data[0]["lq"].shape == data[1]["lq"].shape
    with pytest.raises(FieldError, match="dataroot_lq has 1 folders and dataroot_gt 2"):
        PairedImageDataset(folders["gt"], folders["lq"][:1], gt_size=24)


def test_a_missing_partner_is_listed(tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a", "b", "c"))
    (tmp_path / "lq" / "b.png").unlink()
    with pytest.raises(FieldError, match="lacks the partners of 1 pictures of .*gt: b.png"):
        pairs(tmp_path)


def test_a_spare_picture_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pairs(tmp_path, ("a", "b"))
    (tmp_path / "gt" / "b.png").unlink()
    assert len(pairs(tmp_path)) == 1
    assert "dataroot_lq: 1 pictures of" in caplog.text


@pytest.mark.parametrize(("scale", "size"), [(None, (24, 31)), (None, (20, 30)), (4, (24, 30)), (None, (96, 120))])
def test_a_partner_of_a_wrong_size_is_refused_by_name(scale: int | None, size: tuple[int, int], tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a", "b"), scale or 2)
    save(tmp_path / "lq" / "b.png", np.zeros((*size, 3), np.uint8))
    with pytest.raises(FieldError, match=rf"dataroot_lq has .*lq/b.png is {size[1]}x{size[0]} and b.png 60x48$"):
        pairs(tmp_path, scale=scale)


def test_sizes_are_those_of_the_picture_the_right_way_up(tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a",), 2)
    turned = Image.fromarray(place_coded(48, 60)).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise for display
    turned.save(tmp_path / "gt" / "a.png", exif=exif)
    sample = pairs(tmp_path, phase="val", gt_size=None)[0]
    assert (sample["lq"] - sample["gt"])[:, 4:-4, 4:-4].abs().max() * 255 < LEVELS / 2


def test_a_list_chooses_pairs(tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a", "b", "c"))
    (tmp_path / "lq" / "a.png").unlink()  # not listed, not missed
    listed = tmp_path / "list.txt"
    listed.write_text("c.png (48,60,3)\r\nb.png\n\n")
    data = pairs(tmp_path, meta_info_file=str(listed))
    assert [pair.gt.name for pair in data.pairs] == ["b.png", "c.png"]
    listed.write_text("c.png\nd.png")
    with pytest.raises(FieldError, match="meta_info_file is .*1 lines of which name no file in .*: 'd.png'"):
        pairs(tmp_path, meta_info_file=str(listed))
    with pytest.raises(FieldError, match="meta_info_file .*cannot be read"):
        pairs(tmp_path, meta_info_file=str(tmp_path / "none.txt"))


def test_edge_maps_go_with_their_picture(tmp_path: Path) -> None:
    write_pairs(tmp_path, ("a", "b"), 2)
    save(tmp_path / "edges" / "a.png", place_coded(48, 60)[..., 0])
    data = pairs(tmp_path, dataroot_edge=str(tmp_path / "edges"), use_rot=True)
    for epoch in range(6):
        sample = data[2 * epoch]
        torch.testing.assert_close(sample["edge"][0], sample["gt"][0])  # its red says the place too
    assert data[1]["edge"].shape == (1, 24, 24) and not data[1]["edge"].any()


@pytest.mark.parametrize(
    ("key", "value"),
    [("gt_size", None), ("scale", 0), ("filename_tmpl", "x4"), ("mean", 0.5), ("std", [1, 1, 2]),
     ("io_backend", {"type": "petrel"}), ("dataroot_edge", "nowhere")],
)  # fmt: skip
def test_a_value_that_cannot_be_is_named(key: str, value: object, tmp_path: Path) -> None:
    write_pairs(tmp_path)
    with pytest.raises(FieldError) as error:
        pairs(tmp_path, **{key: value})
    assert error.value.field.partition(".")[0] == key


def test_other_mistakes(tmp_path: Path) -> None:
    write_pairs(tmp_path)
    with pytest.raises(UserError, match="phase 'training' is not known: did you mean 'train'"):
        pairs(tmp_path, phase="training")
    (tmp_path / "lq" / "a.png").write_bytes(b"no picture")
    with pytest.raises(UserError, match="lq/a.png: cannot be read as a picture"):
        pairs(tmp_path)
    save(tmp_path / "gt" / "b.jpg", place_coded(8, 8))
    with pytest.raises(FieldError, match="dataroot_gt has .*one name must be one picture"):
        pairs(tmp_path)
