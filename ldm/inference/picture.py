"""Pictures on their way through the upscaler: from files, PIL, NumPy and tensors, and back with what came with them."""

import io
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from basicsr.utils.errors import UserError
from basicsr.utils.img_util import StoredPicture, as_01, stored

MARK = "stablesr-edge"
LUMA = (0.299, 0.587, 0.114)  # Rec. 601, as Pillow and OpenCV turn colour into grey
KINDS = ("u1", "u2", "f2", "f4", "f8")  # of arrays, as NumPy names them
AnyPicture = Image.Image | NDArray[Any] | Tensor


@dataclass(frozen=True)
class Picture:
    """Colours as the networks take them, and what they do not take: alpha, greyness, metadata."""

    rgb_01: Tensor  # (3, H, W) float32 on the CPU
    alpha_01: Tensor | None = None  # (1, H, W)
    grey: bool = False
    exif: bytes = b""
    icc_profile: bytes = b""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rgb_01.shape[1], self.rgb_01.shape[2]

    def opaque(self) -> Tensor:
        """The colours (3, H, W), where transparency hides them continued from what shows.

        Files hold anything there, black as a rule: it would bleed into what shows as soon as pixels are mixed. What
        shows by an eighth or more keeps its colour.
        """
        if self.alpha_01 is None:
            return self.rgb_01
        return extended(self.rgb_01[None], (8 * self.alpha_01[None]).clamp(max=1))[0]

    @classmethod
    def from_stored(cls, picture: StoredPicture) -> "Picture":
        """From `read_picture`."""
        planes = torch.from_numpy(as_01(picture.pixels)).permute(2, 0, 1)
        return replace(cls.from_planes(planes), exif=picture.exif, icc_profile=picture.icc_profile)

    @classmethod
    def from_planes(cls, planes_01: Tensor) -> "Picture":
        """From (C, H, W): grey, grey and alpha, RGB, or RGB and alpha.

        Raises:
            UserError: another shape, or values outside [0, 1].
        """
        if planes_01.ndim != 3 or not 1 <= len(planes_01) <= 4 or 0 in planes_01.shape:
            raise UserError(
                f"a picture of shape {tuple(planes_01.shape)}: give 1 to 4 channels (grey or RGB, with or "
                "without alpha), first in a tensor and last in an array"
            )
        planes_01 = planes_01.detach().to("cpu", torch.float32)
        if not (planes_01.min() >= 0 and planes_01.max() <= 1):  # also where there is a NaN
            raise UserError("a picture of floats must lie in [0, 1], without NaN; divide by its largest possible value")
        grey, has_alpha = len(planes_01) < 3, len(planes_01) in (2, 4)
        colours = planes_01[:-1] if has_alpha else planes_01
        return cls(colours.expand(3, -1, -1), planes_01[-1:] if has_alpha else None, grey)

    def planes(self) -> Tensor:
        """(C, H, W) in [0, 1], with the channels that it came with."""
        colours = self.rgb_01
        if self.grey:
            colours = (colours * torch.tensor(LUMA).view(3, 1, 1)).sum(dim=0, keepdim=True)
        return colours if self.alpha_01 is None else torch.cat([colours, self.alpha_01])

    def pixels(self, dtype: type[np.integer[Any]]) -> NDArray[Any]:
        """(H, W, C), uint8 or uint16, rounded."""
        return (self.planes() * np.iinfo(dtype).max).round().permute(1, 2, 0).numpy().astype(dtype)

    def metadata(self) -> dict[str, bytes]:
        """EXIF, and the ICC profile where it is one of grey for a grey picture, or one of RGB for one of colours."""
        space = self.icc_profile[16:20]  # the profile's header says which colours it is for
        kept = {"exif": self.exif, "icc_profile": self.icc_profile if space == (b"RGB ", b"GRAY")[self.grey] else b""}
        return {name: value for name, value in kept.items() if value}

    def to_pil(self) -> Image.Image:
        """With 8 bits per channel; EXIF and ICC profile are in `info`."""
        pixels = self.pixels(np.uint8)
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        image.info.update(self.metadata())
        return image

    def to_png(self, bits: int, mark: str = "") -> bytes:
        """A PNG file with 8 or 16 bits per channel, and a text in it that says what it was made from."""
        if bits == 16:
            return _png_16(self.pixels(np.uint16), self.metadata(), mark)
        text = PngInfo()
        if mark:
            text.add_text(MARK, mark)
        buffer = io.BytesIO()
        self.to_pil().save(buffer, "PNG", pnginfo=text, **self.metadata())
        return buffer.getvalue()


