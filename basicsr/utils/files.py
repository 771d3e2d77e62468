"""Files that are there whole or not at all, and short names for their content."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from basicsr.utils.errors import UserError


class OutputError(UserError):
    """A file that cannot be written, whatever is in it: going on is useless."""

    def __init__(self, path: Path, error: OSError) -> None:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        reason = "no room on the disk: free some" if full else error.strerror or type(error).__name__
        super().__init__(f"{path} cannot be written ({reason})")
        self.path = path
        self.reason = reason


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A draft beside `path` to write to; it takes `path`'s place, flushed to the disk, when the context ends well.

    Where it does not, `path` is as it was and no draft stays. Missing folders are made.

    Raises:
        OutputError: no room, no permission, or the like.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield draft
            with draft.open("rb+") as written:
                os.fsync(written.fileno())
            draft.replace(path)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(path, error) from error


def write_whole(path: Path, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8, by `whole_file`."""
    with whole_file(path) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def digest(*parts: bytes | str | memoryview) -> str:
    """32 hexadecimal digits that stand for the parts, in their order and with their bounds (views are of bytes)."""
    content = blake2b(digest_size=16)
    for part in parts:
        part = part.encode() if isinstance(part, str) else part
        content.update(len(part).to_bytes(8, "little"))
        content.update(part)
    return content.hexdigest()
