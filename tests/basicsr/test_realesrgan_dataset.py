import inspect
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch.utils.data import DataLoader

from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils import img_util
from basicsr.utils.errors import UserError

CROP = 48
# The keys of a published StableSR YAML's train dataset.
STABLESR: dict[str, Any] = {
    "queue_size": 180,
    "crop_size": CROP,
    "io_backend": {"type": "disk"},
    "blur_kernel_size": 21,
    "kernel_list": ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"],
    "kernel_prob": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob": 0.1,
    "blur_sigma": [0.2, 3],
    "betag_range": [0.5, 4],
    "betap_range": [1, 2],
    "blur_kernel_size2": 11,
    "kernel_list2": ["iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"],
    "kernel_prob2": [0.45, 0.25, 0.12, 0.03, 0.12, 0.03],
    "sinc_prob2": 0.1,
    "blur_sigma2": [0.2, 1.5],
    "betag_range2": [0.5, 4.0],
    "betap_range2": [1, 2],
    "final_sinc_prob": 0.8,
    "gt_size": CROP,
    "use_hflip": True,
    "use_rot": False,
}


def write_zoo(folder: Path) -> Path:
    """Photographs in many formats and modes, one of them smaller than the crop and one in a subfolder."""
    (folder / "sub").mkdir(parents=True)
    photos = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket()]
    pictures = [Image.fromarray(photo).resize((100, 80)) for photo in photos]
    grey16 = np.asarray(pictures[0].convert("L")).astype(np.uint16) * 257
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures[0].save(folder / "rgb.png")
    Image.fromarray(grey16).save(folder / "grey16.png")
    pictures[1].quantize(64).save(folder / "palette.PNG")
    pictures[1].convert("RGBA").save(folder / "rgba.png")
    pictures[2].convert("L").save(folder / "grey.jpg")
    pictures[2].save(folder / "turned.JPG", exif=turned)
    pictures[3].convert("CMYK").save(folder / "sub" / "cmyk.jpeg")
    pictures[3].save(folder / "photo.webp")
    pictures[0].save(folder / "photo.bmp")
    pictures[1].save(folder / "photo.tif")
    pictures[2].resize((9, 30)).save(folder / "tiny.png")
    return folder


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_zoo(tmp_path_factory.mktemp("zoo") / "gt")


@pytest.fixture
def zoo_with_broken(tmp_path: Path) -> Path:
    folder = write_zoo(tmp_path / "gt")
    (folder / "sub" / "broken_a.png").write_bytes((folder / "rgb.png").read_bytes()[:900])
    (folder / "broken_b.jpg").write_text("no picture")
    return folder


@pytest.fixture
def log_file(tmp_path: Path) -> Iterator[Path]:
    """What the dataset logs, in worker processes too: they inherit the open file."""
    handler = logging.FileHandler(tmp_path / "log.txt", mode="a")
    logging.getLogger("basicsr").addHandler(handler)
    yield tmp_path / "log.txt"
    logging.getLogger("basicsr").removeHandler(handler)
    handler.close()


def batches(dataset: RealESRGANDataset, epochs: int, workers: int, context: str | None = None) -> list[dict[str, Any]]:
    draws = range(epochs * len(dataset))
    return list(DataLoader(dataset, 3, sampler=draws, num_workers=workers, multiprocessing_context=context))


def assert_equal(got: list[dict[str, Any]], want: list[dict[str, Any]]) -> None:
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        assert a["gt_path"] == b["gt_path"]
        for key in ("gt", "kernel1", "kernel2", "sinc_kernel"):
            assert torch.equal(a[key], b[key]), key


def test_a_sample(zoo: Path) -> None:
    dataset = RealESRGANDataset(gt_path=str(zoo), **STABLESR)
    assert len(dataset) == 11 and dataset.queue_size == 180 and dataset.gt_size == CROP
    seen = set()
    for sample in dataset:
        assert sorted(sample) == ["gt", "gt_path", "kernel1", "kernel2", "sinc_kernel"]
        assert sample["gt"].shape == (3, CROP, CROP) and sample["gt"].dtype == torch.float32
        assert sample["gt"].is_contiguous() and 0 <= sample["gt"].min() < sample["gt"].max() <= 1
        assert sample["gt"].std() > 0.02
        for key in ("kernel1", "kernel2", "sinc_kernel"):
            assert sample[key].shape == (21, 21) and sample[key].dtype == torch.float32
            assert math.isclose(sample[key].sum(), 1, abs_tol=1e-5)
        seen.add(Path(sample["gt_path"]).name)
    assert len(seen) == 11 and dataset.broken_files == 0


