"""The loss that trains a first stage from scratch, without a perceptual network or a discriminator."""

from torch import Tensor, nn

from ldm.modules.distributions.distributions import DiagonalGaussianDistribution


class ReconstructionLoss(nn.Module):
    """mean |x - y| + mean (x - y)^2 + kl_weight * KL / pixels  (Kingma & Welling 2014, equation 10, up to scale)

    The absolute error keeps edges crisp, the squared one is what PSNR measures. The KL term, in nats, is divided by the
    number of picture elements so that its weight does not depend on their size; it only keeps latents from drifting.
    """

    def __init__(self, kl_weight: float = 1e-4) -> None:
        super().__init__()
        self.kl_weight = kl_weight

    def forward(
        self, image_pm1: Tensor, decoded_pm1: Tensor, posterior: DiagonalGaussianDistribution
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures (B, 3, H, W) in [-1, 1]; returns the loss and, for the log, its parts and the PSNR in dB."""
        difference = image_pm1 - decoded_pm1
        mse = difference.square().mean()
        kl = posterior.kl().mean() / image_pm1[0].numel()
        loss = difference.abs().mean() + mse + self.kl_weight * kl
        clamped = (image_pm1 - decoded_pm1.clamp(-1, 1)).square().mean()
        # Peak to peak is 2 in [-1, 1].
        psnr = 10 * (4 / clamped).log10()
        return loss, {
            name: value.detach() for name, value in {"loss": loss, "mse": mse, "kl": kl, "psnr": psnr}.items()
        }
