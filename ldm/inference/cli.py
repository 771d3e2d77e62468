"""Make pictures larger and sharper.

    python scripts/upscale.py --input photo.png
    python scripts/upscale.py --base CONFIG.yaml --ckpt MODEL.ckpt --input PICTURES --output RESULTS

Without --base and --ckpt small demo weights are used, which come with this project: they run anywhere, and show how it
works rather than what the full model can do. A folder is searched with its subfolders. cat.png becomes
RESULTS/cat.png, and cat.jpg becomes RESULTS/cat.jpg.png, whatever else lies beside it. Results that are there already
are left alone, so that the same command goes on where it was stopped. Exit status: 0, or 1 where some pictures of a
folder failed (they are listed at the end), 2 where nothing could be done, 130 after Ctrl-C.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import OutputError
from basicsr.utils.img_util import MAX_PIXELS
from ldm.console import OneLineParser, configure_logging, some_path
from ldm.inference.settings import DEFAULTS, DEMO_DEFAULTS, MAX_FACTOR, MIN_TILE, PRECISIONS, UpscaleSettings

if TYPE_CHECKING:
    from ldm.inference.folder import Outcome

FLAGS = {"config": "base"}  # fields whose flag has another name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    configure_logging("ldm.inference")
    try:
        return run(make_parser().parse_args(argv))
    except UserError as error:
        _say(f"error: {told(error)}")
        return 2
    except KeyboardInterrupt:
        _say("interrupted: finished pictures are kept; the same command goes on with the others")
        return 130


def told(error: UserError) -> str:
    """An error in the words of a command line: flags in place of fields."""
    if isinstance(error, FieldError):
        return f"--{FLAGS.get(error.field, error.field)} {error.problem}"
    return f"{error}; choose another --output" if isinstance(error, OutputError) else str(error)


def run(args: argparse.Namespace) -> int:
    """Check what can be checked at once, load the networks, upscale."""
    names = {field.name for field in fields(UpscaleSettings)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    settings = replace(DEFAULTS if args.base else DEMO_DEFAULTS, **given)

    # Only now, so that --help and mistakes in the flags need not wait for torch.
    from ldm.inference.folder import FileOptions, check_output, list_tasks, upscale_files
    from ldm.inference.pipeline import Upscaler

    options = FileOptions(args.bits, args.save_edges, args.compare, args.overwrite, args.max_pixels)
    tasks = list_tasks(args.input, args.output)
    check_output(args.output)
    upscaler = Upscaler.from_checkpoint(
        args.base, args.ckpt, cfw_ckpt=args.cfw_ckpt, settings=settings, device=args.device, precision=args.precision
    )
    return report(upscale_files(upscaler, tasks, options, progress_bars), args)


def report(outcome: "Outcome", args: argparse.Namespace) -> int:
    """Say what was done and what failed; returns the exit status."""
    for task, error in outcome.failed:
        reason = told(error)
        # Messages of the reader begin with the path already.
        _say(f"error: {reason}" if reason.startswith(str(task.source)) else f"error: {task.source}: {reason}")
    counts = [
        f"{len(outcome.finished)} upscaled",
        f"{len(outcome.skipped)} skipped, finished before (--overwrite)",
        f"{len(outcome.failed)} failed",
    ]
    said = [words for words in counts if not words.startswith("0")] or counts[:1]
    if len(outcome.failed) != 1 or args.input.is_dir():
        sys.stdout.write(f"{', '.join(said)}; results: {args.output}\n")
    if not outcome.failed:
        return 0
    return 1 if outcome.finished or outcome.skipped else 2


def _say(line: str) -> None:
    sys.stderr.write(f"{line}\n")


def progress_bars(name: str, parts: Iterable[Any]) -> Iterable[Any]:
    """One progress bar over the pictures, and below it one over what is done with the present one."""
    from tqdm import tqdm

    parts = list(parts)
    whole = name == "pictures"
    # A single picture needs no bar of its own. Where the output is no terminal there are none.
    hidden = True if whole and len(parts) == 1 else None
    bar: Iterable[Any] = tqdm(
        parts, desc=name, leave=False, position=0 if whole else 1, disable=hidden, dynamic_ncols=True
    )
    return bar


def make_parser() -> OneLineParser:
    """The flags; those of `UpscaleSettings` are None where they are not given."""
    parser = OneLineParser("upscale.py", description=__doc__)
    _add_files(parser.add_argument_group("files"))
    add_model(parser.add_argument_group("model"))
    _add_settings(parser.add_argument_group("settings"))
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--input", type=some_path, required=True, metavar="PATH", help="a picture, or a folder of them")
    add(
        "--output", type=some_path, default=Path("results"), metavar="FOLDER", help="for the results (default: results)"
    )
    add("--overwrite", action="store_true", help="redo finished pictures")
    add("--bits", type=int, default=8, metavar="8|16", help="bits per channel of the results, PNG (default: 8)")
    add("--save_edges", action="store_true", help="write the edge maps of input and result beside it")
    add("--compare", action="store_true", help="write a before/after strip beside it")
    add(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"larger pictures are refused, for a small file can claim any size (default: {MAX_PIXELS})",
    )


def add_model(group: argparse._ArgumentGroup) -> None:
    """The flags that say which networks to load, and where."""
    add = group.add_argument
    add("--base", metavar="YAML", help="the config that the checkpoint was trained with")
    add("--ckpt", metavar="FILE", help="the checkpoint: .ckpt or .safetensors")
    add("--cfw_ckpt", metavar="FILE", help="a second-stage autoencoder (CFW), for results closer to the input")
    add("--precision", default="fp32", metavar="NAME", help=f"{', '.join(PRECISIONS)} (default: fp32)")
    add("--device", default="auto", metavar="NAME", help="auto (the default), cpu, cuda, cuda:1")


def _add_settings(group: argparse._ArgumentGroup) -> None:
    def default(field: str) -> str:
        """A setting's default, with the other one of the demo weights."""
        usual, demo = getattr(DEFAULTS, field), getattr(DEMO_DEFAULTS, field)
        return f"(default: {usual}, with the demo weights {demo})" if demo != usual else f"(default: {usual})"

    add = group.add_argument
    add("--upscale", type=float, metavar="X", help=f"factor on the sides, 1 to {MAX_FACTOR} {default('upscale')}")
    add("--steps", type=int, metavar="N", help=f"sampling steps; the turbo checkpoint needs 4 {default('steps')}")
    add("--sampler", metavar="NAME", help=f"ddpm or ddim {default('sampler')}")
    add("--eta", type=float, metavar="X", help="DDIM's noise, 0 (none, the default) to 1 (as much as DDPM)")
    add(
        "--start_t",
        type=int,
        metavar="T",
        help="start at step T of 999 instead of the last: lower is closer to the input",
    )
    add(
        "--guidance_scale",
        type=float,
        metavar="X",
        help="towards --prompt, away from --negative_prompt (default: 1, no guidance)",
    )
    add("--prompt", metavar="TEXT", help='(default: "")')
    add("--negative_prompt", metavar="TEXT", help='(default: "")')
    add(
        "--dec_w",
        type=float,
        metavar="X",
        help=f"with --cfw_ckpt: 0 (the model's own result) to 1 (closest to the input) {default('dec_w')}",
    )
    add(
        "--colorfix",
        metavar="NAME",
        help=f"take the colours from the input: adain, wavelet or none {default('colorfix')}",
    )
    add(
        "--tile",
        type=_tile,
        metavar="auto|none|N",
        help=f"side of the tiles, pixels of the result, {MIN_TILE} or more; smaller needs less memory. auto (the "
        "default) is the size that the model was trained at; none takes the whole picture at once",
    )
    add("--tile_overlap", type=int, metavar="N", help="pixels that neighbouring tiles share (default: a third)")
    add(
        "--batch",
        type=int,
        metavar="N",
        help=f"tiles, or small pictures, that go through the network at once {default('batch')}",
    )
    add("--seed", type=int, metavar="N", help=f"same seed, same result {default('seed')}")


def _tile(word: str) -> int | str:
    return int(word) if word.lstrip("-").isdecimal() else word
