"""A discriminator of patches, and what it adds to a reconstruction loss (Esser et al. 2021, VQGAN, section 3.1)."""

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, softplus
from torch.nn.grad import conv2d_weight

from basicsr.utils import checks

WIDTH = 64  # channels of the first convolution
WIDEST = 8 * WIDTH
HIGHEST = 1e4  # of the adaptive weight
EPS = 1e-4
DISC_LOSSES = ("hinge", "vanilla")


class PatchDiscriminator(nn.Module):
    """PatchGAN (Isola et al. 2017, pix2pix, section 3.2.2): (B, in_channels, H, W) -> logits, one for each patch.

    4x4 convolutions: `layers` of stride 2, two of stride 1; H and W become H / 2^layers - 2. Weights start as
    N(0, 0.02), those of BatchNorm as N(1, 0.02).
    """

    def __init__(self, in_channels: int = 3, layers: int = 3) -> None:
        super().__init__()
        widths = [min(WIDTH * 2**n, WIDEST) for n in range(layers + 1)]
        stack: list[nn.Module] = [nn.Conv2d(in_channels, WIDTH, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for n in range(1, layers + 1):
            stride = 2 if n < layers else 1
            # BatchNorm takes any bias off again.
            stack.append(nn.Conv2d(widths[n - 1], widths[n], 4, stride=stride, padding=1, bias=False))
            stack += [nn.BatchNorm2d(widths[n]), nn.LeakyReLU(0.2)]
        stack.append(nn.Conv2d(widths[-1], 1, 4, padding=1))
        self.main = nn.Sequential(*stack)
        for module in self.main:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.02)
            elif isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight, 1.0, 0.02)

    def forward(self, image_pm1: Tensor) -> Tensor:
        """Logits (B, 1, h, w): above 0 for what looks real."""
        logits: Tensor = self.main(image_pm1)
        return logits


def discriminator_loss(kind: str, logits_real: Tensor, logits_fake: Tensor) -> Tensor:
    """hinge: (mean max(0, 1 - real) + mean max(0, 1 + fake)) / 2 (Lim & Ye 2017); vanilla: the cross-entropy of both.

    Raises:
        UserError: another kind.
    """
    if kind == "hinge":
        return 0.5 * (relu(1 - logits_real).mean() + relu(1 + logits_fake).mean())
    if kind == "vanilla":
        return 0.5 * (softplus(-logits_real).mean() + softplus(logits_fake).mean())
    raise checks.unknown("disc_loss:", kind, DISC_LOSSES)


def weight_gradient(loss: Tensor, output: Tensor, layer_input: Tensor, layer: nn.Conv2d) -> Tensor:
    """The gradient of `loss` at the weight of `layer`, whose `output` = layer(layer_input) it was computed from.

    A product of what lies on both sides of the layer, so that its weight may be frozen, and nothing below it is passed
    through. In float32; scaled up on the way, for a mean's gradient over so many pixels would vanish in half precision.
    """
    scale = float(output.numel())
    (at_output,) = torch.autograd.grad(loss * scale, output, retain_graph=True)
    with torch.autocast(output.device.type, enabled=False):
        gradient: Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            layer_input.detach().float(), layer.weight.shape, at_output.float() / scale, padding=layer.padding
        )
    return gradient


def adaptive_weight(nll_gradient: Tensor, g_gradient: Tensor) -> Tensor:
    """lambda = clamp(|G_nll| / (|G_g| + 1e-4), 0, 1e4), G at the decoder's last layer (VQGAN, equation 7)."""
    ratio: Tensor = nll_gradient.norm() / (g_gradient.norm() + EPS)
    return ratio.clamp(0, HIGHEST).detach()
