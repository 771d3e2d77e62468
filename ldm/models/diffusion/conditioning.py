"""What steers the U-Net besides the noisy latent: the text. (Structure is the time-aware encoder's output.)"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from basicsr.utils.errors import UserError


class TextConditioner:
    """Prompts to contexts (B, L, context_dim); each distinct prompt is encoded once and remembered.

    Once everything that will be asked for is remembered, the text tower itself is no longer needed.
    """

    def __init__(self, tower: nn.Module) -> None:
        self._tower: nn.Module | None = tower
        self._contexts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """The contexts of `prompts`, encoded where they are new.

        Raises:
            UserError: a new prompt comes after the tower was released.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt in self._contexts:
                continue
            if self._tower is None:
                raise UserError(
                    f"the text tower was released after encoding {list(self._contexts)}, so {prompt!r} "
                    "cannot be encoded; set model.params.keep_text_encoder=true"
                )
            self._contexts[prompt] = self._tower([prompt])[0]
        return torch.stack([self._contexts[prompt] for prompt in prompts])

    def release(self) -> dict[str, Tensor]:
        """Give the tower up; its weights, now in host memory, or nothing where it was given up before."""
        if self._tower is None:
            return {}
        # Moved, not copied: DistributedDataParallel, too, holds on to these parameters.
        weights = dict(self._tower.cpu().state_dict())
        self._tower = None
        return weights
