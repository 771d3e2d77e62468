"""What steers the U-Net besides the noisy latent: the text. (Structure is the time-aware encoder's output.)"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from basicsr.utils.errors import UserError


class TextConditioner:
    """Prompts to contexts (B, L, context_dim); each distinct prompt is encoded once and remembered.

    Once everything that will be asked for is remembered, the text tower itself is no longer needed.
    """

    def __init__(self) -> None:
        self._contexts: dict[str, Tensor] = {}

    @torch.no_grad()
    def __call__(self, tower: nn.Module | None, prompts: Sequence[str], device: torch.device | str) -> Tensor:
        """The contexts of `prompts`, encoded by `tower` where they are new.

        Raises UserError where a new prompt comes after the tower was let go.
        """
        for prompt in dict.fromkeys(prompts):
            if prompt in self._contexts:
                continue
            if tower is None:
                raise UserError(
                    f"the text tower was let go after encoding {list(self._contexts)}, so {prompt!r} "
                    "cannot be encoded; set model.params.keep_text_encoder=true"
                )
            self._contexts[prompt] = tower([prompt])[0]
        return torch.stack([self._contexts[prompt] for prompt in prompts]).to(device)
