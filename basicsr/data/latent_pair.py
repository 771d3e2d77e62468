"""What the second stage (CFW) trains on: a pair and the latent that stage 1 sampled for its low-quality picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from basicsr.data.pair_pool import Pair


@dataclass(frozen=True, kw_only=True)
class LatentPair(Pair):
    """A batch of pairs with their sampled latents.

    Raises:
        ValueError: the parts disagree on the number of samples.
    """

    z: Tensor  # (B, 4, H/f, W/f), scaled
    sample_pm1: Tensor  # (B, 3, H, W), `z` decoded without CFW, to look at

    def __post_init__(self) -> None:
        super().__post_init__()
        if not len(self.z) == len(self.sample_pm1) == len(self.paths):
            raise ValueError(f"{len(self.z)} latents and {len(self.sample_pm1)} samples for {len(self.paths)} pairs")

    def __getitem__(self, samples: slice | Sequence[int]) -> "LatentPair":
        """Some of the samples, whole; places make copies."""
        pair = super().__getitem__(samples)
        parts = {"z": self.z[samples], "sample_pm1": self.sample_pm1[samples]}
        return LatentPair(pair.lq_pm1, pair.gt_pm1, pair.paths, pair.edge_01, **parts)