def test_the_crop_is_cut_from_the_picture(zoo: Path) -> None:
    dataset = RealESRGANDataset(str(zoo), crop_size=40, use_hflip=False, image_type="bmp")
    picture = torch.from_numpy(np.array(Image.open(zoo / "photo.bmp"))).permute(2, 0, 1) / 255
    windows = picture.unfold(1, 40, 1).unfold(2, 40, 1)  # (3, rows, columns, 40, 40)
    crop = dataset[5]["gt"]
    distance = (windows - crop[:, None, None]).abs().amax(dim=(0, 3, 4))
    assert distance.min() < 1e-6 and (distance < 1e-6).sum() == 1


def test_signature_takes_named_keys_only() -> None:
    kinds = {p.kind for p in inspect.signature(RealESRGANDataset).parameters.values()}
    assert kinds == {inspect.Parameter.POSITIONAL_OR_KEYWORD}


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_change_nothing(zoo: Path, workers: int) -> None:
    dataset = RealESRGANDataset(str(zoo), **STABLESR)
    assert_equal(batches(dataset, 2, workers), batches(dataset, 2, 0))


def test_seed_and_epoch_change_crops_flips_and_kernels(zoo: Path) -> None:
    dataset = RealESRGANDataset(str(zoo), **STABLESR)
    first, again = batches(dataset, 2, 0), batches(RealESRGANDataset(str(zoo), **STABLESR), 2, 0)
    assert_equal(first, again)
    other = batches(RealESRGANDataset(str(zoo), seed=24, **STABLESR), 1, 0)
    for key in ("gt", "kernel1", "kernel2", "sinc_kernel"):
        epochs = torch.cat([batch[key] for batch in first]).chunk(2)
        assert not torch.equal(epochs[0], epochs[1]), key
        assert not torch.equal(torch.cat([batch[key] for batch in other]), epochs[0]), key
    assert_equal([dataset[np.int64(17)]], [dataset[17]])  # type: ignore[index]  # NumPy's integers are numbers too


def test_negative_index_is_refused(zoo: Path) -> None:
    with pytest.raises(IndexError):
        RealESRGANDataset(str(zoo))[-1]


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_files_are_named_once_and_replaced(zoo_with_broken: Path, log_file: Path, workers: int) -> None:
    dataset = RealESRGANDataset(str(zoo_with_broken), **STABLESR)
    assert len(dataset) == 13
    got = batches(dataset, 3, workers)  # each epoch of the test's loader hits both
    assert sum(len(batch["gt_path"]) for batch in got) == 39
    assert not any("broken" in Path(path).name for batch in got for path in batch["gt_path"])
    assert dataset.broken_files == 2
    lines = log_file.read_text().splitlines()
    assert sorted("broken_a.png" in line for line in lines) == [False, True], lines
    assert all("cannot be read as a picture" in line for line in lines)
    # Stand-ins do not depend on who has seen which failure, and differ from epoch to epoch.
    assert_equal(got, batches(RealESRGANDataset(str(zoo_with_broken), **STABLESR), 3, 0))
    places = [i for i, path in enumerate(dataset.paths) if "broken" in Path(path).name]
    stand_ins = {dataset[epoch * 13 + place]["gt_path"] for epoch in range(6) for place in places}
    assert len(stand_ins) > 2


def test_spawned_workers_share_the_flags(zoo_with_broken: Path) -> None:
    dataset = RealESRGANDataset(str(zoo_with_broken), **STABLESR)
    got = batches(dataset, 1, 1, context="spawn")
    assert dataset.broken_files == 2
    assert_equal(got, batches(dataset, 1, 0))


