"""The loss that trains CFW: pixels, a perceptual network and a discriminator (StableSR, section 3.3; VQGAN)."""

import logging
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from basicsr.metrics.lpips import LPIPS
from basicsr.utils import checks
from basicsr.utils.errors import FieldError, UserError
from ldm.modules.distributions.distributions import DiagonalGaussianDistribution
from ldm.modules.losses.adversarial import (
    DISC_LOSSES,
    PatchDiscriminator,
    adaptive_weight,
    discriminator_loss,
    weight_gradient,
)

log = logging.getLogger(__name__)

# Two pictures (B, 3, H, W) in [-1, 1] -> their perceptual distances (B,)
Perceptual = Callable[[Tensor, Tensor], Tensor]
Parts = dict[str, Tensor]


@dataclass(frozen=True)
class LastLayer:
    """The decoder's last convolution, and what went into it for the picture at hand: (B, C, H, W)."""

    layer: nn.Conv2d
    input: Tensor


class LPIPSWithDiscriminator(nn.Module):
    """With x the true and y the decoded picture, D the discriminator and s = logvar,

        rec = pixelloss_weight |x - y| + perceptual_weight LPIPS(x, y),  nll = mean(rec / exp(s) + s) / B
        total = nll + f disc_weight lambda (-mean D(y)) + kl_weight KL / B

    f is 0 before step `disc_start` and then `disc_factor`; lambda weighs the gradients against each other
    (`adaptive_weight`); in evaluation, where there are no gradients, it is 0. Beside the published keys there are two:

    Args:
        divide_by_batch: the published nll is divided by the batch size B though it is a mean already, so that beside
            the other terms, and at a given learning rate, it counts the less the more pictures a batch has. False
            leaves it a mean. At B = 1, the published batch size, both are the same.
        lpips_weights: file of VGG16's weights; None looks where torch keeps downloads. LPIPS is left out, and a line
            says so, where there are none.

    Raises:
        UserError: a number out of range, or an option that is supported at its published value alone.
    """

    def __init__(
        self,
        disc_start: int,
        logvar_init: float = 0.0,
        kl_weight: float = 1.0,
        pixelloss_weight: float = 1.0,
        disc_num_layers: int = 3,
        disc_in_channels: int = 3,
        disc_factor: float = 1.0,
        disc_weight: float = 1.0,
        perceptual_weight: float = 1.0,
        use_actnorm: bool = False,
        disc_conditional: bool = False,
        disc_loss: str = "hinge",
        divide_by_batch: bool = True,
        lpips_weights: str | None = None,
    ) -> None:
        super().__init__()
        for name, given in (("use_actnorm", use_actnorm), ("disc_conditional", disc_conditional)):
            if given:
                raise UserError(f"LPIPSWithDiscriminator: {name}: true is not supported; leave it out")
        if disc_loss not in DISC_LOSSES:
            raise checks.unknown("disc_loss:", disc_loss, DISC_LOSSES)
        self.disc_start = checks.whole_number("disc_start", disc_start, 0)
        self.disc_factor = checks.number("disc_factor", disc_factor, 0)
        self.disc_weight = checks.number("disc_weight", disc_weight, 0)
        self.kl_weight = checks.number("kl_weight", kl_weight, 0)
        self.pixelloss_weight = checks.number("pixelloss_weight", pixelloss_weight, 0)
        self.disc_loss = disc_loss
        self.divide_by_batch = divide_by_batch
        # A parameter by name alone: published code gives it to no optimiser.
        self.logvar = nn.Parameter(torch.tensor(float(logvar_init)), requires_grad=False)
        self.discriminator = PatchDiscriminator(
            disc_in_channels, checks.whole_number("disc_num_layers", disc_num_layers, 1)
        )
        self.perceptual_weight = checks.number("perceptual_weight", perceptual_weight, 0)
        self._perceptual = load_perceptual(lpips_weights) if self.perceptual_weight else None
        if self._perceptual is None:
            self.perceptual_weight = 0.0

    def factor(self, step: int) -> float:
        """What the adversarial terms are multiplied by at a step."""
        return self.disc_factor if step >= self.disc_start else 0.0

    def autoencoder_loss(
        self,
        gt_pm1: Tensor,
        decoded_pm1: Tensor,
        posterior: DiagonalGaussianDistribution,
        step: int,
        last: LastLayer | None = None,
    ) -> tuple[Tensor, Parts]:
        """What the autoencoder is to lower, and its parts by their published names.

        gt_pm1, decoded_pm1 (B, 3, H, W), nominally in [-1, 1]; `last`, from which decoded_pm1 came, where gradients are
        kept; without it d_weight is 0.
        """
        batch = len(gt_pm1)
        rec = self.reconstruction(gt_pm1, decoded_pm1.float())
        nll = (rec / self.logvar.exp() + self.logvar).mean()
        if self.divide_by_batch:
            nll = nll / batch
        kl = posterior.kl().sum() / batch
        g = -self.discriminator(decoded_pm1).float().mean()
        factor, d_weight = self.factor(step), torch.zeros_like(nll)
        if last is not None and self.disc_factor:
            gradients = [weight_gradient(loss, decoded_pm1, last.input, last.layer) for loss in (nll, g)]
            d_weight = adaptive_weight(*gradients) * self.disc_weight
        total = nll + self.kl_weight * kl + factor * d_weight * g
        parts = {"total_loss": total, "rec_loss": rec.mean(), "nll_loss": nll, "kl_loss": kl, "g_loss": g}
        parts |= {"d_weight": d_weight, "logvar": self.logvar, "disc_factor": torch.full_like(nll, factor)}
        return total, {name: value.detach() for name, value in parts.items()}

    def discriminator_loss(self, gt_pm1: Tensor, decoded_pm1: Tensor, step: int) -> tuple[Tensor, Parts]:
        """What the discriminator is to lower, and its parts by their published names. decoded_pm1 gets no gradient."""
        real = self.discriminator(gt_pm1).float()
        fake = self.discriminator(decoded_pm1.detach()).float()
        loss = self.factor(step) * discriminator_loss(self.disc_loss, real, fake)
        parts = {"disc_loss": loss, "logits_real": real.mean(), "logits_fake": fake.mean()}
        return loss, {name: value.detach() for name, value in parts.items()}

    def reconstruction(self, gt_pm1: Tensor, decoded_pm1: Tensor) -> Tensor:
        """rec, (B, 3, H, W): LPIPS, one number a picture, is added to each of its pixels."""
        rec = self.pixelloss_weight * (gt_pm1 - decoded_pm1).abs()
        if self._perceptual is None:
            return rec
        return rec + self.perceptual_weight * self._perceptual(gt_pm1, decoded_pm1).reshape(-1, 1, 1, 1)


def load_perceptual(weights: str | None) -> Perceptual | None:
    """LPIPS on VGG16; None, with a word of it, where no file was named and none is found.

    It is no part of the loss's state: published code keeps its own there, under names of its own.

    Raises:
        FieldError: of `lpips_weights`: the file is missing or holds something else.
    """
    try:
        network = LPIPS("vgg", weights)
    except FieldError as error:
        if weights is not None:
            raise
        log.warning("perceptual_weight is taken as 0, LPIPS is left out of the loss: lpips_weights %s", error.problem)
        return None

    def distances(a_pm1: Tensor, b_pm1: Tensor) -> Tensor:
        distance: Tensor = network.to(a_pm1.device)(a_pm1, b_pm1)
        return distance

    return distances
