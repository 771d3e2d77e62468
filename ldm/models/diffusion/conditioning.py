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
REMEMBERED = 256  # prompts: of SD 2.1's contexts, each of 77 x 1024 numbers, 81 MB


class TextConditioner:
    """Prompts to contexts (B, L, context_dim); distinct prompts are encoded once, and the latest `REMEMBERED` kept.

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
        found = {prompt: self._context(prompt) for prompt in dict.fromkeys(prompts)}
        for oldest in list(self._contexts)[:-REMEMBERED]:
            self._contexts.pop(oldest, None)  # another thread may have been quicker
        return torch.stack([found[prompt] for prompt in prompts])

    def _context(self, prompt: str) -> Tensor:
        """(L, context_dim)."""
        context = self._contexts.get(prompt)
        if context is None:
            if self._tower is None:
                raise UserError(
                    f"the text tower was released after encoding {list(self._contexts)}, so {prompt!r} "
                    "cannot be encoded; set model.params.keep_text_encoder=true"
                )
            encoded: Tensor = self._tower([prompt])[0]
            context = encoded.clone()  # not a view that would keep more
        self._contexts[prompt] = context
        return context

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
