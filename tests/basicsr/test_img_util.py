import logging
import os
import struct
import time
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from skimage import data

from basicsr.utils.errors import UserError
from basicsr.utils.img_util import as_01, find_pictures, list_pictures, read_picture, read_rgb, read_rgb_01


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(data.astronaut()[20:140, 160:250])  # (120, 90, 3): portrait, so that a wrong turn shows


def grey(photo: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(photo).convert("L"))


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "b.bmp", "c.tif", "d.TIFF", "e.webp"])
def test_lossless_rgb(tmp_path: Path, photo: np.ndarray, name: str) -> None:
    Image.fromarray(photo).save(tmp_path / name, lossless=True)
    pixels = read_rgb(tmp_path / name)
    np.testing.assert_array_equal(pixels, photo)
    assert pixels.flags.c_contiguous
    values = read_rgb_01(tmp_path / name)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, photo / 255, atol=1e-7)


@pytest.mark.parametrize(("name", "options"), [("a.jpg", {}), ("a.JPEG", {"progressive": True}), ("a.webp", {})])
def test_lossy_rgb(tmp_path: Path, photo: np.ndarray, name: str, options: dict[str, Any]) -> None:
    Image.fromarray(photo).save(tmp_path / name, quality=95, **options)
    assert np.abs(read_rgb(tmp_path / name).astype(int) - photo).mean() < 4


