"""What several test files share; `reference/` beside this file holds the arrays and the models."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from reference.models import stage1
from reference.parity import FOLDER

from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT


@pytest.fixture(autouse=True)
def fixed_global_stream() -> Iterator[None]:
    """Layers draw their initial weights from PyTorch's global stream: fix it."""
    torch.manual_seed(0)
    yield


@pytest.fixture(scope="session")
def arrays() -> Callable[[str], np.lib.npyio.NpzFile]:
    """The reference arrays of a file: `modules`, `training_and_sampling` or `ddim`."""
    return lambda name: np.load(FOLDER / f"{name}.npz")


@pytest.fixture(scope="session")
def tiny_models() -> Callable[[str], LatentDiffusionSRTextWT]:
    """The tiny model by parameterisation, built once, in evaluation mode: for tests that change nothing."""
    built: dict[str, LatentDiffusionSRTextWT] = {}

    def get(parameterization: str) -> LatentDiffusionSRTextWT:
        if parameterization not in built:
            built[parameterization] = stage1("tiny", parameterization=parameterization).eval().requires_grad_(False)
        return built[parameterization]

    return get


@pytest.fixture
def linked_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Given a folder of dear files: a user's folder with links to them, as the working directory."""

    def enter(folder: Path) -> Path:
        for file in folder.iterdir():
            (tmp_path / file.name).symlink_to(file)
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return enter
