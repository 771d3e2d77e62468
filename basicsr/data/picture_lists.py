"""Which pictures a data set uses: by search or by a list, kept in little memory."""

import itertools
import logging
import os
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from basicsr.utils import checks, packs
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.img_util import MAX_PIXELS, PICTURE_SUFFIXES, list_pictures, opened
from basicsr.utils.rng import numpy_rng

log = logging.getLogger(__name__)

Folders = str | Sequence[str]

# What StableSR calls small: fewer bytes than this, or fewer pixels than that.
SMALL_BYTES = 100 * 1024
SMALL_PIXELS = 384 * 384
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\0\0", "utf-32"), (b"\0\0\xfe\xff", "utf-32"),
          (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))  # fmt: skip
_LINE_ENDS = re.compile(r"\r\n|\n|\r|\0")  # not splitlines, which also cuts at characters that names may hold
_SIZE = re.compile(r"\s+\(\d+(,\s*\d+)*\)$")  # Real-ESRGAN's "path (height,width,channels)"


@dataclass(frozen=True)
class PictureSources:
    """Where a data set's pictures come from; the fields are those of `RealESRGANDataset`."""

    gt_path: Folders
    image_type: str | Sequence[str] | None = None
    meta_info: str | None = None
    face_gt_path: Folders | None = None
    num_face: int | None = None
    skip_small: bool = False
    mul_num: int = 1
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        checks.switch("skip_small", self.skip_small)
        checks.whole_number("mul_num", self.mul_num, 1)
        checks.whole_number("max_pixels", self.max_pixels, 1)

    def paths(self, seed: int) -> list[str]:
        """All pictures, in an order that depends on the sources and the seed alone, each once (see `mul_num`).

        Raises:
            UserError: a folder or list that is missing or gives no picture, an invalid value.
        """
        suffixes = suffixes_of(self.image_type)
        found = listed(self.meta_info, self.gt_path) if self.meta_info else None
        pictures = search("gt_path", self.gt_path, suffixes) if found is None else found
        if self.face_gt_path:
            pictures += _subset(search("face_gt_path", self.face_gt_path, suffixes), self.num_face, seed)
        return self._without_small(pictures) if self.skip_small else pictures

    def _without_small(self, pictures: list[str]) -> list[str]:
        kept = [picture for picture in pictures if not self._is_small(picture)]
        log.info("skip_small: %d of %d pictures are left out", len(pictures) - len(kept), len(pictures))
        if not kept:
            raise FieldError("skip_small", f"leaves none of {len(pictures)} pictures, all below 100 KiB or 384x384")
        return kept

    def _is_small(self, path: str) -> bool:
        try:
            with opened(path, self.max_pixels) as picture:
                return packs.size(path) < SMALL_BYTES or picture.width * picture.height < SMALL_PIXELS
        except UserError:  # not for here: a file that cannot be read is told of when its turn comes
            return False


def suffixes_of(image_type: str | Sequence[str] | None) -> frozenset[str]:
    """image_type -> file suffixes; the two spellings of JPEG and of TIFF are one type each."""
    names = {name.lower().lstrip(".") for name in ([] if image_type is None else _as_list(image_type))}
    if not names or "any" in names:
        return PICTURE_SUFFIXES
    for same in ({"jpg", "jpeg"}, {"tif", "tiff"}):
        if names & same:
            names |= same
    for name in sorted(names):
        if f".{name}" not in PICTURE_SUFFIXES:
            raise checks.unknown("image_type", name, ["any", *sorted(s[1:] for s in PICTURE_SUFFIXES)])
    return frozenset(f".{name}" for name in names)


def search(field: str, folders: Folders, suffixes: frozenset[str]) -> list[str]:
    """Every picture below `folders`, the value of `field`; each folder must give some."""
    found: list[str] = []
    for folder in _as_list(folders):
        folder = os.path.expanduser(folder)  # noqa: PTH111  # Path would drop what marks an empty text
        pictures = list_pictures(folder, suffixes, field)
        if not pictures:
            other = len(list_pictures(folder, name=field))
            advice = f"it has {other} of other types: set image_type: any" if other else "give a folder of pictures"
            raise FieldError(field, f"is {folder}, with no {', '.join(sorted(suffixes))} file below it; {advice}")
        found += pictures
    if not found:
        raise FieldError(field, "is an empty list: give at least one folder of pictures")
    return found


