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
import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from basicsr.utils.errors import FieldError, UserError, closest
from basicsr.utils.files import OutputError
from basicsr.utils.img_util import MAX_PIXELS
from basicsr.utils.retries import RETRIES
from ldm.console import (
    INTERRUPTED,
    OneLineParser,
    configure_logging,
    is_first_process,
    path_argument,
    say,
    say_error,
    tell,
)
from ldm.inference.settings import DEFAULTS, DEMO_DEFAULTS, MAX_FACTOR, MIN_TILE, PRECISIONS, Edges, UpscaleSettings

if TYPE_CHECKING:
    from ldm.inference.folder import Outcome
    from ldm.inference.share import Share

FLAGS = {"config": "base"}  # fields whose flag has another name


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    configure_logging("ldm.inference")
    if not is_first_process():
        logging.disable(logging.WARNING)
    try:
        return run(make_parser().parse_args(argv))
    except UserError as error:
        return say_error(error_line(error))
    except KeyboardInterrupt:
        return tell(
            "interrupted: finished pictures are kept; the same command goes on with the others", status=INTERRUPTED
        )


def error_line(error: UserError) -> str:
    """An error in the words of a command line: flags in place of fields."""
    if isinstance(error, FieldError):
        return f"--{FLAGS.get(error.field, error.field)} {error.problem}"
    return f"{error}; choose another --output" if isinstance(error, OutputError) else str(error)


def run(args: argparse.Namespace) -> int:
    """Check what can be checked at once, load the networks, upscale."""
    names = {field.name for field in fields(UpscaleSettings)}
    args.edges, edge_files = edges_of(args.edges)
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    if args.base and args.upscale is None:
        from ldm.config import load_config  # with torch: after mistakes in the flags

        given["upscale"] = load_config([args.base]).get("sf", DEFAULTS.upscale)
    if args.reference_range:
        given["reference_range"] = tuple(args.reference_range)
    replace(DEFAULTS if args.base else DEMO_DEFAULTS, **given)  # for its errors

    # Only now, so that --help and mistakes in the flags need not wait for torch.
    from ldm.inference.choice import checkpoint_of, choose
    from ldm.inference.folder import FileOptions, check_output, made_from, upscale_files
    from ldm.inference.pipeline import Upscaler
    from ldm.inference.share import Places, Share
    from ldm.inference.sharing import Team
    from ldm.inference.tiled_vae import no_progress

    options = FileOptions(
        bits=args.bits,
        edges=args.save_edges,
        compare=args.compare,
        overwrite=args.overwrite,
        max_pixels=args.max_pixels,
        retries=args.retries,
    )
    team = Team.of(args.devices, args.nodes, args.device)
    places = Places(args.input, args.output, edge_files, args.reference)
    share = Share.of(team, places, options, manifest=args.manifest)
    team.together(lambda: check_output(args.output))
    device = str(team.device) if team.size > 1 else args.device
    config, ckpt, defaults = team.together(lambda: choose(args.base, checkpoint_of(args), args.variant))
    settings = replace(defaults, **given)
    upscaler = team.together(
        lambda: Upscaler.from_checkpoint(
            config, ckpt, cfw_ckpt=args.cfw_ckpt, settings=settings, device=device, precision=args.precision
        )
    )
    options = replace(options, edges_told=args.save_edges and upscaler.networks.model.edge_condition is not None)
    team.together(lambda: share.check(made_from(upscaler, options)))
    progress = partial(progress_bars, processes=team.size) if team.first else no_progress
    outcome = upscale_files(upscaler, share.tasks, options, progress, share.done)
    parts = team.gathered((len(outcome.finished), len(outcome.skipped), failures(outcome)))
    return report([*parts, (0, share.finished_before, [])], args, share) if team.first else 0


def edges_of(word: str | None) -> tuple[str | None, "Path | Literal['beside'] | None"]:
    """The setting that --edges means, and where pictures of edges are: see `list_tasks`.

    Raises:
        FieldError: it is neither a setting nor a folder or file that is there.
    """
    if word is None or word in get_args(Edges):
        return word, "beside" if word == "file" else None
    if not Path(word).exists():
        near = closest(word, get_args(Edges))
        hint = f"did you mean {near}?" if near else f"give {', '.join(get_args(Edges))}, or where pictures of edges are"
        raise FieldError("edges", f"is {word}, which is not there: {hint}")
    return "file", Path(word)


