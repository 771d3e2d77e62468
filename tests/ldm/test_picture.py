import dataclasses
import functools
import io

import cv2
import numpy as np
import pytest
import torch
from PIL import Image, ImageCms
from skimage import data

from basicsr.utils.errors import UserError
from ldm.inference.picture import Picture, in_colour, to_picture

PHOTO = data.chelsea()[60:90, 100:140]


@functools.cache  # a profile holds the second that it was made in
def icc(space: bytes) -> bytes:
    """A profile whose header says that it is for this space of colours."""
    content = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return content[:16] + space + content[20:]


ALPHA = np.tile(np.linspace(0, 255, 40, dtype=np.uint8), (30, 1))[..., None]


@pytest.mark.parametrize(
    "picture",
    [
        PHOTO,
        PHOTO[..., 0],
        PHOTO[..., :1],
        np.concatenate([PHOTO, ALPHA], axis=2),
        np.concatenate([PHOTO[..., :1], ALPHA], axis=2),
        PHOTO.astype(np.uint16) * 257 + 3,
        PHOTO.astype(np.float32) / 255,
        PHOTO.astype(np.float64) / 255,
    ],
)
def test_arrays_come_back_as_they_were(picture: np.ndarray) -> None:
    taken, back = to_picture(picture)
    returned = back(taken)
    assert isinstance(returned, np.ndarray) and returned.dtype == picture.dtype
    np.testing.assert_allclose(returned, picture, atol=1e-6)


@pytest.mark.parametrize(("channels", "dtype"), [(1, torch.float32), (3, torch.float16), (4, torch.float64)])
def test_tensors_come_back_as_they_were(channels: int, dtype: torch.dtype) -> None:
    picture = torch.rand(channels, 9, 11).to(dtype)
    taken, back = to_picture(picture)
    returned = back(taken)
    assert isinstance(returned, torch.Tensor) and returned.dtype == dtype
    assert torch.allclose(returned, picture, atol=1e-6)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "RGBA"])
def test_pil_pictures_keep_their_mode_and_metadata(mode: str) -> None:
    image = Image.fromarray(np.concatenate([PHOTO, ALPHA], axis=2)).convert(mode)
    exif = Image.Exif()
    exif[0x010E] = "a cat"
    exif[0x0112] = 6  # to be turned by 90 degrees
    profile = icc(b"GRAY" if mode in ("L", "LA") else b"RGB ")
    buffer = io.BytesIO()
    image.save(buffer, "PNG", exif=exif, icc_profile=profile)
    taken, back = to_picture(Image.open(buffer))
    returned = back(taken)
    assert isinstance(returned, Image.Image) and returned.mode == mode
    assert np.array_equal(np.asarray(returned), np.rot90(np.asarray(image), -1))
    for bits in (8, 16):
        read = Image.open(io.BytesIO(taken.to_png(bits, "made from a cat")))
        read.load()
        assert read.info["stablesr-edge"] == "made from a cat"
        assert dict(read.getexif()) == {0x010E: "a cat"}  # turned already
        assert read.info.get("icc_profile") == (in_colour(profile) if (mode, bits) == ("LA", 16) else profile)


@pytest.mark.parametrize("space", [b"GRAY", b"RGB ", b"CMYK", b"Lab "])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "P", "CMYK", "1"])
def test_a_profile_fits_the_channels_of_its_file(mode: str, bits: int, space: bytes) -> None:
    image = Image.fromarray(np.concatenate([PHOTO, ALPHA], axis=2)).convert(mode)
    image.info["icc_profile"] = icc(space)
    taken, _ = to_picture(image)
    read = Image.open(io.BytesIO(taken.to_png(bits)))
    grey = mode in ("L", "LA", "1")
    # CMYK pixels are converted to RGB, so that no profile of theirs fits any more.
    fits = space == (b"GRAY" if grey else b"RGB ") and mode != "CMYK"
    assert taken.to_pil().info.get("icc_profile") == (icc(space) if fits else None)
    as_colour = read.mode in ("RGB", "RGBA")  # which is also how Pillow reads 16-bit grey with alpha
    assert as_colour != grey or (mode, bits) == ("LA", 16)
    kept = read.info.get("icc_profile")
    assert (kept is not None) == fits
    assert kept is None or kept[16:20] == (b"RGB " if as_colour else b"GRAY")


