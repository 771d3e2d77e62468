"""Pack a folder of pictures into a few large files, byte for byte: tar files with an index, or BasicSR's database."""

import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import OutputError, whole_file, write_whole
from basicsr.utils.img_util import list_pictures, opened
from basicsr.utils.packs import INDEX, META, lmdb_key, tar_index

_PAGE = 4096  # of the database
_COMMIT = 1000  # pictures in one transaction


def pack(folder: Path, out: Path, kind: str, shard_bytes: int) -> int:
    """Pack all pictures below `folder`; returns how many there are.

    kind tar: `out` becomes a folder of 000000.tar, … of about `shard_bytes` each; kind lmdb: `out` is NAME.lmdb.

    Raises:
        FieldError: no pictures, a wrong name, an output that is there already.
        OutputError: the disk is full, or the like.
    """
    pictures = list_pictures(folder, name="FOLDER")
    if not pictures:
        raise FieldError("FOLDER", f"is {folder}, with no picture below it")
    if out.exists():
        raise FieldError("OUT", f"is {out}, which is there already: give a new name, or remove it")
    if kind == "lmdb" and out.suffix != ".lmdb":
        raise FieldError("OUT", f"is {out}: a database's name ends in .lmdb")
    draft = out.with_name(f".{out.name}.part")  # a pack is there whole or not at all
    shutil.rmtree(draft, ignore_errors=True)
    try:
        draft.mkdir(parents=True)
        (_write_lmdb if kind == "lmdb" else _write_tars)(folder, pictures, draft, shard_bytes)
        draft.rename(out)
    except OSError as error:
        raise OutputError(out, error) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return len(pictures)


def _write_tars(folder: Path, pictures: Sequence[str], out: Path, shard_bytes: int) -> None:
    for number, shard in enumerate(_shards(pictures, shard_bytes)):
        path = out / f"{number:06}.tar"
        # What links lead to, symbolic or hard, and not the links: only files have a place in the index.
        with whole_file(path) as draft, tarfile.open(draft, "w", format=tarfile.PAX_FORMAT, dereference=True) as tar:
            for picture in shard:
                tar.add(picture, _name(folder, picture))
        with tarfile.open(path) as tar:
            entries = tar_index(tar)
        write_whole(Path(f"{path}{INDEX}"), "".join(f"{offset}\t{size}\t{name}\n" for offset, size, name in entries))


def _shards(pictures: Sequence[str], shard_bytes: int) -> Iterator[list[str]]:
    """Pictures in their order, as many together as fit."""
    shard: list[str] = []
    held = 0
    for picture in pictures:
        size = Path(picture).stat().st_size
        if shard and held + size > shard_bytes:
            yield shard
            shard, held = [], 0
        shard.append(picture)
        held += size
    yield shard


def _write_lmdb(folder: Path, pictures: Sequence[str], out: Path, shard_bytes: int) -> None:
    try:
        import lmdb
    except ModuleNotFoundError as error:
        raise UserError("databases need the package lmdb: pip install lmdb") from error
    names = [_name(folder, picture) for picture in pictures]
    keys = [lmdb_key(name) for name in names]
    if twice := {key for key in keys if keys.count(key) > 1} if len(set(keys)) < len(keys) else set():
        raise FieldError("FOLDER", f"has pictures of one name but for their type, such as {sorted(twice)[0].decode()}")
    room = sum(-(-Path(picture).stat().st_size // _PAGE) + 2 for picture in pictures) * _PAGE
    with lmdb.open(str(out), map_size=2 * room + 2**24) as database:
        for start in range(0, len(pictures), _COMMIT):
            with database.begin(write=True) as transaction:
                for key, picture in zip(keys[start : start + _COMMIT], pictures[start : start + _COMMIT], strict=True):
                    transaction.put(key, Path(picture).read_bytes())
    write_whole(
        out / META, "".join(f"{name} {_shape(picture)} 1\n" for name, picture in zip(names, pictures, strict=True))
    )


def _name(folder: Path, picture: str) -> str:
    return Path(picture).relative_to(folder).as_posix()


def _shape(picture: str) -> str:
    """BasicSR's (height,width,channels)."""
    with opened(picture) as header:
        return f"({header.height},{header.width},{1 if len(header.getbands()) == 1 else 3})"
