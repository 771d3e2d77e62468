"""Make pictures larger and sharper.

    python scripts/upscale.py --input photo.png
    python scripts/upscale.py --base CONFIG.yaml --ckpt MODEL.ckpt --input PICTURES --output RESULTS

Without --base and --ckpt small demo weights are used, which come with this project: they run anywhere, and show how it
works rather than what the full model can do. A folder is searched with its subfolders; results that are there already
are left alone, so that the same command goes on where it was stopped. Exit status: 0, or 1 where some pictures of a
folder failed (they are listed at the end), 2 where nothing could be done, 130 after Ctrl-C.
"""

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, nothing installed

from basicsr.utils.errors import UserError
from ldm.console import OneLineParser, configure_logging, some_path
from ldm.inference.folder import Outcome, Wanted, check_output, list_jobs, upscale_files
from ldm.inference.networks import PRECISIONS
from ldm.inference.pipeline import DEFAULTS, DEMO_DEFAULTS, Upscaler
from ldm.inference.settings import MAX_FACTOR, MIN_TILE, UpscaleSettings


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    configure_logging("ldm.inference")
    try:
        return run(make_parser().parse_args(argv))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: finished pictures are kept; the same command goes on with the others", file=sys.stderr)
        return 130


def run(args: argparse.Namespace) -> int:
    """Check what can be checked at once, load the networks, upscale."""
    names = {field.name for field in fields(UpscaleSettings)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    settings = replace(DEFAULTS if args.base else DEMO_DEFAULTS, **given)
    wanted = Wanted(args.bits, args.save_edges, args.compare, args.overwrite)
    jobs = list_jobs(args.input, args.output)
    check_output(args.output)
    upscaler = Upscaler.from_checkpoint(
        args.base, args.ckpt, cfw_ckpt=args.cfw_ckpt, settings=settings, device=args.device, precision=args.precision
    )
    return report(upscale_files(upscaler, jobs, wanted, bars), args)


def report(outcome: Outcome, args: argparse.Namespace) -> int:
    """Say what was done and what failed; returns the exit status."""
    alone = len(outcome.failed) == 1 and not args.input.is_dir()
    for job, reason in outcome.failed:
        # Messages of the reader begin with the path already.
        told = reason if reason.startswith(str(job.source)) else f"{job.source}: {reason}"
        print(f"error: {told}", file=sys.stderr)
    counts = [
        f"{len(outcome.finished)} upscaled",
        f"{len(outcome.skipped)} skipped, finished before (--overwrite)",
        f"{len(outcome.failed)} failed",
    ]
    said = [words for words in counts if not words.startswith("0")] or counts[:1]
    if not alone:
        print(f"{', '.join(said)}; results: {args.output}")
    if not outcome.failed:
        return 0
    return 1 if outcome.finished or outcome.skipped else 2


def bars(name: str, parts: Iterable) -> Iterable:
    """One progress bar over the pictures, and below it one over what is done with the present one."""
    whole = name == "pictures"
    # A single picture needs no bar of its own. Where the output is no terminal there are none.
    hidden = True if whole and len(parts) == 1 else None  # type: ignore[arg-type]
    return tqdm(parts, desc=name, leave=False, position=0 if whole else 1, disable=hidden, dynamic_ncols=True)


def make_parser() -> OneLineParser:
    """The flags; those of `UpscaleSettings` are None where they are not given."""
    parser = OneLineParser("upscale.py", description=__doc__)
    add = parser.add_argument
    files = parser.add_argument_group("files").add_argument
    files("--input", type=some_path, required=True, metavar="PATH", help="a picture, or a folder of them")
    files(
        "--output",
        type=some_path,
        default=Path("results"),
        metavar="FOLDER",
        help="where results go (default: results)",
    )
    files("--base", metavar="YAML", help="the config that the checkpoint was trained with")
    files("--ckpt", metavar="FILE", help="the checkpoint: .ckpt or .safetensors")
    files("--cfw_ckpt", metavar="FILE", help="a second-stage autoencoder (CFW), for results closer to the input")
    files("--overwrite", action="store_true", help="redo finished pictures")
    files("--bits", type=int, default=8, metavar="8|16", help="bits per channel of the results, PNG (default: 8)")
    files("--save_edges", action="store_true", help="write the edge maps of input and result beside it")
    files("--compare", action="store_true", help="write a before/after strip beside it")
    add("--upscale", type=float, metavar="X", help=f"factor on the sides, 1 to {MAX_FACTOR} (default: 4)")
    add(
        "--steps",
        type=int,
        metavar="N",
        help=f"sampling steps; the turbo checkpoint needs 4 (default: "
        f"{DEFAULTS.steps}, with the demo weights {DEMO_DEFAULTS.steps})",
    )
    add("--sampler", metavar="NAME", help=f"ddpm or ddim (default: {DEFAULTS.sampler})")
    add("--eta", type=float, metavar="X", help="DDIM's noise, 0 (none, the default) to 1 (as much as DDPM)")
    add(
        "--start_t",
        type=int,
        metavar="T",
        help="start from step T of 999 instead of the last: lower is closer to the input",
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
        help="with --cfw_ckpt: 0 (the model's own result) to 1 (closest to the input) (default: 0.5)",
    )
    add(
        "--colorfix",
        metavar="NAME",
        help="take the colours from the input: adain, wavelet or none (default: "
        f"{DEFAULTS.colorfix}, with the demo weights {DEMO_DEFAULTS.colorfix})",
    )
    add(
        "--tile",
        type=_tile,
        metavar="auto|none|N",
        help=f"side of the tiles, pixels of the result, {MIN_TILE} or "
        "more; smaller needs less memory. auto (the default) is the size that the model was trained at; none takes the "
        "whole picture at once",
    )
    add("--tile_overlap", type=int, metavar="N", help="pixels that neighbouring tiles share (default: a third)")
    add(
        "--batch",
        type=int,
        metavar="N",
        help="tiles, or small pictures, that go through the network at once "
        f"(default: {DEFAULTS.batch}, with the demo weights {DEMO_DEFAULTS.batch})",
    )
    add("--seed", type=int, metavar="N", help="same seed, same result (default: 42)")
    add("--precision", default="fp32", metavar="NAME", help=f"{', '.join(PRECISIONS)} (default: fp32)")
    add("--device", default="auto", metavar="NAME", help="auto (the default), cpu, cuda, cuda:1")
    return parser


def _tile(word: str) -> int | str:
    return int(word) if word.lstrip("-").isdecimal() else word


if __name__ == "__main__":
    sys.exit(main())
