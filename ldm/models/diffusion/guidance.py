"""Classifier-free guidance: a U-Net that is told a text and edges becomes a denoiser that goes towards them."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from basicsr.utils.errors import FieldError
from ldm.models.diffusion.reference import Correction
from ldm.models.diffusion.tiling import StructuredDenoiser


@dataclass(frozen=True)
class Guidance:
    """What steers a sample: texts, as contexts (B, L, context_dim) or (1, L, context_dim) for all of a batch; edges.

    scale: towards `context` and, where it is not 1, away from `uncond`.
    z_struct: the structure encoder's input (B, C, h, w), as `model.structure` makes it; None means the LQ latent, with
        an empty edge map where the model sees edges.
    edge_scale: towards the edges in the structure and, where it is not 1, away from `z_without_edges`, the structure
        encoder's input (B, C, h, w) of the same pictures with an empty edge map; 0 leaves the edges out.

    Raises:
        FieldError: a scale other than 1 without what to go away from.
    """

    context: Tensor
    uncond: Tensor | None = None
    scale: float = 1.0
    z_struct: Tensor | None = None
    z_without_edges: Tensor | None = None
    edge_scale: float = 1.0
    correct: Correction | None = None  # of the predicted clean latents; see `reference`

    def __post_init__(self) -> None:
        if self.scale != 1 and self.uncond is None:
            raise FieldError("guidance_scale", f"is {self.scale}: it needs a negative prompt's context (uncond)")
        if self.edge_scale != 1 and self.z_without_edges is None:
            raise FieldError("edge_scale", f"is {self.edge_scale}: the model is told no edges, or none are given to it")

    def canvas(self, z_struct: Tensor) -> Tensor:
        """The structure (B, C, h, w) for `guided_denoiser`, so that tiles cut whatever it needs alike.

        As it is, or followed by the one without edges, (B, 2 C, h, w).
        """
        if self.edge_scale == 1 or self.z_without_edges is None:
            return z_struct
        return torch.cat([z_struct, self.z_without_edges], dim=1)


def guided(
    output: Tensor,
    *,
    without_text: Tensor | None = None,
    scale: float = 1.0,
    without_edges: Tensor | None = None,
    edge_scale: float = 1.0,
) -> Tensor:
    """The U-Net's outputs, all (B, 4, h, w), put together: each condition pulls away from the output without it.

    output + (scale - 1) (output - without_text) + (edge_scale - 1) (output - without_edges): with one condition this is
    classifier-free guidance (Ho & Salimans 2022, equation 6), with two their differences add up, as for independent
    conditions (Liu et al. 2022, equation 11).
    """
    result = output if without_text is None else without_text + scale * (output - without_text)
    return result if without_edges is None else result + (edge_scale - 1) * (output - without_edges)


def guided_denoiser(unet: nn.Module, structure_encoder: nn.Module, guidance: Guidance) -> StructuredDenoiser:
    """A denoiser of the U-Net, in the precision of its weights, steered by text and by the structure: see
    `Guidance.canvas`.

    Each network is called once: with all conditions in one batch, and the structure's features shared by both texts.
    Latents may come as several tiles of each of the B pictures, tile by tile.
    """
    dtype = next(unet.parameters()).dtype
    uncond = None if guidance.scale == 1 else guidance.uncond
    edges_guided = guidance.edge_scale != 1

    def denoise(x: Tensor, t: Tensor, z_struct: Tensor) -> Tensor:
        both = z_struct.to(dtype).chunk(2 if edges_guided else 1, dim=1)
        structure: dict[str, Tensor] = structure_encoder(torch.cat(both), t.repeat(len(both)))
        texts = [guidance.context, *([] if uncond is None else [uncond]), *([guidance.context] if edges_guided else [])]
        if len(texts) == 3:  # with edges, the same with the other text, without edges
            structure = {width: torch.cat([f[: len(x)], f]) for width, f in structure.items()}
        contexts = torch.cat([text.to(dtype).repeat(len(x) // len(text), 1, 1) for text in texts])
        outputs = unet(x.to(dtype).repeat(len(texts), 1, 1, 1), t.repeat(len(texts)), contexts, structure)
        parts: list[Tensor] = list(outputs.to(x.dtype).chunk(len(texts)))
        return guided(
            parts[0],
            without_text=None if uncond is None else parts[1],
            scale=guidance.scale,
            without_edges=parts[-1] if edges_guided else None,
            edge_scale=guidance.edge_scale,
        )

    return denoise
