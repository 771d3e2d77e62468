"""Lists of pictures as people's tools write them, and a million paths in little memory."""

import pickle
from pathlib import Path

import pytest

from basicsr.data.picture_lists import PictureSources, listed
from basicsr.utils.errors import FieldError
from basicsr.utils.path_list import PathList

NAMES = ("0.png", "sub/1.png", "with space.jpg", "Straße, é.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in (*NAMES, "#5.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).touch()
    return tmp_path / "pictures"


def read(folder: Path, content: bytes | str) -> list[str]:
    """The names, below the folder, that a list with this content gives."""
    file = folder.parent / "list.txt"
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return [Path(path).relative_to(folder).as_posix() for path in listed(str(file), str(folder))]


LINES = "\n".join(NAMES) + "\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "cp1252"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_any_encoding_mark_and_line_end(folder: Path, encoding: str, end: str) -> None:
    assert read(folder, LINES.replace("\n", end).encode(encoding)) == list(NAMES)


def test_big_endian_marks_and_zero_bytes_between_names(folder: Path) -> None:
    assert read(folder, b"\xfe\xff" + LINES.encode("utf-16-be")) == list(NAMES)
    assert read(folder, b"\0\0\xfe\xff" + LINES.encode("utf-32-be")) == list(NAMES)
    assert read(folder, "\0".join(NAMES)) == list(NAMES)  # find -print0


@pytest.mark.parametrize(
    "shape",
    [
        "{}",
        "  {} \t ",
        "./{}",
        '"{}"',
        "'{}'",
        "{} (480,640,3)",
        "{} (480, 640, 3)",
        "{}\t0.93\tcat",
        "{};0.93",
        "{} | 640 | 480",
        '"{}",640,480',
        '"{}"\t640',
    ],
)
def test_further_columns_quotes_and_blanks(folder: Path, shape: str) -> None:
    assert read(folder, "".join(shape.format(name) + "\n" for name in NAMES)) == list(NAMES)


def test_plain_names_before_commas_and_blanks(folder: Path) -> None:
    assert read(folder, "0.png,640,480\nsub/1.png 7\n") == ["0.png", "sub/1.png"]


def test_backslashes_headings_comments_and_empty_lines(folder: Path) -> None:
    content = "path,width\n\n# all of them\n0.png,3\n   \n.\\sub\\1.png,4\n#5.png\n"
    assert read(folder, content) == ["0.png", "sub/1.png", "#5.png"]


def test_accents_of_macos(folder: Path) -> None:
    assert read(folder, "Stra\u00dfe, e\u0301.png\n") == ["Straße, é.png"]


def test_absolute_paths_and_several_folders(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"{folder}/0.png\n1.png\n0.png\n")
    assert listed(str(file), [str(folder), str(folder / "sub")]) == [
        str(folder / name) for name in ("0.png", "sub/1.png", "0.png")
    ]


def test_what_is_not_there_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(FieldError, match="^meta_info is .*list.txt, 2 lines of which name no file in .*: 'x.png'$"):
        read(folder, "0.png\nx.png\ny\n")
    with pytest.raises(FieldError, match="1 lines of which name no file in .*: 'first.png'"):
        read(folder, "first.png\n0.png\n")  # no headings: it names a picture
    for empty in ("", "\n\n", "# nothing\n", "path\n"):
        with pytest.raises(FieldError, match="^meta_info is .*list.txt, which names no picture: give one path a line"):
            read(folder, empty)
    with pytest.raises(FieldError, match="^meta_info is .*none.txt, which cannot be read .No such file"):
        listed(str(tmp_path / "none.txt"), str(folder))
    with pytest.raises(FieldError, match="which cannot be read .Is a directory"):
        listed(str(folder), str(folder))


def test_paths_in_one_block() -> None:
    paths = ["", "a/b.png", "Straße/é.png", "surrogate-\udcff.png"] * 3
    block = PathList(paths)
    assert list(block) == paths and block[-1] == paths[-1] and block[1:3] == paths[1:3] and len(block) == 12
    assert list(pickle.loads(pickle.dumps(block))) == paths
    many = PathList(f"/data/train/{i:09}.png" for i in range(20_000))
    assert many[19_999] == "/data/train/000019999.png"
    assert len(pickle.dumps(many)) < 20_000 * (25 + 8 + 1)  # the text, its end, and no objects
    with pytest.raises(IndexError):
        many[20_000]


def test_sources_are_plain_and_frozen(folder: Path) -> None:
    sources = PictureSources(str(folder), image_type="jpg")
    assert sources.paths(seed=0) == [str(folder / "with space.jpg")]
    with pytest.raises(AttributeError):
        sources.mul_num = 2  # type: ignore[misc]  # frozen, which is what is tested
