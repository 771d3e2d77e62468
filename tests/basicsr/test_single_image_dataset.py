"""Folders of pictures, and of what the second stage trains on: matched by name, read safely."""

from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image

from basicsr.data.single_image_dataset import PARTS, SingleImageDataset, SingleImageNPDataset
from basicsr.utils.errors import FieldError, UserError

PHOTO: np.ndarray = skimage.data.astronaut()[:64, 180:244]


def write_samples(folder: Path, count: int = 3) -> None:
    """`count` samples: pictures of 32 pixels that tell their part and number, latents of (1, 4, 4, 4)."""
    for number in range(count):
        for shade, part in enumerate(PARTS):
            (folder / part).mkdir(parents=True, exist_ok=True)
            if part == "latents":
                np.save(folder / part / f"{number:08}.npy", np.full((1, 4, 4, 4), number + 0.5, np.float32))
            else:
                Image.new("RGB", (32, 32), (shade, number, 0)).save(folder / part / f"{number:08}.png")


def test_a_sample_holds_the_four_parts_of_one_name(tmp_path: Path) -> None:
    write_samples(tmp_path)
    data = SingleImageNPDataset(str(tmp_path))
    assert len(data) == 3
    for number in range(3):
        sample = data[number]
        for key, shade in (("lq", 0), ("gt", 1), ("sample", 3)):
            assert sample[key].shape == (3, 32, 32) and sample[key].dtype == torch.float32
            assert (sample[key][:, 5, 5] * 255).round().tolist() == [shade, number, 0]
        assert torch.equal(sample["latent"], torch.full((4, 4, 4), number + 0.5))
        assert sample["gt_path"] == str(tmp_path / "gts" / f"{number:08}.png")
    assert torch.equal(data[4]["latent"], data[1]["latent"])  # the next epoch


def test_several_folders_and_both_shapes_of_latents(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_samples(tmp_path / name, 2)
    np.save(tmp_path / "two" / "latents" / "00000001.npy", np.full((4, 4, 4), 7, np.float32))
    data = SingleImageNPDataset([str(tmp_path / "one"), str(tmp_path / "two")])
    assert [float(data[i]["latent"].mean()) for i in range(4)] == [0.5, 1.5, 0.5, 7]


def test_what_lacks_a_file_is_named(tmp_path: Path) -> None:
    write_samples(tmp_path, 4)
    (tmp_path / "latents" / "00000001.npy").unlink()
    (tmp_path / "inputs" / "00000003.png").unlink()
    (tmp_path / "gts" / "00000003.png").unlink()
    with pytest.raises(FieldError) as error:
        SingleImageNPDataset(str(tmp_path))
    assert str(error.value).endswith("2 samples lack files: 00000001 (latents), 00000003 (inputs, gts)")


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named(part: str, tmp_path: Path) -> None:
    write_samples(tmp_path, 1)
    (tmp_path / part).rename(tmp_path / "elsewhere")
    with pytest.raises(FieldError, match=f"gt_path is .*{part}, which does not exist"):
        SingleImageNPDataset(str(tmp_path))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        (np.zeros((2, 4, 4, 4), np.float32), r"not a finite float latent .* float32 \(2, 4, 4, 4\)"),
        (np.full((4, 4, 4), np.nan, np.float32), "not a finite float latent"),
        (np.zeros((4, 4, 4), np.int64), "not a finite float latent .* int64"),
        (np.array([{"a": 1}], dtype=object), "cannot be read as a latent"),  # a pickle, which could run code
    ],
)
def test_a_latent_that_cannot_be_is_named(values: np.ndarray, problem: str, tmp_path: Path) -> None:
    write_samples(tmp_path, 1)
    np.save(tmp_path / "latents" / "00000000.npy", values, allow_pickle=True)
    with pytest.raises(UserError, match=f"00000000.npy: .*{problem}"):
        SingleImageNPDataset(str(tmp_path))[0]


def test_pictures_of_a_sample_are_of_one_size(tmp_path: Path) -> None:
    write_samples(tmp_path, 1)
    Image.new("RGB", (24, 32)).save(tmp_path / "inputs" / "00000000.png")
    with pytest.raises(UserError, match=r"gts/00000000.png: .*differ in size \(24x32, 32x32, 32x32\)"):
        SingleImageNPDataset(str(tmp_path))[0]


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    Image.fromarray(PHOTO).save(tmp_path / "b.png")
    Image.fromarray(PHOTO[:40]).save(tmp_path / "a.bmp")
    data = SingleImageDataset(str(tmp_path), io_backend={"type": "disk"}, mean=[0, 0, 0], std=[1, 1, 1], color="rgb")
    assert [Path(path).name for path in data.paths] == ["a.bmp", "b.png"]
    assert data[0]["lq"].shape == (3, 40, 64) and data[1]["lq_path"] == str(tmp_path / "b.png")
    torch.testing.assert_close(data[1]["lq"], torch.from_numpy(PHOTO.transpose(2, 0, 1).copy()) / 255)
    listed = tmp_path / "list.txt"
    listed.write_text("b.png (64,64,3)\n")
    assert [Path(path).name for path in SingleImageDataset(str(tmp_path), str(listed)).paths] == ["b.png"]
    listed.write_text("c.png\n")
    with pytest.raises(FieldError, match="meta_info_file is .*1 lines of which name no file in .*: 'c.png'"):
        SingleImageDataset(str(tmp_path), str(listed))


@pytest.mark.parametrize(("key", "value"), [("color", "y"), ("mean", [0.5] * 3), ("io_backend", {"type": "petrel"})])
def test_a_value_that_is_not_supported_is_named(key: str, value: object, tmp_path: Path) -> None:
    write_samples(tmp_path, 1)
    for dataset in (SingleImageNPDataset, SingleImageDataset):
        with pytest.raises(FieldError) as error:
            dataset(str(tmp_path), **{key: value})  # type: ignore[arg-type]  # wrong on purpose
        assert error.value.field.partition(".")[0] == key