def test_tones_survive_where_grey_is_written_as_colour() -> None:
    """A curve of gamma 3 for grey is that of each channel: equal values show as the same shade of grey."""
    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + (3 * 256).to_bytes(2, "big")
    tags = (1).to_bytes(4, "big") + b"kTRC" + (144).to_bytes(4, "big") + len(curve).to_bytes(4, "big")
    grey = icc(b"GRAY")[:128] + tags + curve
    deep = np.dstack([np.linspace(0, 65535, 9).astype("u2")[None], np.full((1, 9), 65535, "u2")])
    picture = dataclasses.replace(to_picture(deep)[0], icc_profile=grey)
    profile = Image.open(io.BytesIO(picture.to_png(16))).info["icc_profile"]
    shown = ImageCms.profileToProfile(
        Image.fromarray(np.full((1, 1, 3), 200, np.uint8)),
        ImageCms.ImageCmsProfile(io.BytesIO(profile)),
        ImageCms.createProfile("sRGB"),
    )
    light = (200 / 255) ** 3
    want = 255 * (1.055 * light ** (1 / 2.4) - 0.055)
    assert shown is not None and np.abs(np.asarray(shown).astype(float) - want).max() <= 1.5
    for spoilt in (b"", grey[:100], grey[:-2], bytes(128) + b"\xff" * 40):
        assert in_colour(spoilt)[16:20] == b"RGB "


def test_what_transparency_hides_is_continued_from_what_shows() -> None:
    shows = torch.zeros(1, 32, 48)
    shows[:, 8:20, 10:30] = 1
    red, noise = torch.tensor([1.0, 0.2, 0.1]).view(3, 1, 1), torch.rand(3, 32, 48)
    disc = Picture(torch.where(shows == 1, red, noise), shows)
    assert torch.allclose(disc.opaque(), red.expand(3, 32, 48), atol=1e-6)
    half = Picture(disc.rgb_01, shows.clamp(0.5, 1))
    assert torch.equal(half.opaque(), half.rgb_01)  # what shows keeps its colour
    hidden = Picture(noise, torch.zeros(1, 32, 48))
    assert hidden.opaque().isfinite().all()
    assert torch.equal(Picture(noise).opaque(), noise)


def test_palettes_and_cmyk_become_colour() -> None:
    image = Image.fromarray(PHOTO)
    for other in (image.convert("P"), image.convert("CMYK")):
        taken, back = to_picture(other)
        returned = back(taken)
        assert isinstance(returned, Image.Image) and returned.mode == "RGB"
        assert np.array_equal(np.asarray(returned), np.asarray(other.convert("RGB")))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_sixteen_bits_reach_the_file(channels: int) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (8, 9, channels), dtype=np.uint16)
    png = to_picture(deep)[0].to_png(16)
    assert png[24:26] == bytes([16, {1: 0, 2: 4, 3: 2, 4: 6}[channels]])  # depth and PNG's type of colour
    read = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)
    assert read is not None and read.dtype == np.uint16
    want = np.concatenate([deep[..., :1].repeat(3, axis=2), deep[..., 1:]], axis=2) if channels == 2 else deep
    flip = {1: cv2.COLOR_BGR2RGB, 3: cv2.COLOR_BGR2RGB, 2: cv2.COLOR_BGRA2RGBA, 4: cv2.COLOR_BGRA2RGBA}[channels]
    assert np.array_equal(read[..., None] if channels == 1 else cv2.cvtColor(read, flip), want)


def test_grey_is_the_luma_of_the_result() -> None:
    picture = Picture(torch.tensor([1.0, 0.5, 0.0]).view(3, 1, 1).expand(3, 4, 4), grey=True)
    assert np.array_equal(picture.pixels(np.uint8)[..., 0], np.full((4, 4), round(255 * (0.299 + 0.587 / 2))))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (PHOTO.astype(np.float32), r"lie in \[0, 1\]"),
        (torch.full((3, 4, 4), float("nan")), "without NaN"),
        (torch.zeros(5, 4, 4), "1 to 4 channels"),
        (torch.zeros(3, 0, 4), "1 to 4 channels"),
        (np.zeros(4, np.uint8), "not a picture"),
        (np.zeros((4, 4, 3), np.int32), "not int32"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "not torch.uint8"),
        ("photo.png", "not str"),
        (Image.new("F", (9, 9)), "32 bits"),
    ],
)
def test_what_is_no_picture_is_refused(wrong: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        to_picture(wrong)  # type: ignore[arg-type]  # wrong on purpose
