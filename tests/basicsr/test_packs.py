"""Pictures in tar files, in databases and elsewhere: the same samples as from a folder, in the same order."""

import tarfile
from pathlib import Path
from typing import Any

import cv2
import fsspec
import lmdb
import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from torch.utils.data import DataLoader

from basicsr.data.pack import pack
from basicsr.data.paired_image_dataset import PairedImageDataset
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils import packs
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.img_util import list_pictures, read_picture
from ldm.entry import main

NAMES = ["b.png", "town/a.jpg", "town/a b.png", "Z.webp", "a.tif", "deep/er/x.bmp", "c.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Seven pictures of several kinds in nested folders, one of 16 bits, and a file that is hidden."""
    root = tmp_path / "pictures"
    for number, name in enumerate(NAMES):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(skimage.data.astronaut()[40 * number :][:60, :70]).save(root / name)
    (root / ".hidden.png").write_bytes((root / "b.png").read_bytes())
    cv2.imwrite(str(root / "c.png"), np.arange(60 * 70 * 3, dtype=np.uint16).reshape(60, 70, 3) * 5)
    return root


def packed_as(kind: str, folder: Path) -> tuple[str, dict[str, Any] | None]:
    """`gt_path` and `io_backend` of the folder's pictures."""
    out = folder.parent / ("pack.lmdb" if kind == "lmdb" else "pack")
    if kind == "remote":
        fsspec.filesystem("memory").put(str(folder), "/bucket/pictures", recursive=True)
        return "memory://bucket/pictures", None
    pack(folder, out, "lmdb" if kind == "lmdb" else "tar", 15_000)
    if kind == "remote tar":
        fsspec.filesystem("memory").put(str(out), "/bucket/pack", recursive=True)
        return "memory://bucket/pack", {"type": "tar"}
    return str(out), {"type": kind}


def data_set(gt_path: str, io_backend: dict[str, Any] | None) -> RealESRGANDataset:
    return RealESRGANDataset(gt_path, crop_size=32, queue_size=0, io_backend=io_backend, seed=5)


def test_what_links_lead_to_is_packed(folder: Path) -> None:
    (folder / "link.png").symlink_to(folder / "b.png")
    (folder / "twin.png").hardlink_to(folder / "b.png")
    assert pack(folder, folder.parent / "pack", "tar", 10**9) == len(NAMES) + 2
    for name in ("link.png", "twin.png"):
        assert packs.read(folder.parent / "pack/000000.tar" / name) == (folder / "b.png").read_bytes()


@pytest.mark.parametrize("kind", ["tar", "lmdb", "remote", "remote tar"])
def test_samples_are_those_of_the_folder(folder: Path, kind: str) -> None:
    plain, other = data_set(str(folder), None), data_set(*packed_as(kind, folder))
    assert len(plain) == len(other) == len(NAMES)
    for draw in (0, 3, 6, 7, 100):  # of several epochs, in no order
        ours, theirs = other[draw], plain[draw]
        assert ours["gt_path"].endswith(str(Path(theirs["gt_path"]).relative_to(folder)))
        for key, value in theirs.items():
            assert key == "gt_path" or torch.equal(ours[key], value), key
    assert other.broken_files == 0


def test_workers_read_packs_that_their_parent_has_opened(folder: Path) -> None:
    for kind in ("tar", "lmdb"):
        data = data_set(*packed_as(kind, folder))
        alone, workers = ([sample["gt"] for sample in DataLoader(data, None, num_workers=n)] for n in (0, 2))
        assert all(torch.equal(*pair) for pair in zip(alone, workers, strict=True))


def test_shards_without_an_index_and_names_in_braces(folder: Path) -> None:
    gt_path, _ = packed_as("tar", folder)
    shards = sorted(Path(gt_path).glob("*.tar"))
    assert len(shards) > 2
    for index in Path(gt_path).glob("*.index"):
        index.unlink()
    braces = f"{gt_path}/{{000000..{len(shards) - 1:06}}}.tar"
    data = data_set(braces, {"type": "tar"})
    assert [Path(path).name for path in data.paths] == [Path(path).name for path in list_pictures(folder)]
    with tarfile.open(shards[0]) as tar:
        member = tar.getmembers()[0]
        content = tar.extractfile(member)
        assert content is not None and packs.read(f"{shards[0]}/{member.name}") == content.read()


def test_basicsr_can_read_the_database(folder: Path) -> None:
    """Its keys are paths without suffix, its values what cv2.imdecode takes."""
    (folder / "a.tif").unlink()
    gt_path, _ = packed_as("lmdb", folder)
    lines = (Path(gt_path) / "meta_info.txt").read_text().splitlines()
    assert "b.png (60,70,3) 1" in lines and len(lines) == len(NAMES) - 1
    with lmdb.open(gt_path, readonly=True, lock=False) as database, database.begin() as transaction:
        content = transaction.get(b"town/a b")
    decoded = cv2.imdecode(np.frombuffer(content or b"", np.uint8), 1)
    assert decoded is not None and np.array_equal(decoded[..., ::-1], read_picture(folder / "town/a b.png").pixels)


def test_pairs_from_packs(tmp_path: Path, folder: Path) -> None:
    low = tmp_path / "low"
    for picture in list_pictures(folder):
        target = (low / Path(picture).relative_to(folder)).with_suffix(".png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / "b.png").resize((35, 30)).save(target)
    for name in ("low", "pictures"):
        pack(tmp_path / name, tmp_path / f"{name}.packed", "tar", 10**9)
    plain = PairedImageDataset(str(folder), str(low), gt_size=16)
    gt, lq = (f"{tmp_path}/{name}.packed/000000.tar" for name in ("pictures", "low"))
    other = PairedImageDataset(gt, lq, gt_size=16, io_backend={"type": "tar"})
    assert len(plain) == len(other) == len(NAMES)
    for draw in range(10):
        assert all(torch.equal(other[draw][key], plain[draw][key]) for key in ("gt", "lq"))


def test_command_packs_once_and_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = folder.parent / "out"
    assert main(["pack", str(folder), str(out)]) == 0
    assert capsys.readouterr().out == f"7 pictures are in {out}\n"
    assert sorted(path.name for path in out.iterdir()) == ["000000.tar", "000000.tar.index"]
    assert main(["pack", str(folder), str(out)]) == 2
    assert "there already" in capsys.readouterr().err
    assert main(["pack", str(folder), str(folder.parent / "new"), "--type", "lmdb"]) == 2
    assert "ends in .lmdb" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("place", "backend", "said"),
    [
        ("pictures", {"type": "lmbd"}, "did you mean 'lmdb'?"),
        ("pictures", {"type": "lmdb"}, "it is a folder NAME.lmdb"),
        ("pictures", {"type": "tar"}, "a folder without tar files"),
        ("nothing.tar", {"type": "tar"}, "nothing.tar"),
        ("empty.lmdb", {"type": "lmdb"}, "cannot be read"),
    ],
)
def test_what_is_wrong_is_said(folder: Path, place: str, backend: dict[str, Any], said: str) -> None:
    with pytest.raises(FieldError) as caught:
        data_set(str(folder.parent / place), backend)
    assert said in f"{caught.value.field} {caught.value.problem}"


def test_a_cut_tar_file_is_told_at_the_start(folder: Path) -> None:
    gt_path, _ = packed_as("tar", folder)
    shard = min(Path(gt_path).glob("*.tar"))
    Path(f"{shard}.index").unlink()
    shard.write_bytes(b"no tar file")
    with pytest.raises(UserError, match="cannot be opened"):
        data_set(gt_path, {"type": "tar"})
