"""The files of `configs/`, YAMLs and the demo's weights: in a clone, and in an installed package, which has a copy."""

from importlib.resources import files
from pathlib import Path

CONFIGS = "configs"


def root() -> Path:
    """The folder that holds `configs/`: the clone's, or where the package is installed its own (`ldm/`)."""
    package = Path(str(files("ldm")))
    return package if (package / CONFIGS).is_dir() else package.parent


def find(path: str | Path) -> Path:
    """The file that `path` names from where the user is; failing that, the one of this name in `configs/`.

    So `configs/demo/edge_cpu.yaml` and `demo/edge_cpu.yaml` name the same file in every folder. A path that is in
    neither place comes back as it is.
    """
    given = Path(path).expanduser()
    if given.is_absolute() or ".." in given.parts or given.exists():
        return given
    inside = given.parts[1:] if given.parts[:1] == (CONFIGS,) else given.parts
    shipped = root().joinpath(CONFIGS, *inside)
    return shipped if inside and shipped.is_file() else given