def failures(outcome: "Outcome") -> list[str]:
    """A line for each picture that failed."""
    failed = [(task.source, error_line(error)) for task, error in outcome.failed]
    # Messages of the reader begin with the path already.
    return [reason if reason.startswith(str(source)) else f"{source}: {reason}" for source, reason in failed]


def report(parts: Sequence[tuple[int, int, list[str]]], args: argparse.Namespace, share: "Share") -> int:
    """Say how many were finished, were skipped, and what failed in each process; returns the exit status."""
    finished, skipped = sum(done for done, _, _ in parts), sum(left for _, left, _ in parts)
    failed = [line for _, _, lines in parts for line in lines]
    listed = f"; what failed: {file}" if (file := share.list_failures(failed)) else ""
    for line in failed:
        say("error: " + line.replace("\n", r"\n"), sys.stderr)
    counts = [
        f"{finished} upscaled",
        f"{skipped} skipped, finished before (--overwrite)",
        f"{len(failed)} failed",
    ]
    said = [words for words in counts if not words.startswith("0")] or counts[:1]
    if len(failed) != 1 or args.input.is_dir():
        say(f"{', '.join(said)}; results: {args.output}{listed}")
    if not failed:
        return 0
    return 1 if finished or skipped else 2


def progress_bars(name: str, parts: Iterable[Any], processes: int = 1) -> Iterable[Any]:
    """One progress bar over the pictures, and below it one over what is done with the present one.

    Of several processes this one shows it, and takes the others to be as quick.
    """
    from tqdm import tqdm

    parts = list(parts)
    whole = name == "pictures"
    # A single picture needs no bar of its own. Where the output is no terminal there are none.
    hidden = True if whole and len(parts) * processes == 1 else None
    bar: Iterable[Any] = tqdm(
        parts,
        desc=name,
        leave=False,
        position=0 if whole else 1,
        disable=hidden,
        dynamic_ncols=True,
        unit_scale=processes if whole and processes > 1 else False,
    )
    return bar


def make_parser() -> OneLineParser:
    """The flags; those of `UpscaleSettings` are None where they are not given."""
    parser = OneLineParser("upscale.py", description=__doc__)
    _add_files(parser.add_argument_group("files"))
    add_model(parser.add_argument_group("model"))
    settings = parser.add_argument_group("settings")
    _add_settings(settings)
    _add_conditions(settings)
    _add_reference(parser.add_argument_group("reference, for aligned faces"))
    return parser


