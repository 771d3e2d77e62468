"""Pictures in few large files, and pictures that are not on a disk here: paths that lead through them.

`train.tar/town/0001.png` is a member of the file `train.tar`, `train.lmdb/0001.png` a value of that database, and
`s3://bucket/train.tar/0001.png` a part of an object; whatever lists and reads pictures takes such paths. A member's
place is known from an index, so that pictures are read in any order, as from a folder.
"""

import bisect
import os
import re
import tarfile
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar, cast

import numpy as np

from basicsr.utils.errors import UserError
from basicsr.utils.path_list import PathList

T = TypeVar("T")

INDEX = ".index"  # beside a tar file: a line for each member, its offset, size and name, by tabs
META = "meta_info.txt"  # in a BasicSR database: a line for each picture, "town/0001.png (height,width,channels) level"
_URL = re.compile(r"^([a-z][a-z0-9+.-]+):/+(?=[^/])")  # pathlib makes one slash of two
_PACK = re.compile(r"^(.*?\.(?:tar|lmdb))/(.+)$", re.DOTALL)


class Pack(Protocol):
    """A file of files."""

    names: Sequence[str]  # sorted

    def read(self, name: str) -> bytes:
        """A member's content; KeyError where there is none of that name."""


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether a path is an address such as s3://bucket/folder."""
    return bool(_URL.match(os.fspath(path)))


def is_pack(path: str | os.PathLike[str]) -> bool:
    """Whether a path names a pack itself, and not a folder that is called like one."""
    text = os.fspath(path).rstrip("/")
    return text.endswith(".lmdb") or (text.endswith(".tar") and (is_remote(text) or Path(text).is_file()))


def packed(path: str | os.PathLike[str]) -> bool:
    """Whether a path leads to what is not a file of its own on this machine's disks."""
    text = os.fspath(path)
    return is_remote(text) or (_PACK.match(text) is not None and not os.path.exists(text))  # noqa: PTH110


def is_file(path: str) -> bool:
    """Whether there is a file behind a path, packed or not."""
    if not packed(path):
        return os.path.isfile(path)  # noqa: PTH113  # a third of the time that Path takes
    text = _address(path)
    if member := _PACK.match(text):
        return _place(open_pack(member[1]).names, member[2]) is not None
    files, place = _remote(text, os.getpid())
    return bool(files.isfile(place))


def size(path: str) -> int:
    """Bytes of the file behind a path, packed or not."""
    return len(read(path)) if packed(path) else Path(path).stat().st_size


def names_in(path: str | os.PathLike[str]) -> list[str]:
    """All files in a pack or below a remote folder, by their names in it, sorted.

    Raises:
        UserError: it cannot be opened.
    """
    if is_pack(path):
        return list(open_pack(_address(path).rstrip("/")).names)
    files, root = _remote(_address(path), os.getpid())
    return _told(path, lambda: sorted(str(name).removeprefix(root).lstrip("/") for name in files.find(root)))


def read(path: str | os.PathLike[str]) -> bytes:
    """The content behind a packed path.

    Raises:
        OSError: there is nothing, or it cannot be reached.
        UserError: the pack cannot be opened.
    """
    text = _address(path)
    if member := _PACK.match(text):
        try:
            return open_pack(member[1]).read(member[2])
        except KeyError as error:
            raise FileNotFoundError(2, f"is not in {member[1]}") from error
    files, place = _remote(text, os.getpid())
    return cast(bytes, files.cat_file(place))


@lru_cache(maxsize=4096)
def open_pack(path: str) -> Pack:
    """The pack at this path; its index is read once, before workers are forked, who share it.

    Raises:
        UserError: it is missing, damaged, or needs a package that is not installed.
    """
    return _told(path, lambda: Lmdb(path) if path.endswith(".lmdb") else Tar(path))


