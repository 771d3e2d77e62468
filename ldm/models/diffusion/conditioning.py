"""What steers the U-Net besides the noisy latent: the text. (Structure is the time-aware encoder's output.)"""

import logging
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile

import torch
from torch import Tensor, nn

from basicsr.utils.errors import UserError, first_line

log = logging.getLogger(__name__)

WORTH_A_FILE = 64 << 20  # bytes


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

    def release(self, folder: Path | None = None) -> dict[str, Tensor]:
        """Give the tower up; its weights, or nothing where it was given up before.

        Large ones lie in a file in `folder` that goes with the process; without `folder` in host memory.
        """
        if self._tower is None:
            return {}
        # Moved, not copied: DistributedDataParallel, too, holds on to these parameters.
        weights = dict(self._tower.cpu().state_dict())
        if folder is not None and sum(value.nbytes for value in weights.values()) >= WORTH_A_FILE:
            weights = _on_disk(self._tower, weights, folder)
        self._tower = None
        return weights


def _on_disk(tower: nn.Module, weights: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The same values, read from a file without a name when they are wanted; also those that the tower itself holds.

    Where there is no room for the file they stay in memory.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder, suffix=".text_tower") as file:
            torch.save(weights, file)
            file.flush()
            # By its descriptor: the mapping outlives the file's name, and so its end.
            mapped: dict[str, Tensor] = torch.load(f"/proc/self/fd/{file.fileno()}", mmap=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # the latter is torch's word for a full disk
        log.info("the text tower's weights stay in memory: %s", first_line(error))
        return weights
    for name, parameter in tower.named_parameters():
        parameter.data = mapped[name]
    return mapped