def _add_files(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--input", type=path_argument, required=True, metavar="PATH", help="a picture, or a folder of them")
    add(
        "--output",
        type=path_argument,
        default=Path("results"),
        metavar="FOLDER",
        help="for the results (default: results)",
    )
    add("--overwrite", action="store_true", help="redo finished pictures")
    add("--bits", type=int, default=8, metavar="8|16", help="bits per channel of the results, PNG (default: 8)")
    add(
        "--save_edges",
        action="store_true",
        help="write the edge maps of input and result beside it, and the one that the model was told, if it was",
    )
    add("--compare", action="store_true", help="write a before/after strip beside it")
    _add_sharing(group)
    add(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"larger pictures are refused, for a small file can claim any size (default: {MAX_PIXELS})",
    )


def _add_sharing(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--devices", type=int, default=1, metavar="N", help="GPUs, or processes on the CPU, that share the pictures")
    add("--nodes", type=int, default=1, metavar="N", help="machines, each of which runs this command (default: 1)")
    add(
        "--manifest",
        action="store_true",
        help="for very many pictures: keep in OUTPUT/manifest what there is to do and what is done, and go on by that "
        "alone; inputs are listed again when a folder of theirs has changed. Without it every file is looked at",
    )
    add(
        "--retries",
        type=int,
        default=RETRIES,
        metavar="N",
        help=f"of reading a picture, where a disk or a network failed (default: {RETRIES})",
    )


def add_model(group: argparse._ArgumentGroup) -> None:
    """The flags that say which networks to load, and where."""
    add = group.add_argument
    add("--base", metavar="YAML", help="the config that the checkpoint was trained with (default: the one that fits)")
    add("--ckpt", metavar="FILE", help="the checkpoint: .ckpt or .safetensors, a folder, or hf://owner/name[/file]")
    add("--sd", metavar="FILE", help="Stable Diffusion 2.1, or a model tuned from it, where --ckpt is a module alone")
    add("--variant", metavar="NAME", help="without --base: 512, 768v or turbo, where a checkpoint may be any of them")
    add("--cfw_ckpt", metavar="FILE", help="a second-stage autoencoder (CFW), or the layers of CFW alone")
    choices = f"{', '.join(PRECISIONS)}, or auto: what the device does well"
    add("--precision", default="fp32", metavar="NAME", help=f"of the U-Net: {choices} (default: fp32)")
    add("--device", default="auto", metavar="NAME", help="auto (the default), cpu, cuda, cuda:1")


def default(field: str) -> str:
    """A setting's default, with the other one of the demo weights."""
    usual, demo = getattr(DEFAULTS, field), getattr(DEMO_DEFAULTS, field)
    return f"(default: {usual}, with the demo weights {demo})" if demo != usual else f"(default: {usual})"


def _add_settings(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--upscale",
        type=float,
        metavar="X",
        help=f"factor on the sides, 1 to {MAX_FACTOR} (default: the config's sf, with the demo weights "
        f"{DEMO_DEFAULTS.upscale})",
    )
    add("--steps", type=int, metavar="N", help=f"sampling steps; the turbo checkpoint needs 4 {default('steps')}")
    add(
        "--sampler",
        metavar="NAME",
        help=f"ddpm, ddim, or dpmpp or unipc for few steps {default('sampler')}",
    )
    add("--eta", type=float, metavar="X", help="DDIM's noise, 0 (none, the default) to 1 (as much as DDPM)")
    add(
        "--start_t",
        type=int,
        metavar="T",
        help="start at step T of 999 instead of the last: lower is closer to the input",
    )
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
        type=_number_or_word,
        metavar="auto|none|N",
        help=f"side of the tiles, pixels of the result, {MIN_TILE} or more; smaller needs less memory. auto (the "
        "default) is the size that the model was trained at; none takes the whole picture at once",
    )
    add("--tile_overlap", type=int, metavar="N", help="pixels that neighbouring tiles share (default: a third)")
    add(
        "--batch",
        type=_number_or_word,
        metavar="auto|N",
        help=f"tiles, or small pictures, that go through the network at once; auto: as many as fit {default('batch')}",
    )
    add("--seed", type=int, metavar="N", help=f"same seed, same result {default('seed')}")


def _add_conditions(group: argparse._ArgumentGroup) -> None:
    """The flags that say what a result is steered by."""
    add = group.add_argument
    add(
        "--start",
        metavar="NAME",
        help="from input (its latent, noised) or from noise alone; auto (the default) is input, but noise where edges "
        "become a picture",
    )
    add(
        "--edges",
        metavar="lq|none|file|PATH",
        help="for a model that sees edges: those of the input (lq, the default), none, or pictures of edges, white on "
        "black: NAME_edge.png beside each input (file), the same or NAME.png in a folder, or one file. Where edges "
        "become a picture, the input itself is the one of edges (input, the default there). dummy is a blank sheet",
    )
    add("--edge_scale", type=float, metavar="X", help="towards these edges, away from none (default: 1, no guidance)")
    add(
        "--guidance_scale",
        type=float,
        metavar="X",
        help="towards --prompt, away from --negative_prompt (default: 1, no guidance)",
    )
    add("--prompt", metavar="TEXT", help='(default: "")')
    add("--negative_prompt", metavar="TEXT", help='(default: "")')


def _add_reference(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--reference",
        type=path_argument,
        metavar="FOLDER|FILE",
        help="pictures of the same faces, aligned alike, by the inputs' names: results are drawn towards them",
    )
    rate, steps, (first, last) = DEFAULTS.reference_rate, DEFAULTS.reference_steps, DEFAULTS.reference_range
    add("--reference_rate", type=float, metavar="X", help=f"of a gradient step; 0.5 is all the way (default: {rate})")
    add("--reference_steps", type=int, metavar="N", help=f"gradient steps at each sampling step (default: {steps})")
    add(
        "--reference_range",
        type=int,
        nargs=2,
        metavar=("T", "T"),
        help=f"between which steps of 0 to 999, whatever --steps is (default: {first} {last})",
    )


def _number_or_word(word: str) -> int | str:
    return int(word) if word.lstrip("-").isdecimal() else word
