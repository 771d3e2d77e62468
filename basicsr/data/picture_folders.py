"""What data sets share that find their files by name: folders of pictures, partners, and keys with one valid value."""

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from basicsr.data.picture_lists import Folders
from basicsr.utils.errors import FieldError
from basicsr.utils.img_util import PICTURE_SUFFIXES, find_pictures

Normalisation = float | Sequence[float]

_SHOWN = 5  # files that a message names


def as_folders(value: Folders) -> list[Path]:
    """One folder or several, as paths."""
    return [Path(folder).expanduser() for folder in ([value] if isinstance(value, str | os.PathLike) else value)]


def by_name(field: str, folder: Path, suffixes: Collection[str] = PICTURE_SUFFIXES) -> dict[str, Path]:
    """The pictures below a folder by their path in it without the suffix, such as "town/0001".

    Raises:
        FieldError: the folder, a value of `field`, is not there or has no picture, or has two of one name.
    """
    if not folder.is_dir():
        raise FieldError(field, f"is {str(folder)!r}: there is no such folder")
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


def check_plain(
    io_backend: Mapping[str, Any] | None,
    mean: Normalisation | None,
    std: Normalisation | None,
    color: str | None = None,
) -> None:
    """See that keys which published YAMLs carry have the one value that is supported.

    Raises:
        FieldError: anything but files on a disk, RGB, mean 0 and standard deviation 1.
    """
    if io_backend and io_backend.get("type", "disk") != "disk":
        raise FieldError("io_backend", f"has type {io_backend['type']!r}: only 'disk' is there, remove the key")
    for field, value, plain in (("mean", mean, 0.0), ("std", std, 1.0)):
        if value is not None and any(each != plain for each in (value if isinstance(value, Sequence) else [value])):
            raise FieldError(field, f"is {value!r}: pictures stay in [0, 1] here, remove the key or give {plain:g}")
    if color not in (None, "rgb"):
        raise FieldError("color", f"is {color!r}: pictures are RGB here, remove the key")