@pytest.mark.parametrize("mode", ["L", "1", "P"])
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_grey_bilevel_and_palette(tmp_path: Path, photo: np.ndarray, mode: str, suffix: str) -> None:
    picture = Image.fromarray(photo).convert(mode)
    picture.save(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(read_rgb(tmp_path / f"a.{suffix}"), np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_are_kept(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    deep = photo.astype(np.uint16) * 256 + np.arange(90, dtype=np.uint16)[:, None]
    path = tmp_path / f"a.{suffix}"
    cv2.imwrite(str(path), deep[..., ::-1])
    np.testing.assert_array_equal(read_rgb(path), deep)
    np.testing.assert_allclose(read_rgb_01(path), deep / 65535, atol=1e-7)
    Image.fromarray(deep[..., 0]).save(path)
    np.testing.assert_array_equal(read_rgb(path), np.repeat(deep[..., :1], 3, axis=2))
    alpha = np.full((*deep.shape[:2], 1), 65535, np.uint16)
    alpha[:40] = 0
    cv2.imwrite(str(path), np.concatenate([deep[..., ::-1], alpha], axis=2))
    np.testing.assert_array_equal(read_rgb(path), np.where(alpha == 0, 65535, deep))


def test_transparency_is_laid_on_white(tmp_path: Path, photo: np.ndarray) -> None:
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[:30], alpha[30:60] = 0, 128
    want = np.rint(photo * (alpha[..., None] / 255) + 255 * (1 - alpha[..., None] / 255)).astype(int)
    Image.fromarray(np.dstack([photo, alpha])).save(tmp_path / "rgba.png")
    assert np.abs(read_rgb(tmp_path / "rgba.png") - want).max() <= 1
    np.testing.assert_array_equal(read_rgb(tmp_path / "rgba.png")[60:], photo[60:])
    Image.fromarray(np.dstack([grey(photo), alpha])).save(tmp_path / "la.png")
    la = read_rgb(tmp_path / "la.png")
    assert (la[:30] == 255).all()
    np.testing.assert_array_equal(la[60:], np.repeat(grey(photo)[60:, :, None], 3, axis=2))
    palette = Image.fromarray(photo).quantize(16)
    palette.save(tmp_path / "palette.png", transparency=3)
    got, index = read_rgb(tmp_path / "palette.png"), np.asarray(palette)
    assert (index == 3).any() and (got[index == 3] == 255).all()
    np.testing.assert_array_equal(got[index != 3], np.asarray(palette.convert("RGB"))[index != 3])


@pytest.mark.parametrize("suffix", ["jpg", "tif"])
def test_cmyk(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    Image.fromarray(photo).convert("CMYK").save(tmp_path / f"a.{suffix}", quality=95)
    assert np.abs(read_rgb(tmp_path / f"a.{suffix}").astype(int) - photo).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
def test_exif_orientation(tmp_path: Path, photo: np.ndarray, suffix: str, orientation: int) -> None:
    # What a camera stores so that the viewer's turn gives `photo` back: the inverse of each turn.
    inverse: dict[int, Image.Transpose] = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = Image.fromarray(photo)
    if orientation in inverse:
        stored = stored.transpose(inverse[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{suffix}"
    stored.save(path, exif=exif, quality=95)
    pixels = read_rgb(path)
    assert pixels.shape == photo.shape
    assert np.abs(pixels.astype(int) - photo).mean() < 6
    if suffix in ("png", "tif"):  # grey too, of 8 and 16 bits
        stored.convert("L").save(path, exif=exif)
        np.testing.assert_array_equal(read_rgb(path)[..., 1], grey(photo))
        Image.fromarray(np.asarray(stored)[..., 0].astype(np.uint16) * 257).save(path, exif=exif)
        np.testing.assert_array_equal(read_rgb(path)[..., 1], photo[..., 0].astype(np.uint16) * 257)


def test_16_bit_colour_png_is_turned(tmp_path: Path, photo: np.ndarray) -> None:
    """Decoded by OpenCV, oriented by us: splice the EXIF chunk of an 8-bit PNG into a 16-bit one."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(photo).save(tmp_path / "exif.png", exif=exif)
    donor = (tmp_path / "exif.png").read_bytes()
    start = donor.index(b"eXIf") - 4
    chunk = donor[start : start + 12 + int.from_bytes(donor[start : start + 4], "big")]
    deep = np.rot90(photo.astype(np.uint16) * 256 + 7)
    data16 = cv2.imencode(".png", deep[..., ::-1])[1].tobytes()
    header = 8 + 12 + 13  # signature and IHDR
    (tmp_path / "a.png").write_bytes(data16[:header] + chunk + data16[header:])
    np.testing.assert_array_equal(read_rgb(tmp_path / "a.png"), np.rot90(deep, -1))


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "bmp", "tif"])
def test_a_file_cut_short_is_refused(tmp_path: Path, photo: np.ndarray, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(photo).save(path)
    whole = path.read_bytes()
    for share in (0.02, 0.5, 0.9):
        path.write_bytes(whole[: int(len(whole) * share)])
        with pytest.raises(UserError, match=f"cut.{suffix}: cannot be read") as caught:
            read_rgb(path)
        assert "\n" not in str(caught.value)


def test_16_bit_png_cut_short_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    path = tmp_path / "cut.png"
    whole = cv2.imencode(".png", photo.astype(np.uint16) * 257)[1].tobytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cut.png: cannot be read"):
        read_rgb(path)


def test_what_is_no_picture_is_refused(tmp_path: Path, photo: np.ndarray) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    Image.fromarray(photo[..., 0].astype(np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(UserError, match="text.jpg: cannot be read as a picture .its content is of no known type."):
        read_rgb(tmp_path / "text.jpg")
    with pytest.raises(UserError, match="empty.png: cannot be read"):
        read_rgb(tmp_path / "empty.png")
    with pytest.raises(UserError, match="float.tif: .*32 bits per sample"):
        read_rgb(tmp_path / "float.tif")
    with pytest.raises(UserError, match="missing.png: .*No such file"):
        read_rgb(tmp_path / "missing.png")


def test_as_01() -> None:
    np.testing.assert_array_equal(as_01(np.array([0, 51, 255], np.uint8)), np.array([0, 0.2, 1], np.float32))
    np.testing.assert_array_equal(as_01(np.array([0, 13107, 65535], np.uint16)), np.array([0, 0.2, 1], np.float32))


def test_find_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = ["b.JPG", "a.jpeg", "sub/c.Png", "sub/deep/d.WEBP", "e.bmp", "f.tif", "g.TIFF", "with space.png"]
    for name in [*names, ".hidden.png", ".cache/h.png", "._b.jpg", "notes.txt", "png", "movie.gif"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = find_pictures(tmp_path)
    assert found == sorted(tmp_path / name for name in names)
    assert find_pictures(str(tmp_path), {".jpg", ".jpeg"}) == [tmp_path / "a.jpeg", tmp_path / "b.JPG"]
    (tmp_path / "sub" / "loop").symlink_to(tmp_path)
    assert find_pictures(tmp_path) == found
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "sub", target_is_directory=True)
    with caplog.at_level(logging.WARNING):
        assert len(find_pictures(tmp_path / "link")) >= 2


def test_find_pictures_names_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="gt_path is .*nowhere, which does not exist: give the folder"):
        find_pictures(tmp_path / "nowhere", name="gt_path")
    with pytest.raises(UserError, match="folder is nowhere, which does not exist .looked for in .*: give"):
        find_pictures("nowhere")
    with pytest.raises(UserError, match="file.png, which is a file, not a folder"):
        find_pictures(tmp_path / "file.png")


@pytest.mark.filterwarnings("error")
def test_the_limit_on_size_is_ours_and_can_be_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # Pillow warns from here on and refuses at twice that
    for suffix in ("png", "tif", "webp", "jpg"):
        Image.new("L", (100, 90), 128).save(tmp_path / f"a.{suffix}")
        assert read_rgb(tmp_path / f"a.{suffix}").shape == (90, 100, 3)
        assert read_rgb(tmp_path / f"a.{suffix}", max_pixels=9000).shape == (90, 100, 3)
        for limit in (8999, 4499):
            with pytest.raises(UserError, match=rf"a.{suffix}: has more than {limit:,} pixels; raise max_pixels"):
                read_picture(tmp_path / f"a.{suffix}", max_pixels=limit)
    assert Image.MAX_IMAGE_PIXELS == 500  # other users of Pillow in this process keep theirs


def test_a_scan_of_182_million_pixels_is_read(tmp_path: Path) -> None:
    Image.new("1", (14000, 13000), 1).save(tmp_path / "scan.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_picture(tmp_path / "scan.png").pixels.shape == (13000, 14000, 1)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png16(pixels: np.ndarray, colour: int, *chunks: bytes) -> bytes:
    """uint16 (H, W, C) as a PNG file of this colour type (0 grey, 2 RGB, 4 grey and alpha)."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_colours_under_full_transparency_never_show(tmp_path: Path, photo: np.ndarray) -> None:
    """Whatever a file hides there, training sees white, and half transparent rims are mixed with white alone."""
    alpha = np.full((*photo.shape[:2], 1), 255, np.uint8)
    alpha[:30], alpha[30:60] = 0, 128

    def files(hidden: int) -> Iterator[Path]:
        colours = np.where(alpha == 0, np.uint8(hidden), photo)
        shades = np.where(alpha == 0, np.uint8(hidden), grey(photo)[..., None])
        for suffix in ("png", "tif", "webp"):
            Image.fromarray(np.dstack([colours, alpha])).save(tmp_path / f"rgba.{suffix}", lossless=True, exact=True)
            yield tmp_path / f"rgba.{suffix}"
        Image.fromarray(np.dstack([shades, alpha])).save(tmp_path / "la.png")
        cv2.imwrite(str(tmp_path / "rgba16.png"), np.dstack([colours[..., ::-1], alpha]).astype(np.uint16) * 257)
        (tmp_path / "la16.png").write_bytes(png16(np.dstack([shades, alpha]).astype(np.uint16) * 257, 4))
        yield from (tmp_path / name for name in ("la.png", "rgba16.png", "la16.png"))

    for first, second in zip(
        [(file, read_rgb(file)) for file in files(0)], [read_rgb(file) for file in files(255)], strict=True
    ):
        file, black = first
        np.testing.assert_array_equal(black, second, err_msg=file.name)
        white = np.iinfo(black.dtype).max
        assert (black[:30] == white).all()
        shown = np.repeat(grey(photo)[..., None], 3, axis=2) if file.name.startswith("la") else photo
        want = shown[30:60] * (128 / 255) + 255 * (127 / 255)
        assert np.abs(black[30:60] * (255 / white) - want).max() <= 1, file.name


def test_laying_on_white_rounds_to_the_nearest_level(tmp_path: Path) -> None:
    colours, alphas = (a.astype(np.uint8) for a in np.mgrid[:256, :256])
    Image.fromarray(np.dstack([colours, alphas]), "LA").save(tmp_path / "all.png")
    exact = (colours.astype(float) * alphas + 255.0 * (255 - alphas)) / 255
    assert np.abs(read_rgb(tmp_path / "all.png")[..., 0] - exact).max() <= 0.5


def test_grey_with_alpha_stays_grey_at_16_bits(tmp_path: Path) -> None:
    pixels = np.dstack([np.arange(600, dtype=np.uint16).reshape(20, 30) * 100, np.full((20, 30), 40000, np.uint16)])
    (tmp_path / "la.png").write_bytes(png16(pixels, 4))
    np.testing.assert_array_equal(read_picture(tmp_path / "la.png").pixels, pixels)


def test_a_transparent_value_counts_at_16_bits(tmp_path: Path) -> None:
    rgb = np.full((4, 6, 3), 1000, np.uint16)
    rgb[:2] = (5000, 40, 50)
    (tmp_path / "rgb.png").write_bytes(png16(rgb, 2, chunk(b"tRNS", struct.pack(">3H", 1000, 1000, 1000))))
    (tmp_path / "grey.png").write_bytes(png16(rgb[..., :1], 0, chunk(b"tRNS", struct.pack(">H", 1000))))
    np.testing.assert_array_equal(read_rgb(tmp_path / "rgb.png")[:, 0], [[5000, 40, 50]] * 2 + [[65535] * 3] * 2)
    np.testing.assert_array_equal(read_rgb(tmp_path / "grey.png")[:, 0, 0], [5000, 5000, 65535, 65535])


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_tiffs_colours_multiplied_by_alpha_are_divided_again(tmp_path: Path, kind: Any) -> None:
    step = 257 if kind is np.uint16 else 1
    straight = np.full((4, 6, 4), (200, 40, 120, 128), kind) * kind(step)
    straight[0, :, 3] = 0
    multiplied = straight.copy()
    multiplied[..., :3] = np.rint(straight[..., :3] * (straight[..., 3:] / (255 * step)))
    for pixels, extra in ((straight, 2), (multiplied, 1)):
        (tmp_path / "a.tif").write_bytes(tiff(pixels, extra))
        got = read_picture(tmp_path / "a.tif").pixels
        assert got.dtype == kind and np.abs(got[1:].astype(int) - straight[1:]).max() <= 2
        assert (read_rgb(tmp_path / "a.tif")[0] == 255 * step).all()


def tiff(pixels: np.ndarray, extra: int) -> bytes:
    """(H, W, 4) as an uncompressed TIFF; extra 1: colours are multiplied by alpha, 2: they are not."""
    height, width, channels = pixels.shape
    content, bits = pixels.tobytes(), 8 * pixels.itemsize
    tags = {256: width, 257: height, 259: 1, 262: 2, 277: channels, 278: height, 279: len(content), 284: 1, 338: extra}
    start = 8 + 2 + 12 * (len(tags) + 2) + 4  # of what is too long for a tag
    entries = [struct.pack("<HHII", 258, 3, channels, start), struct.pack("<HHII", 273, 4, 1, start + 2 * channels)]
    entries += [struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items()]
    header = (
        b"II*\0"
        + struct.pack("<IH", 8, len(entries))
        + b"".join(sorted(entries, key=lambda entry: struct.unpack_from("<H", entry)))
    )
    return header + bytes(4) + struct.pack(f"<{channels}H", *[bits] * channels) + content


def test_a_folder_that_cannot_be_read_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("open/a.png", "shut/b.png"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    scandir = os.scandir

    def shut(folder: str) -> Any:
        if folder.endswith("shut"):  # as for anyone but root
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", shut)
    assert find_pictures(tmp_path, name="gt_path") == [tmp_path / "open" / "a.png"]
    assert caplog.messages == [f"gt_path: a folder is left out: {tmp_path}/shut (Permission denied)"]
    with pytest.raises(UserError, match="^gt_path is .*shut, which cannot be read .Permission denied.$"):
        find_pictures(tmp_path / "shut", name="gt_path")


def test_many_files_are_listed_fast_and_in_little_memory(tmp_path: Path) -> None:
    for folder in range(4):
        (tmp_path / f"{folder}").mkdir()
        for i in range(2500):
            (tmp_path / f"{folder}" / f"{i:06}.png").touch()
    start = time.perf_counter()
    found = list_pictures(tmp_path)
    seconds = time.perf_counter() - start
    assert len(found) == 10_000 and found == sorted(found)
    assert seconds < 2  # 0.03 on an idle machine
    tracemalloc.start()
    list_pictures(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000 * 400  # bytes
