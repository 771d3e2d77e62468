"""The autoencoder's posterior."""

from collections.abc import Sequence

import torch
from torch import Tensor


class DiagonalGaussianDistribution:
    """A Gaussian with diagonal covariance, from moments (B, 2 C, h, w): C channels of mean, then C of log variance.

    The log variance is clamped to [-30, 20]. Mean and samples are (B, C, h, w), not yet multiplied by `scale_factor`,
    and at least in float32, so that the draws are the same whatever precision the encoder ran in.
    """

    def __init__(self, moments: Tensor) -> None:
        precise = moments.to(torch.promote_types(moments.dtype, torch.float32))
        self.mean, logvar = precise.chunk(2, dim=1)
        self.logvar = logvar.clamp(-30.0, 20.0)

    def sample(self, rng: torch.Generator | None = None) -> Tensor:
        """mean + std * N(0, 1), the noise drawn from `rng` (default: PyTorch's global stream)."""
        noise = torch.randn(self.mean.shape, generator=rng, device=self.mean.device, dtype=self.mean.dtype)
        return self.mean + torch.exp(0.5 * self.logvar) * noise

    def split(self, sizes: Sequence[int]) -> list["DiagonalGaussianDistribution"]:
        """The posteriors of parts of the batch."""
        moments = torch.cat([self.mean, self.logvar], dim=1)
        return [DiagonalGaussianDistribution(part) for part in moments.split(list(sizes))]

    def mode(self) -> Tensor:
        """The most likely value, which is the mean."""
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence to the standard normal in nats, summed per sample: (B,) (Kingma & Welling 2014, appendix B)."""
        return 0.5 * (self.mean**2 + self.logvar.exp() - 1.0 - self.logvar).sum(dim=(1, 2, 3))
