"""Pictures and the kernels that will degrade them: the training and validation data of StableSR.

The degradation itself runs later, on the training device (`basicsr.data.degradation_pipeline`).
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from basicsr.data.kernels import KERNEL_SIZE, KERNELS, KernelOptions, draw_final_sinc, draw_kernel
from basicsr.data.picture_folders import check_fixed_keys, places
from basicsr.data.picture_lists import Folders, PictureSources
from basicsr.data.transforms import epoch_and_index, random_crop, random_flips
from basicsr.utils import checks
from basicsr.utils.colour import luma
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.img_util import MAX_PIXELS, Pixels, as_01, read_picture, read_rgb
from basicsr.utils.path_list import PathList
from basicsr.utils.rng import numpy_rng

log = logging.getLogger(__name__)

_KERNEL_PROB = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
# So many files in a row that cannot be read are not an accident: the disk is gone, or the folder is the wrong one.
_MOST_IN_A_ROW = 100


@dataclass(frozen=True)
class CropOptions:
    """How a sample is cut out of a picture."""

    crop_size: int
    use_hflip: bool
    use_rot: bool

    def __post_init__(self) -> None:
        checks.whole_number("crop_size", self.crop_size, 1)
        checks.switch("use_hflip", self.use_hflip)
        checks.switch("use_rot", self.use_rot)

    def cut(self, pixels: Pixels, seed: int, epoch: int, index: int) -> Tensor:
        """Pixels (H, W, C) -> float32 (C, crop_size, crop_size) in [0, 1]; the same place for pictures of one size."""
        crop = random_crop(pixels, self.crop_size, numpy_rng("crop", seed, epoch, index))
        crop = random_flips(crop, numpy_rng("flips", seed, epoch, index), self.use_hflip, self.use_rot)
        return torch.from_numpy(np.ascontiguousarray(as_01(crop).transpose(2, 0, 1)))


@dataclass(frozen=True)
class EdgeMaps:
    """A folder of edge maps, NAME.png or NAME_edge.png of the picture NAME; it may be the pictures' own folder."""

    folder: Path

    @classmethod
    def of(cls, edge_map_path: str | None, pictures: Sequence[str]) -> "EdgeMaps | None":
        """None for no folder.

        Raises:
            FieldError: the folder is not there, or has the map of no picture.
        """
        if edge_map_path is None:
            return None
        maps = cls(Path(edge_map_path).expanduser())
        if not maps.folder.is_dir():
            raise FieldError("edge_map_path", f"is {edge_map_path}, which is not a folder: give one of edge maps")
        lacking = sum(not maps.path(picture).is_file() for picture in pictures)
        if lacking == len(pictures):
            raise FieldError(
                "edge_map_path", f"is {edge_map_path}, which has no picture's map: NAME.png or NAME_edge.png"
            )
        if lacking:
            log.warning("edge_map_path: %d of %d pictures have no map: a black one stands in", lacking, len(pictures))
        if len({Path(picture).stem for picture in pictures}) < len(set(pictures)):
            log.warning("edge_map_path: pictures of one name in several folders share one map")
        return maps

    def path(self, picture: str) -> Path:
        """Where a picture's map lies, if it has one."""
        beside, named = (self.folder / f"{Path(picture).stem}{end}.png" for end in ("_edge", ""))
        is_picture = named.absolute() == Path(picture).absolute()
        return beside if is_picture or beside.is_file() else named

    def read(self, picture: str, height: int, width: int) -> Pixels:
        """The map of a picture, (height, width, 1) uint8 or uint16; black where there is none."""
        if not self.path(picture).is_file():
            return np.zeros((height, width, 1), np.uint8)
        pixels = read_picture(self.path(picture)).pixels
        if pixels.shape[2] > 2:
            grey = luma(torch.from_numpy(pixels[..., :3].astype(np.float64)).permute(2, 0, 1))[0].numpy()
            pixels = np.rint(grey).astype(pixels.dtype)[..., None]
        return cv2.resize(pixels[..., 0], (width, height), interpolation=cv2.INTER_NEAREST)[..., None]