class Tar:
    """A tar file, here or elsewhere, whose members are found by an index: its own, or one made of its headers."""

    def __init__(self, path: str) -> None:
        self.path = path
        entries = sorted(self._index(), key=lambda entry: entry[2])
        self.names: Sequence[str] = PathList(name for _, _, name in entries)
        self._places = np.array([entry[:2] for entry in entries], np.int64).reshape(-1, 2)
        self._file = None if is_remote(path) else os.open(path, os.O_RDONLY)

    def read(self, name: str) -> bytes:
        """A member's content."""
        place = _place(self.names, name)
        if place is None:
            raise KeyError(name)
        offset, size = map(int, self._places[place])
        if self._file is not None:
            return os.pread(self._file, size, offset)  # without a position, which processes would share
        files, target = _remote(self.path, os.getpid())
        return cast(bytes, files.cat_file(target, start=offset, end=offset + size))

    def _index(self) -> list[tuple[int, int, str]]:
        """(offset, size, name) of the regular files."""
        try:
            with _open(self.path + INDEX) as file:
                lines = file.read().decode().splitlines()
            return [(int(offset), int(size), name) for offset, size, name in (line.split("\t", 2) for line in lines)]
        except FileNotFoundError:
            with _open(self.path) as file, tarfile.open(fileobj=file, mode="r:") as tar:
                return tar_index(tar)


class Lmdb:
    """A database in BasicSR's layout: a folder NAME.lmdb with META; keys are names without their suffixes."""

    def __init__(self, path: str) -> None:
        self.path = path
        lines = (Path(path) / META).read_text(encoding="utf-8").splitlines()
        self.names: Sequence[str] = PathList(sorted(meta_name(line) for line in lines if line.strip()))
        self._database: Any = None
        self._open()
        os.register_at_fork(before=self._close)  # a database must not go through a fork

    def _open(self) -> None:
        import lmdb  # an optional extra

        self._database = lmdb.open(self.path, readonly=True, lock=False, readahead=False, meminit=False)

    def _close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def read(self, name: str) -> bytes:
        """A picture's file."""
        if self._database is None:
            self._open()
        with self._database.begin(write=False) as transaction:
            content = transaction.get(lmdb_key(name))
        if content is None:
            raise KeyError(name)
        return cast(bytes, content)


def _place(names: Sequence[str], name: str) -> int | None:
    """Where a name is among sorted ones."""
    place = bisect.bisect_left(names, name)
    return place if place < len(names) and names[place] == name else None


def tar_index(tar: tarfile.TarFile) -> list[tuple[int, int, str]]:
    """(offset, size, name) of a tar's regular files, of which the last one of a name counts."""
    members = {member.name.removeprefix("./"): member for member in tar if member.isfile()}
    return [(member.offset_data, member.size, name) for name, member in members.items()]


def lmdb_key(name: str) -> bytes:
    """BasicSR's key of a picture."""
    return name.rpartition(".")[0].encode()


def meta_name(line: str) -> str:
    """The picture of a line of META."""
    return re.sub(r" \([\d,]+\)( \d+)?$", "", line.strip())


def _open(path: str) -> IO[bytes]:
    if not is_remote(path):
        return Path(path).open("rb")
    files, place = _remote(path, os.getpid())
    return cast(IO[bytes], files.open(place, "rb"))


def _address(path: str | os.PathLike[str]) -> str:
    return _URL.sub(r"\1://", os.fspath(path))


@lru_cache(maxsize=64)
def _remote(path: str, process: int) -> tuple[Any, str]:
    """fsspec's file system for an address, and the path there; connections do not outlive a fork."""
    from fsspec.core import url_to_fs

    files, place = url_to_fs(path)
    return files, str(place)


def _told(path: str | os.PathLike[str], work: Callable[[], T]) -> T:
    """What `work` gives; whatever a format or a file system raises is told as what is wrong with `path`."""
    try:
        return work()
    except ModuleNotFoundError as error:
        raise UserError(f"{path} needs the package {error.name}: pip install {error.name}") from error
    except UserError:
        raise
    except Exception as error:  # every file system has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be opened ({reason:.200})") from error
