"""From where weights lie to a state dict under our names: the one way to read any of the forms that they come in."""

from collections.abc import Sequence
from pathlib import Path

from ldm.models.formats import hub
from ldm.models.formats.diffusers_folder import holds_weights, in_our_names, read_folder
from ldm.models.formats.diffusers_keys import StateDict
from ldm.models.formats.files import read_file

# A file, a folder in diffusers' layout, or hf://owner/name; or several of them, of which the later ones win.
Source = str | Path | Sequence[str | Path]

# Where a state dict has the digest of the frozen parts that it leaves out: see `frozen_parts`.
FROZEN = "frozen_parts"


def read_state_dict(source: Source, *, values: bool = True) -> StateDict:
    """The tensors at `source` under our names, on the CPU, memory-mapped where the form allows it.

    Args:
        source: a file (`read_file`), a folder (`read_folder`), a place on the hub (`hub.fetch`), or several of these:
            Stable Diffusion and a module with what StableSR adds to it, say.
        values: False for tensors on the meta device, which have shapes alone: then little is read.

    Raises:
        UserError: there is nothing there, or it cannot be read; the message says what to do.
    """

    def read(file: Path) -> StateDict:
        state = read_file(file)
        return state if values else {key: value.to("meta") for key, value in state.items()}

    state: StateDict = {}
    for path in places(source):
        state |= read_folder(path, read) if holds_weights(path) else in_our_names(path, read(path))
    return state


def places(source: Source) -> list[Path]:
    """Where on this machine the source lies; what is on the hub is fetched first."""
    several = [source] if isinstance(source, (str, Path)) else source
    return [hub.fetch(str(each)) if hub.is_reference(each) else Path(each).expanduser() for each in several]


def config_value(source: Source) -> str | list[str]:
    """The source as it stands in a config."""
    return str(source) if isinstance(source, (str, Path)) else [str(each) for each in source]


def named(source: Source) -> str:
    """The source as its user wrote it."""
    return str(source) if isinstance(source, (str, Path)) else " with ".join(map(str, source))
