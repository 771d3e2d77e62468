"""A web page that upscales pictures: drop one in, choose, compare, download.

    make app        (or: pip install 'gradio>=6', then python scripts/app.py)

It can be opened from this machine only, unless --host says otherwise, and needs no network: nothing is sent anywhere,
no font or script is loaded from elsewhere, and pictures are deleted when it ends. Each visitor reaches their own
pictures alone. Without --base and --ckpt it uses the small demo weights that come with this project.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from basicsr.utils.errors import FieldError, UserError
from ldm.console import OneLineParser, configure_logging, say_error
from ldm.inference.cli import add_model, error_line

MAX_PIXELS = 4096 * 4096
MAX_FILE_SIZE = "200mb"
MAX_STORED = 4 * 10**9  # bytes of all uploads and results together
# Set before Gradio is imported: it counts its users, and asks for newer versions, unless told not to.
QUIET = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}


def main(argv: Sequence[str] | None = None) -> int:
    """Load the networks and serve the page until Ctrl-C; returns the exit status."""
    configure_logging("ldm.inference")  # which says what `--precision auto` and a missing config came to
    try:
        args = make_parser().parse_args(argv)
        if args.max_pixels < 1:
            raise FieldError("max_pixels", f"is {args.max_pixels}: give 1 or more")
        with TemporaryDirectory(prefix="stablesr-edge-") as folder:
            cache = Path(folder).resolve() / "cache"
            cache.mkdir()
            os.environ |= {**QUIET, "GRADIO_TEMP_DIR": str(cache)}
            try:
                import gradio  # noqa: F401 (whether it is there)
            except ModuleNotFoundError as error:
                raise UserError("the page needs Gradio: use make app, or pip install 'gradio>=6'") from error
            return serve(args, cache)
    except UserError as error:
        return say_error(error_line(error))


def serve(args: argparse.Namespace, cache: Path) -> int:
    """Serve the page; pictures are kept in `cache`."""
    import gradio as gr
    from starlette.middleware import Middleware

    from ldm.inference.choice import checkpoint_of
    from ldm.inference.guard import Guard, Visitors
    from ldm.inference.page import CSS, build
    from ldm.inference.pipeline import Upscaler
    from ldm.inference.service import Service

    upscaler = Upscaler.from_checkpoint(
        args.base,
        checkpoint_of(args),
        variant=args.variant,
        cfw_ckpt=args.cfw_ckpt,
        device=args.device,
        precision=args.precision,
    )
    where = "this machine" if args.host in ("127.0.0.1", "localhost", "::1") else "the machine that serves this page"
    visitors = Visitors(cache, MAX_STORED)
    service = Service(upscaler.networks, args.max_pixels)
    blocks = build(service, visitors, upscaler.settings, demo=args.base is None and args.ckpt is None, where=where)
    try:
        blocks.launch(
            server_name=args.host,
            server_port=args.port,
            share=False,
            max_file_size=MAX_FILE_SIZE,
            css=CSS,
            theme=gr.themes.Default(
                primary_hue="teal",
                neutral_hue="stone",
                font=["system-ui", "sans-serif"],
                font_mono=["ui-monospace", "monospace"],
            ),
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            quiet=True,
            prevent_thread_lock=True,
            app_kwargs={"middleware": [Middleware(Guard, visitors)]},
        )
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {args.host} --port {args.port}: the page cannot be served there ({error}); choose another port"
        ) from error
    sys.stdout.write(f"Open {blocks.local_url} in a browser; Ctrl-C ends the page\n")
    sys.stdout.flush()
    blocks.block_thread()
    return 0


def make_parser() -> OneLineParser:
    """The flags; see `upscale.py` for those that it has too."""
    parser = OneLineParser("app.py", description=__doc__)
    add_model(parser.add_argument_group("model"))
    add = parser.add_argument
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default: 127.0.0.1, this machine alone; 0.0.0.0 lets everybody in who can reach it)",
    )
    add("--port", type=int, metavar="N", help="(default: the first free one from 7860 on)")
    add(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"what a picture and its result may have at most (default: {MAX_PIXELS})",
    )
    return parser
