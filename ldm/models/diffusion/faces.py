"""StableSR's stage 1 for aligned faces."""

from dataclasses import replace

import torch
from torch import Tensor

from basicsr.data.pair_pool import Pair
from basicsr.utils.rng import numpy_rng
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT

NO_DEGRADATION_PROB = 0.005


class LatentDiffusionSRTextWTFFHQ(LatentDiffusionSRTextWT):
    """The general model, its keys and its checkpoints; only what it trains on differs.

    Its data set degrades (`basicsr.data.ffhq_degradation_dataset`) and sharpens no GT, whatever `use_usm` says. About
    one training batch in 200 has LQ = GT, so that a good picture is left alone.
    """

    def training_step(self, pair: Pair, batch_idx: int) -> Tensor:
        """As the general model's, after a draw that is a function of seed, rank, epoch and batch too."""
        rng = numpy_rng("face LQ", torch.initial_seed(), self.global_rank, self.current_epoch, batch_idx)
        if rng.random() < NO_DEGRADATION_PROB:
            pair = replace(pair, lq_pm1=pair.gt_pm1)
        return super().training_step(pair, batch_idx)