def test_a_file_that_breaks_later_or_all_of_them(zoo: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.open(zoo / "rgb.png").save(tmp_path / name)
    dataset = RealESRGANDataset(str(tmp_path), crop_size=8)
    (tmp_path / "b.png").unlink()
    assert dataset[1]["gt_path"] == str(tmp_path / "a.png") and dataset.broken_files == 1
    (tmp_path / "a.png").unlink()
    with pytest.raises(UserError, match="none of the 2 pictures can be read; is the disk still there"):
        dataset[0]


def test_file_listed_twice_counts_once_when_broken(zoo_with_broken: Path, log_file: Path) -> None:
    dataset = RealESRGANDataset([str(zoo_with_broken)] * 2, **STABLESR)
    assert len(batches(dataset, 1, 0)) == 9 and len(dataset) == 26
    assert dataset.broken_files == 2 and len(log_file.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("image_type", "count"),
    [(None, 11), ("any", 11), ("png", 5), (".PNG", 5), ("jpg", 3), (["webp", "tiff"], 2), (["bmp"], 1)],
)
def test_image_type(zoo: Path, image_type: str | list[str] | None, count: int) -> None:
    assert len(RealESRGANDataset(str(zoo), image_type=image_type)) == count


def test_several_folders_and_faces(zoo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for i in range(30):
        Image.new("RGB", (50, 50), (i, 0, 0)).save(tmp_path / f"face{i:02}.png")

    def faces(dataset: RealESRGANDataset) -> list[str]:
        return [path for path in dataset.paths if "face" in path]

    both = RealESRGANDataset([str(zoo), str(zoo / "sub")], face_gt_path=str(tmp_path), num_face=8)
    assert len(both) == 11 + 1 + 8 and len(faces(both)) == 8
    same = RealESRGANDataset(str(zoo), face_gt_path=[str(tmp_path)], num_face=8)
    other = RealESRGANDataset(str(zoo), face_gt_path=str(tmp_path), num_face=8, seed=24)
    assert faces(same) == faces(both) == sorted(faces(both)) and faces(other) != faces(both)
    assert len(faces(RealESRGANDataset(str(zoo), face_gt_path=str(tmp_path)))) == 30
    assert len(faces(RealESRGANDataset(str(zoo), face_gt_path=str(tmp_path), num_face=99))) == 30
    assert "num_face is 99, but face_gt_path has 30 pictures" in caplog.text


def test_meta_info(zoo: Path, tmp_path: Path) -> None:
    meta = tmp_path / "meta.txt"
    meta.write_text("rgb.png\n\nsub/cmyk.jpeg (80,100,3)\ncmyk.jpeg\n")
    folders = [str(zoo), str(zoo / "sub")]
    dataset = RealESRGANDataset(folders, meta_info=str(meta), image_type="png")
    assert list(dataset.paths) == [str(zoo / "rgb.png"), str(zoo / "sub/cmyk.jpeg"), str(zoo / "sub/cmyk.jpeg")]
    assert dataset.paths[1:] == dataset.paths[-2:] and dataset.paths[-3] == str(zoo / "rgb.png")
    with pytest.raises(IndexError):
        dataset.paths[3]


def test_skip_small(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (384, 384, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png")
    Image.fromarray(noise[:383]).save(tmp_path / "few_pixels.png")
    Image.new("RGB", (384, 384)).save(tmp_path / "few_bytes.png")
    (tmp_path / "broken.png").write_text("no picture")
    with caplog.at_level(logging.INFO):
        dataset = RealESRGANDataset(str(tmp_path), skip_small=True)
    assert [Path(path).name for path in dataset.paths] == ["broken.png", "large.png"]
    assert "skip_small: 2 of 4 pictures are left out" in caplog.text
    assert len(RealESRGANDataset(str(tmp_path))) == 4
    (tmp_path / "large.png").unlink()
    (tmp_path / "broken.png").unlink()
    with pytest.raises(UserError, match="skip_small leaves none of 2 pictures"):
        RealESRGANDataset(str(tmp_path), skip_small=True)


def test_what_is_not_there_is_an_error_at_start(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match="^gt_path is .*nowhere, which does not exist"):
        RealESRGANDataset(str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match=f"^gt_path is {tmp_path}/nowhere, which does not exist"):
        RealESRGANDataset("~/nowhere")
    with pytest.raises(UserError, match="^face_gt_path is .*nowhere, which does not exist"):
        RealESRGANDataset(str(zoo), face_gt_path=str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="^gt_path is .*, with no .*file below it; give a folder of pictures"):
        RealESRGANDataset(str(tmp_path))
    with pytest.raises(UserError, match="gt_path is an empty list"):
        RealESRGANDataset([])
    with pytest.raises(UserError, match="^gt_path is .*sub, with no .webp file below it; it has 1 of other types: set"):
        RealESRGANDataset(str(zoo / "sub"), image_type="webp")
    for name in ("a.jpg", "b.png"):
        (tmp_path / name).write_text("no picture")
    with pytest.raises(UserError, match="^gt_path is wrong: none of the 2 files is a readable picture, see .*a.jpg"):
        RealESRGANDataset(str(tmp_path))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"crop_size": 0}, "crop_size is 0"),
        ({"gt_size": 1.5}, "gt_size is 1.5"),
        ({"crop_size": 8, "gt_size": 9}, "gt_size is .*crop_size, out of which it is cut"),
        ({"queue_size": -1}, "queue_size is -1"),
        ({"image_type": "pgn"}, "image_type 'pgn' is not known: did you mean 'png'"),
        ({"io_backend": {"type": "lmdb"}}, "^gt_path is .*: with io_backend type lmdb it is a folder"),
        ({"num_face": -3}, "num_face is -3"),
        ({"final_sinc_prob": 1.2}, "final_sinc_prob is 1.2"),
        ({"sinc_prob2": -0.1}, "sinc_prob2 is -0.1"),
        ({"kernel_list": ["isso"], "kernel_prob": [1]}, "^kernel_list 'isso' is not known: did you mean 'iso'"),
        ({"kernel_list2": "iso"}, "^kernel_list2 is 'iso': give a list"),
        ({"blur_kernel_size2": 8}, "^blur_kernel_size2 is 8: give an odd number"),
        ({"mul_num": 0}, "^mul_num is 0"),
        ({"max_pixels": 0}, "^max_pixels is 0"),
        ({"use_rot": "no"}, "^use_rot is 'no': give true or false"),
        ({"edge_map_path": "nowhere"}, "^edge_map_path is nowhere, which is not a folder"),
    ],
)
def test_invalid_values_are_named(zoo: Path, keys: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RealESRGANDataset(str(zoo), face_gt_path=str(zoo), **keys)


def test_mul_num_lengthens_an_epoch(zoo: Path) -> None:
    once, thrice = RealESRGANDataset(str(zoo), **STABLESR), RealESRGANDataset(str(zoo), mul_num=3, **STABLESR)
    assert len(once) == 11 and len(thrice) == 33
    samples = list(thrice)
    assert [s["gt_path"] for s in samples] == 3 * [s["gt_path"] for s in once]
    assert not torch.equal(samples[0]["gt"], samples[11]["gt"])  # another crop of the same picture
    assert_equal(samples[:11], list(once))


def test_edge_maps_are_cut_and_flipped_with_their_pictures(zoo: Path, tmp_path: Path) -> None:
    """Each map is the picture's own red channel, at half the size; `tiny` has none."""
    names = ("rgb.png", "photo.bmp", "photo.tif")
    for name in names:
        red = Image.open(zoo / name).convert("RGB").getchannel(0)
        red.resize((red.width // 2, red.height // 2), Image.Resampling.NEAREST).save(
            tmp_path / f"{Path(name).stem}.png"
        )
    meta = tmp_path / "list.txt"
    meta.write_text("rgb.png\nphoto.tif\ntiny.png\n")
    dataset = RealESRGANDataset(
        str(zoo), meta_info=str(meta), edge_map_path=str(tmp_path), crop_size=CROP, use_rot=True, mul_num=8
    )
    for sample in dataset:
        assert sample["edge"].shape == (1, CROP, CROP) and sample["edge"].dtype == torch.float32
        if "tiny" in sample["gt_path"]:
            assert not sample["edge"].any()
        else:  # halves lie half a pixel off; another place or turn would be far off
            assert (sample["edge"][0] - sample["gt"][0]).abs().mean() < 0.08, sample["gt_path"]
    loaded = next(iter(DataLoader(dataset, 4)))
    assert loaded["edge"].shape == (4, 1, CROP, CROP)


def test_edge_maps_may_be_colour_or_deep_and_a_broken_one_counts_as_a_broken_picture(
    zoo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "rgb.png")
    Image.fromarray(np.full((4, 4), 13107, np.uint16)).save(tmp_path / "grey16.png")
    (tmp_path / "tiny.png").write_text("no picture")
    dataset = RealESRGANDataset(str(zoo), edge_map_path=str(tmp_path), crop_size=8)
    assert "edge_map_path: 8 of 11 pictures have no map: a black one stands in" in caplog.text
    values = {Path(s["gt_path"]).name: float(s["edge"].max()) for s in dataset}
    assert values["rgb.png"] == pytest.approx(76 / 255) and values["grey16.png"] == pytest.approx(0.2)
    assert "tiny.png" not in values and dataset.broken_files == 1 and f"{tmp_path}/tiny.png" in caplog.text
    dots = np.random.default_rng(0).integers(0, 2, (7, 9), dtype=np.uint8) * 255
    Image.fromarray(dots).save(tmp_path / "rgb.png")
    enlarged = RealESRGANDataset(str(zoo), edge_map_path=str(tmp_path), crop_size=80)
    (edge,) = (sample["edge"] for sample in enlarged if sample["gt_path"].endswith("rgb.png"))
    assert set(edge.unique().tolist()) == {0, 1}  # the nearest: no value between
    for name in ("rgb", "grey16", "tiny"):
        (tmp_path / f"{name}.png").unlink()
    with pytest.raises(UserError, match="^edge_map_path is .*, which has no picture.s map: NAME.png or NAME_edge.png"):
        RealESRGANDataset(str(zoo), edge_map_path=str(tmp_path))


def test_pictures_over_the_limit_are_left_out(zoo: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = RealESRGANDataset(str(zoo), max_pixels=500, crop_size=8)  # all but tiny.png have 8000
    assert {Path(sample["gt_path"]).name for sample in dataset} == {"tiny.png"}
    assert dataset.broken_files == 10 and "rgb.png: has more than 500 pixels; raise max_pixels" in caplog.text


def test_a_disk_that_is_gone_ends_the_run_after_a_hundred_files(
    zoo: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for i in range(150):
        (tmp_path / f"{i:03}.png").symlink_to(zoo / "rgb.png")
    dataset = RealESRGANDataset(str(tmp_path), crop_size=8)
    tmp_path.rename(tmp_path.with_name("away"))
    with pytest.raises(UserError, match="^gt_path gives nothing any more: 100 pictures in a row could not be read; is"):
        dataset[3]
    assert len(caplog.messages) == 100 and all("No such file" in line for line in caplog.messages)
    with pytest.raises(UserError, match="^gt_path is wrong: none of the first 100 of 150 files is a readable picture"):
        (tmp_path.with_name("away")).rename(tmp_path)
        for path in tmp_path.iterdir():
            path.unlink()
            path.touch()
        RealESRGANDataset(str(tmp_path))


def test_a_picture_that_changes_is_read_as_it_is_now_and_one_without_memory_is_left_out(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "b.png"):
        Image.open(zoo / "rgb.png").save(tmp_path / name)
    dataset = RealESRGANDataset(str(tmp_path), crop_size=8)
    Image.new("L", (5, 300), 51).save(tmp_path / "a.png")
    sample = dataset[0]
    assert sample["gt_path"].endswith("a.png") and torch.allclose(sample["gt"], torch.tensor(0.2))

    def read_rgb(path: str, max_pixels: int) -> np.ndarray:
        if path.endswith("b.png"):
            raise MemoryError
        return img_util.read_rgb(path, max_pixels)

    monkeypatch.setattr("basicsr.data.realesrgan_dataset.read_rgb", read_rgb)
    assert dataset[1]["gt_path"].endswith("a.png") and f"{tmp_path}/b.png: there is no memory for it" in caplog.text


def test_no_shared_memory_is_one_line(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = RuntimeError("unable to open shared memory object </torch_1> in read-write mode: No space left on device")
    monkeypatch.setattr(torch.Tensor, "share_memory_", Mock(side_effect=full))
    with pytest.raises(UserError, match="^no shared memory for the workers .*No space.*: see how full /dev/shm is$"):
        RealESRGANDataset(str(zoo))