def _png_16(pixels: NDArray[np.uint16], metadata: Mapping[str, bytes], mark: str) -> bytes:
    """(H, W, 1 to 4) as a PNG file: Pillow writes no 16-bit colour, and OpenCV no grey with alpha and no text."""
    profile = metadata.get("icc_profile", b"")
    if profile and pixels.shape[2] == 2:
        # Pillow and OpenCV read grey with alpha of this depth as colour, with which a profile for grey disagrees.
        pixels, profile = pixels[..., [0, 0, 0, 1]], in_colour(profile)
    (height, width, channels), colour_type = pixels.shape, (0, 4, 2, 6)[pixels.shape[2] - 1]
    rows = np.frombuffer(pixels.astype(">u2").tobytes(), np.uint8).reshape(height, width * channels * 2)
    filtered = np.ones((height, 1 + rows.shape[1]), np.uint8)  # 1 says that each pixel's left neighbour is subtracted
    filtered[:, 1:] = rows
    filtered[:, 1 + 2 * channels :] -= rows[:, : -2 * channels]
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0),
        b"iCCP": b"profile\0\0" + zlib.compress(profile) if profile else b"",
        b"eXIf": metadata.get("exif", b"").removeprefix(b"Exif\0\0"),
        b"tEXt": f"{MARK}\0{mark}".encode("latin-1") if mark else b"",
        b"IDAT": zlib.compress(filtered.tobytes()),
    }
    png = b"\x89PNG\r\n\x1a\n"
    for kind, content in [*((kind, content) for kind, content in chunks.items() if content), (b"IEND", b"")]:
        png += struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
    return png


def in_colour(grey_profile: bytes) -> bytes:
    """An ICC profile of RGB that gives equal channels the tones that a profile of grey gives its one.

    It is that of sRGB with the grey one's curve (ICC.1, 8.3.4 and 8.4.3); sRGB's own where there is no such curve.
    """
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    struct.pack_into(">6H", profile, 24, 2000, 1, 1, 0, 0, 0)  # its date, which would make each file another
    place, size = _icc_tags(grey_profile).get(b"kTRC", (0, 0))
    curve = grey_profile[place : place + size]
    if curve and len(curve) == size:
        for number, name in enumerate(_icc_tags(profile)):
            if name in (b"rTRC", b"gTRC", b"bTRC"):
                struct.pack_into(">II", profile, 136 + 12 * number, len(profile), size)
        profile += curve + bytes(-size % 4)
        struct.pack_into(">I", profile, 0, len(profile))
    return bytes(profile)


def _icc_tags(profile: bytes | bytearray) -> dict[bytes, tuple[int, int]]:
    """Where a profile has what, by name: offset and size in bytes. As many as there are whole."""
    count = int.from_bytes(profile[128:132], "big")
    table = profile[132 : 132 + 12 * min(count, len(profile) // 12)]
    entries = struct.iter_unpack(">4sII", table[: len(table) // 12 * 12])
    return {name: (place, size) for name, place, size in entries}


def mark_of(file: Path) -> str | None:
    """The text that `to_png` put into a PNG file; None where there is none."""
    try:
        with Image.open(file) as image:
            return image.info.get(MARK)
    except OSError:  # not a picture
        return None


def to_picture(picture: AnyPicture) -> tuple[Picture, Callable[[Picture], AnyPicture]]:
    """A picture and the way back to the kind that it came as.

    PIL images of any mode; arrays (H, W) or (H, W, C), uint8, uint16 or float in [0, 1]; tensors (C, H, W), float in
    [0, 1]. Type and device are kept.

    Raises:
        UserError: it is something else.
    """
    if isinstance(picture, Image.Image):
        try:
            picture.load()
        except (OSError, ValueError) as error:  # cut short, or closed
            raise UserError(f"the picture cannot be read ({error})") from error
        return Picture.from_stored(stored(picture)), Picture.to_pil
    if isinstance(picture, Tensor) and picture.is_floating_point():
        like = picture
        return Picture.from_planes(picture), lambda result: result.planes().to(like)
    if not isinstance(picture, np.ndarray) or picture.dtype.kind + str(picture.dtype.itemsize) not in KINDS:
        raise UserError(
            f"a picture is a PIL image, an array of uint8, uint16 or floats, or a tensor of floats; not "
            f"{getattr(picture, 'dtype', type(picture).__name__)}"
        )
    array = picture[..., None] if picture.ndim == 2 else picture
    values = array.astype(np.float32) if array.dtype.kind == "f" else as_01(array)
    if values.ndim != 3:
        raise UserError(f"an array of shape {picture.shape} is not a picture; give (H, W) or (H, W, C)")

    def back(result: Picture) -> NDArray[Any]:
        pixels = (
            result.pixels(picture.dtype.type)
            if picture.dtype.kind == "u"
            else result.planes().permute(1, 2, 0).numpy().astype(picture.dtype)
        )
        return pixels[..., 0] if picture.ndim == 2 and pixels.shape[2] == 1 else pixels  # colours may have come in

    return Picture.from_planes(torch.from_numpy(values).permute(2, 0, 1)), back


def extended(rgb: Tensor, weight: Tensor) -> Tensor:
    """Colours (B, 3, H, W) where `weight` (B, 1, H, W), 0 to 1, is 1; elsewhere the average of those nearby.

    Pull-push interpolation (Gortler et al. 1996, section 3.4): averages of ever larger blocks, from the whole picture
    down, are mixed with the finer ones by their weight.
    """
    if weight.min() == 1 or max(rgb.shape[-2:]) == 1:
        return rgb
    total = F.avg_pool2d(weight, 2, ceil_mode=True)
    average = F.avg_pool2d(rgb * weight, 2, ceil_mode=True) / total.clamp_min(torch.finfo(total.dtype).tiny)
    coarse = extended(average, (4 * total).clamp(max=1))
    filled = F.interpolate(coarse, size=rgb.shape[-2:], mode="bilinear")
    return weight * rgb + (1 - weight) * filled
