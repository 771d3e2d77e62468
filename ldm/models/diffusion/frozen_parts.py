"""Checkpoints without what was not trained: smaller by far, and whole again with the file that training began with."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import digest
from ldm.models.diffusion.checkpoint import FROZEN, StateDict, load_checkpoint
from ldm.models.formats.reading import Source, named


class FrozenParts:
    """Leaves out of a model's state dicts what is frozen, and says in a digest what that was.

    Raises:
        FieldError: there is no file to start from that has the frozen parts.
    """

    def __init__(self, ckpt_path: Source | None) -> None:
        if ckpt_path is None:
            raise FieldError("save_trainable_only", "is true and ckpt_path null: nothing would have the frozen parts")
        self._digest: Tensor | None = None  # of some gigabytes, which do not change

    def remember(self, model: nn.Module, state: StateDict) -> None:
        """Take the digest of a complete state's frozen parts now, before they are changed."""
        self._digest = content_of({name: state[name] for name in self._names(model, state)})

    def leave_out(self, model: nn.Module, state: StateDict) -> None:
        """Take out the model's frozen parameters, and what of them the model has let go."""
        names = self._names(model, state)
        if self._digest is None:
            self._digest = content_of({name: state[name] for name in names})
        for name in names:
            del state[name]
        state[FROZEN] = self._digest

    @staticmethod
    def _names(model: nn.Module, state: StateDict) -> list[str]:
        own, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        return [name for name in state if name not in buffers and not (name in own and own[name].requires_grad)]

    def check_whole(self, model: nn.Module, state: StateDict, file: str) -> None:
        """See that a complete state's frozen parts are the model's own, as the files that it was built from give them.

        Raises:
            UserError: they are not: what is saved from here on would lack them for good.
        """
        own = {name: value.detach() for name, value in model.named_parameters() if not value.requires_grad}
        if any(name in state and not torch.equal(value.cpu(), state[name].cpu()) for name, value in own.items()):
            raise UserError(
                f"save_trainable_only: {file} holds other frozen parts than model.params.ckpt_path: set that to the "
                "file that the training began with"
            )


def content_of(parts: StateDict) -> Tensor:
    """16 bytes that stand for named tensors, whatever their order."""
    # Views, for a copy of all frozen weights is gigabytes.
    values = [
        part
        for name, value in sorted(parts.items())
        for part in (name, value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    ]
    return torch.frombuffer(bytearray.fromhex(digest(*values)), dtype=torch.uint8).clone()


def put_back(state: StateDict, own: StateDict, file: str) -> StateDict:
    """A saved state with what was left out of it from a model built with the files that its training began with.

    A discriminator of edges, which exported files lack, is the model's own, too.

    Raises:
        UserError: the model's parts are not the ones that were left out.
    """
    if FROZEN not in state:
        return state
    missing = {name: value for name, value in own.items() if name not in state}
    frozen = {name: value for name, value in missing.items() if not name.startswith("edge_discriminator.")}
    if not torch.equal(content_of(frozen), state[FROZEN].cpu()):
        raise UserError(
            f"{file} leaves out the frozen parts (save_trainable_only), and those in the config's ckpt_path files are "
            "others: set model.params.ckpt_path, and the autoencoder's, to the files that the training began with"
        )
    return {name: value for name, value in state.items() if name != FROZEN} | missing


def build_with(build: Callable[[], nn.Module], base: Source | None, ckpt: Source) -> nn.Module:
    """The model of a checkpoint that leaves out the frozen parts: built from its base files, then loaded.

    Raises:
        UserError: there is no base file, it cannot be read, or it is another one.
    """
    file = named(ckpt)
    if base is None:
        raise UserError(
            f"{file} leaves out the frozen parts (save_trainable_only): set model.params.ckpt_path in its config to "
            "the file that the training began with"
        )
    try:
        model = build()
    except UserError as error:
        raise UserError(
            f"{file} leaves out the frozen parts (save_trainable_only), and the file that has them cannot be used: "
            f"{error}"
        ) from error
    own = model.state_dict()
    load_checkpoint(model, ckpt, select=lambda state: put_back(state, own, file))
    return model
