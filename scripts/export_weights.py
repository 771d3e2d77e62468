"""Write a checkpoint's weights alone, in half precision, as safetensors.

python scripts/export_weights.py logs/RUN/checkpoints/last.ckpt WEIGHTS.safetensors [--without PREFIX ...]
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from basicsr.utils.errors import UserError
from ldm.console import OneLineParser, some_path
from ldm.models.diffusion.checkpoint import read_state_dict


def export(source: Path, target: Path, without: Sequence[str] = ()) -> None:
    """Convert all but the keys that begin with one of `without`.

    Raises UserError where `source` is no checkpoint, or `target` is there already or cannot be written.
    """
    if target.suffix != ".safetensors":
        raise UserError(f"{target} does not end with .safetensors, by which it is known as such: choose another name")
    if target.exists():
        raise UserError(f"{target} is there already; delete it first, or choose another name")
    state = {
        key: value.to(torch.float16) if value.is_floating_point() else value
        for key, value in read_state_dict(source).items()
        if not key.startswith(tuple(without))
    }
    try:
        save_file({key: value.contiguous() for key, value in state.items()}, target)
    except (OSError, SafetensorError) as error:
        target.unlink(missing_ok=True)
        raise UserError(f"{target} cannot be written: {error}") from error
    print(f"{target}: {len(state)} tensors, {target.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    parser = OneLineParser("export_weights.py", description=__doc__)
    parser.add_argument("source", type=some_path, help="a .ckpt or .safetensors file")
    parser.add_argument("target", type=some_path, help="the .safetensors file to write")
    parser.add_argument("--without", nargs="+", default=[], metavar="PREFIX", help="key prefixes to leave out")
    try:
        args = parser.parse_args()
        export(args.source, args.target, args.without)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
