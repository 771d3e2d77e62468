"""An error that no formula has: what a discriminator, trained beside, tells a predicted picture's patches by."""

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, softplus

from basicsr.utils.errors import FieldError
from ldm.modules.losses.adversarial import PatchDiscriminator

LAYERS = 2  # of stride 2: a logit looks at 34 x 34 pixels
SMALLEST = 12  # pixels of a side that leave a logit


class AdversarialError(nn.Module):
    """softplus(-D(p)), D a `PatchDiscriminator`: how far each patch of p is from passing for one of a true picture.

    The non-saturating loss of Goodfellow et al. 2014 (section 3), patch by patch as in pix2pix (Isola et al. 2017). Of
    all sharp pictures that are possible it asks for any, not for their mean. D lowers `discriminator_error`, with the
    same weights: what it learns to tell apart is edges.
    """

    def __init__(self) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(layers=LAYERS)

    def forward(self, pred_pm1: Tensor, gt_pm1: Tensor) -> Tensor:
        """As `PixelError`, each patch's error spread over its pixels; the gradient reaches `pred_pm1`, D stays as is.

        Raises:
            FieldError: the pictures are too small for a patch.
        """
        if min(pred_pm1.shape[-2:]) < SMALLEST:
            raise FieldError(
                "edge_loss_type",
                f"is 'adversarial', whose discriminator looks at pictures of {SMALLEST} pixels or more, and these have "
                f"{min(pred_pm1.shape[-2:])}: set a larger edge_crop, or none",
            )
        fixed = {name: value.detach().clone() for name, value in self.discriminator.state_dict().items()}
        return self._spread(softplus(-torch.func.functional_call(self.discriminator, fixed, pred_pm1)), pred_pm1)

    def discriminator_error(self, pred_pm1: Tensor, gt_pm1: Tensor) -> Tensor:
        """softplus(-D(g)) + softplus(D(p)), of the pictures' shape; the gradient reaches D, not `pred_pm1`."""
        real, fake = self.discriminator(gt_pm1), self.discriminator(pred_pm1.detach())
        return self._spread(softplus(-real) + softplus(fake), pred_pm1)

    @staticmethod
    def _spread(errors: Tensor, images: Tensor) -> Tensor:
        return interpolate(errors, images.shape[-2:], mode="nearest").expand_as(images)
