"""Upscale pictures: any size, any factor, every sampler.

    from ldm.inference import Upscaler
    large = Upscaler.from_checkpoint(config, checkpoint)(small)

Encode, sample and decode all work in overlapping tiles of the size that the networks were trained at. Beside the
networks' memory for one batch of tiles only a few canvases grow with the picture, on the CPU those of pixels, so that
pictures need not be split in pixels first as StableSR's scripts do (1280 pixels with a stride of 1000).
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.img_process_util import reflect_pad
from basicsr.utils.ranges import from_pm1, to_pm1
from basicsr.utils.rng import torch_rng
from ldm.inference.color_fix import adaptive_instance_normalization, wavelet_reconstruction
from ldm.inference.networks import Networks, demo_files
from ldm.inference.picture import AnyPicture, Picture, to_picture
from ldm.inference.settings import DEFAULTS, DEMO_DEFAULTS, MIN_TILE, UpscaleSettings
from ldm.inference.tiled_vae import Progress, TiledAutoencoder, no_progress
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Sampling, noise_of_pictures, truncated
from ldm.models.diffusion.tiling import Tiling

MIN_SIDE = 8  # pixels: there is nothing to see in less
BYTES_PER_PIXEL = 100  # of the result: eight canvases of three floats, rounded up
COLOR_FIXES = {"adain": adaptive_instance_normalization, "wavelet": wavelet_reconstruction}


class NotEnoughMemoryError(UserError):
    """Memory does not suffice for a result of this size with these settings."""


class Upscaler:
    """Makes pictures larger and sharper with a trained model; `from_checkpoint` builds one."""

    def __init__(self, networks: Networks, settings: UpscaleSettings = DEFAULTS) -> None:
        self.networks = networks
        self.settings = settings
        self.tile, self.overlap = _tiles(networks, settings)  # latent cells
        self.sampling = Sampling(settings.steps, settings.sampler, settings.eta, settings.start_t)
        # Now rather than at every picture: both raise UserError for steps that the process does not have.
        self.sampling.timesteps(len(truncated(networks.model.betas_of_process, settings.start_t)))

    @classmethod
    def from_checkpoint(
        cls,
        config: str | Path | None = None,
        ckpt: str | Path | None = None,
        *,
        cfw_ckpt: str | Path | None = None,
        settings: UpscaleSettings | None = None,
        device: str = "auto",
        precision: str = "fp32",
    ) -> "Upscaler":
        """An upscaler from a training config and a checkpoint; without both, with the small demo weights.

        cfw_ckpt: a second-stage autoencoder, which decodes with the input's features. device: auto, cpu, cuda, cuda:1.
        precision: of the U-Net and the time-aware encoder: fp32, bf16 or fp16.

        Raises:
            UserError: a file or a choice does not fit; see `Networks.load`.
        """
        if (config is None) != (ckpt is None):
            given, lacking = ("ckpt", "config") if config is None else ("config", "ckpt")
            raise FieldError(
                lacking,
                f"is not given: a {given} was given, and the two belong together; give the config that the checkpoint "
                "was trained with, or neither for the demo weights",
            )
        if config is None or ckpt is None:
            (config, ckpt), defaults = demo_files(), DEMO_DEFAULTS
        else:
            defaults = DEFAULTS
        return cls(Networks.load(config, ckpt, cfw_ckpt, device, precision), settings or defaults)

    def __call__(self, picture: AnyPicture, progress: Progress = no_progress) -> AnyPicture:
        """One picture, `upscale` times as large, of the kind that was given; a tensor may hold several, (B, C, H, W).

        `progress` may wrap each long loop to show how far it is.

        Raises:
            UserError: not a picture, a side below 8 pixels, or a result that is not finite.
            NotEnoughMemoryError: memory does not suffice.
        """
        if isinstance(picture, Tensor) and picture.ndim == 4 and len(picture):
            return torch.stack([self(each, progress) for each in picture])  # type: ignore[misc]
        given, back = to_picture(picture)
        return back(self.upscale([given], progress)[0])

    def canvas_size(self, picture: Picture) -> tuple[int, int]:
        """Height and width of the result with its padding, pixels: whole steps of the U-Net, and no less than a frame.

        Raises:
            UserError: the picture is too small.
            NotEnoughMemoryError: there is not enough memory for the result.
        """
        height, width = picture.size
        if min(height, width) < MIN_SIDE:
            raise UserError(f"it is {width} x {height} pixels: each side must be {MIN_SIDE} or more")
        wide, high = (round(side * self.settings.upscale) for side in (width, height))
        needed, there = wide * high * BYTES_PER_PIXEL, _memory()
        if needed > there:
            raise NotEnoughMemoryError(
                f"not enough memory for a result of {wide} x {high} pixels (about {needed / 1e9:.0f} GB of "
                f"{there / 1e9:.0f} GB); choose a smaller upscale, or cut the picture up"
            )
        multiple, frame = self.networks.multiple, self.networks.frame
        least = min(frame, (self.tile or frame) * self.networks.downsampling)
        canvas_h, canvas_w = (-(-max(side, least) // multiple) * multiple for side in (high, wide))
        return canvas_h, canvas_w

    def is_small(self, picture: Picture) -> bool:
        """Whether one tile covers it, so that it may share a batch with others of the same `canvas_size`."""
        return self.tile is None or max(self.canvas_size(picture)) <= self.tile * self.networks.downsampling

    @torch.no_grad()
    def upscale(self, pictures: Sequence[Picture], progress: Progress = no_progress) -> list[Picture]:
        """Pictures of one `canvas_size` at once. Each draws noise of its own: the result does not depend on the others.

        Raises:
            UserError: as `__call__` does.
        """
        height, width = self.canvas_size(pictures[0])
        advice = self._advice(len(pictures))
        with explained_out_of_memory(f"for a result of {width} x {height} pixels; {advice}"):
            rngs = [torch_rng("cpu", "upscale", self.settings.seed) for _ in pictures]
            vae = TiledAutoencoder(
                self.networks.model.first_stage_model,
                self.networks.cfw,
                self.networks.model.scale_factor,
                self.networks.device,
                self.tile,
                self.overlap,
                self.settings.dec_w,
            )
            large = [self.enlarged(picture) for picture in pictures]
            lq_pm1 = [_padded(picture, (height, width)) for picture in large]
            z_lq = torch.cat([vae.encode(image, rng, progress) for image, rng in zip(lq_pm1, rngs, strict=True)])
            z = self._sample(z_lq.to(self.networks.device), rngs, progress).cpu()
            return [
                self._finished(picture, vae.decode(latent[None], image, progress))
                for picture, latent, image in zip(large, z, lq_pm1, strict=True)
            ]

    def enlarged(self, picture: Picture) -> Picture:
        """The picture at the result's size by bicubic interpolation, as in training; see `Picture.opaque`."""
        size = [round(side * self.settings.upscale) for side in picture.size]

        def resized(planes: Tensor) -> Tensor:
            return F.interpolate(planes[None], size=size, mode="bicubic")[0].clamp(0, 1)

        alpha = picture.alpha_01
        return replace(picture, rgb_01=resized(picture.opaque()), alpha_01=None if alpha is None else resized(alpha))

    def _sample(self, z_lq: Tensor, rngs: Sequence[torch.Generator], progress: Progress) -> Tensor:
        chosen, model = self.settings, self.networks.model
        prompts = [chosen.prompt, chosen.negative_prompt]
        context, uncond = model.contexts(prompts).to(self.networks.device)[:, None]
        together = max(1, chosen.batch // len(z_lq))
        tiling = Tiling(self.tile, self.overlap, together) if self.tile else None
        with model.ema_scope():
            return model.sample(
                z_lq,
                Guidance(context, uncond, chosen.guidance_scale),
                self.sampling,
                tiling=tiling,
                noise=noise_of_pictures(rngs, z_lq.device),
                progress=lambda steps: progress("sampling", steps),
            )

    def _finished(self, enlarged: Picture, decoded_pm1: Tensor) -> Picture:
        """Crop, and correct the colours by the enlarged input. Raises UserError for a result that is not finite."""
        height, width = enlarged.size
        top, left = _margins(enlarged, decoded_pm1.shape[-2:])
        image = decoded_pm1[..., top : top + height, left : left + width]
        if not image.isfinite().all():  # before it is clamped, which would make it look like a picture
            raise _not_finite(self.networks.precision)
        if self.settings.colorfix != "none":
            image = COLOR_FIXES[self.settings.colorfix](image, to_pm1(enlarged.rgb_01[None]))
        return replace(enlarged, rgb_01=from_pm1(image[0]).clamp(0, 1))

    def _advice(self, together: int) -> str:
        """What to do where memory does not suffice."""
        tile = (self.tile or self.networks.frame) * self.networks.downsampling if self.tile else self.networks.frame * 2
        if self.settings.batch > 1 or together > 1:
            return "choose a smaller batch or tile, such as batch 1 and tile auto"
        return f"choose smaller tiles, such as tile {max(MIN_TILE, tile // 2)}"


def _not_finite(precision: str) -> UserError:
    if precision == "fp16":  # whose numbers end at 65504
        return FieldError("precision", "is fp16, in which this result is not finite (NaN): choose bf16 or fp32")
    return UserError(
        f"the result is not finite (NaN), in {precision}: the checkpoint's weights may be damaged; try another "
        "checkpoint, or precision fp32"
    )


def _tiles(networks: Networks, settings: UpscaleSettings) -> tuple[int | None, int]:
    """Side and overlap of the tiles in latent cells; None where there are to be none."""
    if settings.tile == "none":
        return None, 0
    side = networks.frame if settings.tile == "auto" else int(settings.tile)
    side = max(side - side % networks.multiple, networks.multiple)
    overlap = side // 3 if settings.tile_overlap is None else settings.tile_overlap
    if overlap >= side:
        raise FieldError("tile_overlap", f"is {overlap}: choose less than the tiles' {side} pixels")
    return side // networks.downsampling, overlap // networks.downsampling


def _margins(enlarged: Picture, canvas: Sequence[int]) -> tuple[int, int]:
    """Rows above and columns left of a picture in the middle of its canvas (height, width)."""
    top, left = (-(-(outer - inner) // 2) for outer, inner in zip(canvas, enlarged.size, strict=True))
    return top, left


def _padded(enlarged: Picture, canvas: tuple[int, int]) -> Tensor:
    """(1, 3, *canvas) in [-1, 1], the picture in the middle, mirrored beyond its borders."""
    padded = reflect_pad(enlarged.rgb_01[None], *_margins(enlarged, canvas))
    return padded[..., : canvas[0], : canvas[1]] * 2 - 1


def _memory() -> float:
    """Bytes of the machine's memory; unlimited where it does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on this system
        return float("inf")


@contextmanager
def explained_out_of_memory(where: str) -> Iterator[None]:
    """Raise NotEnoughMemoryError in place of whatever says that memory does not suffice, on a GPU or not."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        # The CPU's allocator raises a plain RuntimeError; torch.OutOfMemoryError is one too.
        words = ("can't allocate memory", "not enough memory", "out of memory")
        if isinstance(error, RuntimeError) and not any(word in str(error).lower() for word in words):
            raise
        raise NotEnoughMemoryError(f"not enough memory {where}") from error