class RealESRGANDataset(Dataset[dict[str, Any]]):
    """Random crops of the pictures below some folders, each with kernels for two rounds of blur and a final filter.

    The arguments are StableSR's YAML keys. Nothing catches unknown ones here: whoever builds the dataset from a YAML
    compares the keys with this signature.

    Everything random in a sample is a function of (seed, epoch, index), whatever the number of workers. A file that
    cannot be read is named once in the log of each training process, and is replaced by another, always the same one
    for the same (seed, epoch, index).

    Args:
        gt_path: folder of ground-truth pictures, or several; searched recursively.
        crop_size: side of the square crop in pixels. Smaller pictures are mirrored at the bottom and right.
        gt_size: side that training cuts out of the degraded crop; kept for the data module. None means `crop_size`,
            above which it may not be.
        queue_size: samples in the pair pool; kept for the data module.
        image_type: file types to use, such as "png" or ["jpg", "tif"]; None or "any" means all that can be read.
        meta_info: text file with one picture path per line, relative to a folder of `gt_path`: these pictures are used,
            of whatever type, and no search is made. For what such lines may look like see `picture_lists.listed`.
        face_gt_path: folder of face pictures that are added to the others, or several.
        num_face: how many of the face pictures are used, a random subset that depends on the seed; None means all.
        mul_num: the list of pictures counts so many times over: an epoch is longer, and its crops differ.
        edge_map_path: folder with each picture's edge map, NAME_edge.png or NAME.png: samples then hold the map, cut
            out at the same place. It is brought to the picture's size by nearest neighbour; where there is none it is
            black. Of the pictures, NAME_edge.png beside NAME is then not one.
        max_pixels: larger pictures are left out.
        io_backend: what `gt_path` names: {"type": "disk"} folders; "lmdb" BasicSR's databases; "tar" tar files,
            folders of them, or name{000..063}.tar. Each may be elsewhere, as s3://bucket/folder.
        use_hflip: mirror half of the crops left to right.
        use_rot: mirror half of them top to bottom, and exchange rows and columns of half of them.
        skip_small: leave out files below 100 KiB or 384 x 384 pixels in area, as StableSR always does.
        blur_kernel_size .. betap_range: the first round's blur, see `KernelOptions`; the same with 2: the second's.
        final_sinc_prob: probability that the final filter is a sinc kernel and not the identity.
        seed: of everything random.

    Raises:
        UserError: a folder or list that is missing or gives no picture, no file that can be read, an invalid value.
    """

    def __init__(
        self,
        gt_path: Folders,
        crop_size: int = 512,
        gt_size: int | None = None,
        queue_size: int = 180,
        image_type: str | Sequence[str] | None = None,
        meta_info: str | None = None,
        face_gt_path: Folders | None = None,
        num_face: int | None = None,
        io_backend: Mapping[str, Any] | None = None,
        use_hflip: bool = True,
        use_rot: bool = False,
        skip_small: bool = False,
        blur_kernel_size: int = KERNEL_SIZE,
        kernel_list: Sequence[str] = tuple(KERNELS),
        kernel_prob: Sequence[float] = _KERNEL_PROB,
        sinc_prob: float = 0.1,
        blur_sigma: Sequence[float] = (0.2, 3.0),
        betag_range: Sequence[float] = (0.5, 4.0),
        betap_range: Sequence[float] = (1.0, 2.0),
        blur_kernel_size2: int = 11,
        kernel_list2: Sequence[str] = tuple(KERNELS),
        kernel_prob2: Sequence[float] = _KERNEL_PROB,
        sinc_prob2: float = 0.1,
        blur_sigma2: Sequence[float] = (0.2, 1.5),
        betag_range2: Sequence[float] = (0.5, 4.0),
        betap_range2: Sequence[float] = (1.0, 2.0),
        final_sinc_prob: float = 0.8,
        seed: int = 23,
        mul_num: int = 1,
        edge_map_path: str | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        check_fixed_keys(io_backend)
        gt_path = places("gt_path", gt_path, io_backend)
        given = locals()
        self.queue_size = checks.whole_number("queue_size", queue_size, 0)
        self.final_sinc_prob = checks.probability("final_sinc_prob", final_sinc_prob)
        self.kernel_options = KernelOptions.of(given, ""), KernelOptions.of(given, "2")
        self.crop = CropOptions(crop_size, use_hflip=use_hflip, use_rot=use_rot)
        self.gt_size = checks.whole_number("gt_size", crop_size if gt_size is None else gt_size, 1)
        if self.gt_size > crop_size:
            raise FieldError(
                "gt_size",
                f"is {gt_size}, and crop_size, out of which it is cut, {crop_size}: raise that, or leave it out",
            )
        self.seed = seed
        self._sources = PictureSources(**{field.name: given[field.name] for field in fields(PictureSources)})
        pictures = self._sources.paths(seed)
        if edge_map_path is not None:
            pictures = _without_maps(pictures)
        self.paths = PathList(pictures)
        self._edge_maps = EdgeMaps.of(edge_map_path, pictures)
        self._find_first_readable(pictures)

    def _find_first_readable(self, pictures: list[str]) -> None:
        """Set up the flags of files that cannot be read, and make sure that not all of them are such."""
        # A file may be listed twice.
        _, self._flag_of = np.unique(np.fromiter(map(hash, pictures), np.int64), return_inverse=True)
        flags = torch.zeros(int(self._flag_of.max()) + 1, dtype=torch.uint8)
        try:
            self._broken: Tensor = flags.share_memory_()  # among all workers
        except RuntimeError as error:
            raise UserError(f"no shared memory for the workers ({error}): see how full /dev/shm is") from error
        tried = min(len(self.paths), _MOST_IN_A_ROW)
        if all(self._read(i) is None for i in range(tried)):  # stops at the first that can be read
            which = (
                f"the {tried} files" if tried == len(self.paths) else f"the first {tried} of {len(self.paths)} files"
            )
            raise FieldError("gt_path", f"is wrong: none of {which} is a readable picture, see {self.paths[0]}")

    def __len__(self) -> int:
        return len(self.paths) * self._sources.mul_num

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """The samples of epoch 0. (Indexing never ends, so Python's own way to iterate would not either.)"""
        return (self[index] for index in range(len(self)))

    @property
    def broken_files(self) -> int:
        """How many files could not be read so far, in all workers together."""
        return int(self._broken.sum())

    def __getitem__(self, draw: int) -> dict[str, Any]:
        """One sample; `draw` = epoch * len(self) + index.

        Returns:
            gt: float32 (3, crop_size, crop_size), RGB in [0, 1].
            edge: float32 (1, crop_size, crop_size) in [0, 1], only with `edge_map_path`: its map.
            kernel1, kernel2, sinc_kernel: float32 (21, 21), each of sum 1.
            gt_path: str, the file that was read.

        Raises:
            UserError: no file can be read any more.
        """
        epoch, index = epoch_and_index(draw, len(self))
        path, pixels, edge = self._picture(epoch, index)
        rng = numpy_rng("kernels", self.seed, epoch, index)
        sample = {
            "gt": self.crop.cut(pixels, self.seed, epoch, index),
            "kernel1": torch.from_numpy(draw_kernel(rng, self.kernel_options[0])),
            "kernel2": torch.from_numpy(draw_kernel(rng, self.kernel_options[1])),
            "sinc_kernel": torch.from_numpy(draw_final_sinc(rng, self.final_sinc_prob)),
            "gt_path": path,
        }
        if edge is not None:
            sample["edge"] = self.crop.cut(edge, self.seed, epoch, index)
        return sample

    def _picture(self, epoch: int, index: int) -> tuple[str, Pixels, Pixels | None]:
        """The picture for this place, or the one that stands in for it: path, pixels (H, W, 3), its edge map."""
        count = len(self.paths)

        def stand_ins() -> Iterator[int]:
            # Not by the flags, which tell what some worker has seen so far, but by the files alone.
            start = int(numpy_rng("stand-in", self.seed, epoch, index).integers(len(self)))
            yield from ((start + step) % count for step in range(count))

        failed = 0
        for candidate in itertools.chain([index % count], stand_ins()):
            if self._broken[self._flag_of[candidate]]:
                continue
            if (read := self._read(candidate)) is not None:
                return self.paths[candidate], *read
            failed += 1
            if failed == _MOST_IN_A_ROW:
                break
        in_a_row = f"{failed} pictures in a row could not be read"
        which = in_a_row if failed == _MOST_IN_A_ROW else f"none of the {count} pictures can be read"
        raise FieldError("gt_path", f"gives nothing any more: {which}; is the disk still there?")

    def _read(self, index: int) -> tuple[Pixels, Pixels | None] | None:
        """A picture and its edge map, None where they cannot be read; a flag spares a second try and a second word."""
        flag, path = self._flag_of[index], self.paths[index]
        try:
            pixels = read_rgb(path, self._sources.max_pixels)
            return pixels, self._edge_maps.read(path, *pixels.shape[:2]) if self._edge_maps else None
        except (UserError, MemoryError) as error:
            if not self._broken[flag]:  # another worker may have come first in the meantime
                self._broken[flag] = 1
                reason = str(error) if isinstance(error, UserError) else f"{path}: there is no memory for it"
                log.warning("a picture is left out, another takes its place: %s", reason)
            return None


def _without_maps(pictures: list[str]) -> list[str]:
    """The pictures but for those that are another's edge map, beside it."""
    names = {Path(picture).with_suffix("") for picture in pictures}

    def is_map(picture: Path) -> bool:
        return picture.stem.endswith("_edge") and picture.with_name(picture.stem.removesuffix("_edge")) in names

    return [picture for picture in pictures if not is_map(Path(picture))]
