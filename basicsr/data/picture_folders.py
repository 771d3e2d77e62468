"""What data sets share that find their files by name: folders of pictures, partners, and keys with one valid value."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr.data.picture_lists import Folders
from basicsr.utils import checks, packs
from basicsr.utils.errors import FieldError
from basicsr.utils.img_util import PICTURE_SUFFIXES, find_pictures

Normalisation = float | Sequence[float]

BACKENDS = ("disk", "lmdb", "tar")
_SHOWN = 5  # files that a message names


def as_folders(value: Folders) -> list[Path]:
    """One folder or several, as paths."""
    return [Path(folder).expanduser() for folder in ([value] if isinstance(value, str | os.PathLike) else value)]


def places(field: str, value: Folders, io_backend: Mapping[str, Any] | None) -> list[str]:
    """Folders or packs as `field` gives them, for tar each of the files: of a folder of them, of a name{000..063}.tar.

    Raises:
        FieldError: what is given is not of the kind that `io_backend` says.
    """
    kind = (io_backend or {}).get("type", "disk")
    given = [str(Path(place).expanduser()) if not packs.is_remote(place) else str(place) for place in _listed(value)]
    if kind == "lmdb":
        for place in given:
            if not place.rstrip("/").endswith(".lmdb"):
                raise FieldError(field, f"is {place}: with io_backend type lmdb it is a folder NAME.lmdb")
    return given if kind != "tar" else [shard for place in given for shard in _shards(field, place)]


def _listed(value: Folders) -> list[str]:
    return [os.fspath(value)] if isinstance(value, str | os.PathLike) else [os.fspath(place) for place in value]


def _shards(field: str, place: str) -> list[str]:
    """The tar files that a name means."""
    if numbered := re.fullmatch(r"(.*)\{(\d+)\.\.(\d+)\}(.*\.tar)", place):
        before, first, last, after = numbered.groups()
        return [f"{before}{number:0{len(first)}}{after}" for number in range(int(first), int(last) + 1)]
    if place.endswith(".tar"):
        return [place]
    if not packs.is_remote(place) and not Path(place).is_dir():
        raise FieldError(field, f"is {place}, which is neither a tar file nor a folder of them")
    names = packs.names_in(place) if packs.is_remote(place) else [path.name for path in Path(place).iterdir()]
    shards = sorted(f"{place.rstrip('/')}/{name}" for name in names if name.endswith(".tar"))
    if not shards:
        raise FieldError(field, f"is {place}, a folder without tar files: stablesr-edge pack makes them")
    return shards


def by_name(field: str, folder: Path, suffixes: Collection[str] = PICTURE_SUFFIXES) -> dict[str, Path]:
    """The pictures below a folder by their path in it without the suffix, such as "town/0001".

    Raises:
        FieldError: the folder, a value of `field`, is not there or has no picture, or has two of one name.
    """
    found: dict[str, Path] = {}
    for path in find_pictures(folder, suffixes, field):
        name = path.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise FieldError(field, f"has {path} beside {found[name].name}: one name must be one picture")
        found[name] = path
    if not found:
        raise FieldError(field, f"has no {', '.join(sorted(suffixes))} file below {folder}")
    return found


def shortened(files: Sequence[object]) -> str:
    """The first few of some files, for a message."""
    more = f" and {len(files) - _SHOWN} more" if len(files) > _SHOWN else ""
    return ", ".join(map(str, files[:_SHOWN])) + more


def check_fixed_keys(
    io_backend: Mapping[str, Any] | None,
    mean: Normalisation | None = None,
    std: Normalisation | None = None,
    color: str | None = None,
) -> None:
    """See that keys which published YAMLs carry have the one value that is supported.

    Raises:
        FieldError: anything but files on a disk, RGB, mean 0 and standard deviation 1.
    """
    if io_backend and io_backend.get("type", "disk") not in BACKENDS:
        raise FieldError("io_backend.type", checks.unknown("type", str(io_backend["type"]), BACKENDS).problem)
    for field, value, plain in (("mean", mean, 0.0), ("std", std, 1.0)):
        if value is not None and any(each != plain for each in (value if isinstance(value, Sequence) else [value])):
            raise FieldError(field, f"is {value!r}: pictures stay in [0, 1] here, remove the key or give {plain:g}")
    if color not in (None, "rgb"):
        raise FieldError("color", f"is {color!r}: pictures are RGB here, remove the key")
