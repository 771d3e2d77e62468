"""Write weights in the forms in which other people and programs take them.

    stablesr-edge export logs/RUN/checkpoints/last.ckpt WEIGHTS.safetensors
    stablesr-edge export logs/RUN/checkpoints/last.ckpt FOLDER --format hub-folder --report REPORT --push owner/name

safetensors: one file, with config, step, seed, edge options, base model and licence in its header. hub-folder: the same
as a page of the hub, with a model card; Upscaler.from_pretrained reads it. diffusers: unet/, vae/, text_encoder/ and
scheduler/ as diffusers loads them, and stablesr/ with the rest. webui: the module that the web UIs' extensions load, a
.ckpt; of a CFW checkpoint, its two files. The config is that of the run's folder or of the file's header, or --base.
"""

import argparse
from collections.abc import Sequence

from basicsr.utils.errors import FieldError
from ldm.console import OneLineParser, configure_logging, exit_status, path_argument, say

FORMS = ("safetensors", "diffusers", "hub-folder", "webui")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    configure_logging("ldm.models.formats", "ldm.exchange")
    return exit_status(lambda: run(make_parser().parse_args(argv)), interrupted="interrupted: nothing was written")


def run(args: argparse.Namespace) -> int:
    """Read, write, and bring it to the hub where that is asked for."""
    if args.push and args.format not in ("diffusers", "hub-folder"):
        raise FieldError("push", f"goes with --format hub-folder or diffusers, not with {args.format}")

    # Only now, so that --help and mistakes in the flags need not wait for torch.
    from ldm.evaluation.report.summary import load_report
    from ldm.exchange.figures import figures
    from ldm.models.formats import hub
    from ldm.models.formats.card import model_card
    from ldm.models.formats.export import Options, gather, write

    if args.push:
        hub.parse(f"hf://{args.push}")
        hub.client()
    report = load_report(args.report) if args.report else None
    facts = {key: value for key in ("licence", "base_model") if (value := getattr(args, key)) is not None}
    weights = gather(args.source, args.base, facts)
    options = Options(args.format, args.dtype, args.ema, args.trained_only, tuple(args.without))
    measured = figures(report, weights.facts) if report else ""
    card = model_card(args.target.name, weights.facts, args.push or "OWNER/NAME", measured)
    for file in write(weights, options, args.target, card):
        say(f"{file}: {file.stat().st_size / 1e6:.2f} MB")
    if args.push:
        say(hub.push(args.target, args.push, private=args.private))
    return 0


def make_parser() -> OneLineParser:
    """The flags."""
    parser = OneLineParser("stablesr-edge export", description=__doc__)
    add = parser.add_argument
    add("source", help="a checkpoint: a file, a folder, or hf://owner/name[/file]")
    add("target", type=path_argument, help="the file or folder to write, which is not there yet")
    add("--format", choices=FORMS, default="safetensors", help="default: safetensors")
    add("--dtype", choices=("fp32", "fp16", "bf16"), default="fp16", help="default: fp16")
    add("--ema", action=argparse.BooleanOptionalAction, help="the averaged weights (default: where there are any)")
    add("--trained-only", action="store_true", help="leave out what training did not change")
    add("--without", nargs="+", default=[], metavar="PREFIX", help="key prefixes to leave out")
    add("--base", metavar="YAML", help="the config of the checkpoint, where nothing else tells it")
    add("--licence", metavar="NAME", help="such as openrail++ (default: by the base model; see the README)")
    add("--base_model", metavar="NAME", help="what training started from (default: by the config)")
    add("--report", type=path_argument, metavar="FOLDER", help="an evaluation, whose figures go into the model card")
    add("--push", metavar="OWNER/NAME", help="bring the folder to this page of the hub, which is made if need be")
    add("--private", action="store_true", help="make that page a private one")
    return parser