def listed(meta_info: str, folders: Folders) -> list[str]:
    """The pictures that the file `meta_info` lists, each from the first folder that has it.

    One picture a line, as people's tools write them: any Unicode encoding, with or without a byte-order mark, any line
    ends, blank lines, lines that start with #, quotes, backslashes, and further columns behind a tab, comma, semicolon,
    bar or blank, with or without a line of headings.

    Raises:
        FieldError: the file cannot be read, is empty, or lists what is not there.
    """
    try:
        lines = [line.strip() for line in _LINE_ENDS.split(_decoded(Path(meta_info).expanduser().read_bytes()))]
    except OSError as error:
        raise FieldError("meta_info", f"is {meta_info}, which cannot be read ({error.strerror})") from error
    roots = [Path(folder).expanduser() for folder in _as_list(folders)]
    found: list[str] = []
    missing: list[str] = []
    for line in filter(None, lines):
        path = _first_there(line, roots)
        if path is not None:
            found.append(path)
        elif not line.startswith("#") and (found or missing or _names_a_picture(line)):  # else a comment or headings
            missing.append(line)
    if missing:
        where = ", ".join(map(str, roots))
        raise FieldError(
            "meta_info", f"is {meta_info}, {len(missing)} lines of which name no file in {where}: {missing[0]!r}"
        )
    if not found:
        raise FieldError(
            "meta_info", f"is {meta_info}, which names no picture: give one path a line, relative to the folder"
        )
    return found


def _decoded(content: bytes) -> str:
    """The text of a file of unknown encoding."""
    for mark, encoding in _MARKS:
        if content.startswith(mark):
            return content.decode(encoding, errors="replace")
    for encoding, high in (("utf-16-le", content[1::2]), ("utf-16-be", content[::2])):
        if len(content) > 1 and high.count(0) * 2 > len(high):  # plain letters with a zero byte each
            return content.decode(encoding, errors="replace")
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")  # what Windows' tools call ANSI


def _first_there(line: str, roots: Sequence[Path]) -> str | None:
    """The file that a line means: of its readings, the first that is there."""
    tried: set[str] = set()
    for name in _readings(line):
        if name in tried:
            continue
        tried.add(name)
        for root in roots:
            if packs.is_file(os.path.join(root, name)):  # noqa: PTH118  # a third of the time that Path takes
                return str(root / name)
    return None


def _readings(line: str) -> Iterator[str]:
    """What a line's path may be, from the whole line to its first word."""
    yield line
    quoted = re.match(r"""(["'])(.+?)\1""", line)  # a column in quotes may hold separators
    columns = (re.split(separator, line)[0] for separator in (r"\t", ";", r"\|", ",", r"\s"))
    for text in itertools.chain((line, _SIZE.sub("", line)), [quoted[2]] if quoted else [], columns):
        plain = text.strip().strip("\"'")
        for name in (text.strip(), plain):
            if not name:
                continue
            yield name
            yield name.replace("\\", "/")
            yield unicodedata.normalize("NFC", name.replace("\\", "/"))
            yield unicodedata.normalize("NFD", name.replace("\\", "/"))  # macOS writes accents as letters of their own


def _names_a_picture(line: str) -> bool:
    return any(name.lower().endswith(tuple(PICTURE_SUFFIXES)) for name in _readings(line))


def _as_list(value: Folders) -> list[str]:
    return [value] if isinstance(value, str | os.PathLike) else list(value)


def _subset(faces: list[str], count: int | None, seed: int) -> list[str]:
    """`count` of the faces, in their order; all of them where there are not more."""
    if count is None:
        return faces
    if checks.whole_number("num_face", count, 0) > len(faces):
        log.warning("num_face is %d, but face_gt_path has %d pictures: all are used", count, len(faces))
    chosen = numpy_rng("faces", seed).permutation(len(faces))[:count]
    return [faces[i] for i in sorted(chosen)]
