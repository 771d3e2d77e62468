"""Make the data that the second stage (CFW) trains on: config, checkpoint, pictures -> inputs, gts, latents, samples.

    python scripts/generate_cfw_data.py --base CONFIG.yaml --ckpt MODEL.ckpt --input PICTURES --output FOLDER

Pictures are cropped and degraded as in the config's training. The same command goes on where it was stopped; the files
depend neither on that nor on the number of processes. On several GPUs: --devices; on several machines: --nodes, started
on each by Slurm or torchrun. Without --base a checkpoint's shapes tell the config; without --ckpt, too, the demo
weights are used.

The published data are of 200 ancestral steps. With --steps 4 on a checkpoint made for it (turbo) they cost a fiftieth;
CFW then learns to mend that sampler's faults, so upscale with the same steps and sampler afterwards. Exit status: 0,
1 where pictures were left out, 2 where nothing could be done, 130 after Ctrl-C.
"""

import argparse
from collections.abc import Sequence

from basicsr.utils.retries import RETRIES
from ldm.console import OneLineParser, configure_logging, exit_status, path_argument
from ldm.inference.settings import PRECISION_CHOICES


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    configure_logging("ldm.inference")
    return exit_status(
        lambda: _run(make_parser().parse_args(argv)),
        interrupted="interrupted: finished samples are kept; the same command goes on with the others",
    )


def _run(args: argparse.Namespace) -> int:
    # Only now, so that --help and mistakes in the flags need not wait for torch.
    from ldm.inference.cfw_samples import run

    return run(args)


def make_parser() -> OneLineParser:
    """The flags."""
    parser = OneLineParser("generate_cfw_data.py", description=__doc__)
    add = parser.add_argument
    add("--base", metavar="YAML", help="the config that the checkpoint was trained with")
    add("--ckpt", metavar="FILE", help="the stage-1 checkpoint: a file, a folder, or hf://owner/name[/file]")
    add("--sd", metavar="FILE", help="Stable Diffusion 2.1, or a model tuned from it, where --ckpt is a module alone")
    add("--variant", metavar="NAME", help="without --base: 512, 768v or turbo, where a checkpoint may be any of them")
    add("--input", nargs="+", required=True, metavar="FOLDER", help="folders of good pictures, searched recursively")
    add("--output", type=path_argument, required=True, metavar="FOLDER", help="where inputs, gts, latents, samples go")
    add(
        "--repeats",
        type=int,
        default=1,
        metavar="N",
        help="samples of each picture, each cropped and degraded anew (1)",
    )
    add("--steps", type=int, default=200, metavar="N", help="sampling steps (200)")
    add("--sampler", default="ddpm", metavar="NAME", help="ddpm (ancestral), ddim, dpmpp or unipc (ddpm)")
    add("--seed", type=int, default=23, metavar="N", help="same seed, same files (23)")
    add("--batch", type=int, default=16, metavar="N", help="samples at once; halved where memory does not suffice (16)")
    add("--precision", default="fp32", metavar="NAME", help=f"of the U-Net: {', '.join(PRECISION_CHOICES)} (fp32)")
    add(
        "--devices", type=_devices, default="auto", metavar="auto|N", help="processes on this machine, one a GPU (auto)"
    )
    add("--nodes", type=int, default=1, metavar="N", help="machines, each of which runs this command (1)")
    add("--device", default="auto", metavar="NAME", help="of a single process: auto, cpu, cuda, cuda:1 (auto)")
    add(
        "--manifest",
        action="store_true",
        help="keep what is to do and what is done in OUTPUT/manifest, and go on by it",
    )
    add(
        "--retries",
        type=int,
        default=RETRIES,
        metavar="N",
        help=f"of reading a picture, where a disk or a network failed ({RETRIES})",
    )
    add("--workers", type=int, default=2, metavar="N", help="processes that degrade ahead, for each device (2)")
    return parser


def _devices(word: str) -> int | str:
    return int(word) if word != "auto" else word
