"""Classifier-free guidance: a U-Net that is told a text becomes a denoiser that goes towards it."""

from dataclasses import dataclass

from torch import Tensor, nn

from basicsr.utils.errors import FieldError
from ldm.models.diffusion.tiling import StructuredDenoiser


@dataclass(frozen=True)
class Guidance:
    """The texts that steer a sample, as contexts (B, L, context_dim) or (1, L, context_dim) for all of a batch.

    The U-Net's output becomes uncond + scale (context - uncond) (Ho & Salimans 2022, equation 6): towards `context`
    and, with a `scale` other than 1, away from `uncond`.

    Raises:
        FieldError: a scale other than 1 without `uncond`.
    """

    context: Tensor
    uncond: Tensor | None = None
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.scale != 1 and self.uncond is None:
            raise FieldError("guidance_scale", f"is {self.scale}: it needs a negative prompt's context (uncond)")


def guided_denoiser(unet: nn.Module, structure_encoder: nn.Module, guidance: Guidance) -> StructuredDenoiser:
    """A denoiser of the U-Net, in the precision of its weights, steered by text and by the structure of the LQ latent.

    The structure is encoded once for both texts. Latents may come as several tiles of each of the B pictures, tile by
    tile.
    """
    dtype = next(unet.parameters()).dtype
    uncond = None if guidance.scale == 1 else guidance.uncond

    def denoise(x: Tensor, t: Tensor, z_lq: Tensor) -> Tensor:
        structure = structure_encoder(z_lq.to(dtype), t)

        def predict(text: Tensor) -> Tensor:
            output: Tensor = unet(x.to(dtype), t, text.to(dtype).repeat(len(x) // len(text), 1, 1), structure)
            return output.to(x.dtype)

        output = predict(guidance.context)
        if uncond is None:
            return output
        away = predict(uncond)
        return away + guidance.scale * (output - away)

    return denoise
