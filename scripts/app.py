"""A web page that upscales pictures: drop one in, choose, compare, download.

    make app        (or: pip install 'gradio>=6', then python scripts/app.py)

It can be opened from this machine only, unless --host says otherwise, and needs no network: nothing is sent anywhere,
no font or script is loaded from elsewhere, and pictures are deleted when it ends. Without --base and --ckpt it uses the
small demo weights that come with this project.
"""

import argparse
import html
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run from a clone, nothing installed
# Before Gradio is imported: it counts its users, and asks for newer versions, unless told not to.
os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_OFFLINE": "1"}

try:
    import gradio as gr
except ModuleNotFoundError:
    print("error: the page needs Gradio: use make app, or pip install 'gradio>=6'", file=sys.stderr)
    sys.exit(2)

from basicsr.utils.errors import UserError
from ldm.console import OneLineParser
from ldm.inference.networks import PRECISIONS
from ldm.inference.pipeline import Upscaler
from ldm.inference.service import LABELS, Job, Progress, Result, Service, StoppedError
from ldm.inference.settings import UpscaleSettings

log = logging.getLogger(__name__)

MAX_PIXELS = 4096 * 4096
MAX_FILE_SIZE = "200mb"
MAX_FACTOR = 8
PREVIEW = 1024  # pixels, of the longer side
STAGES = {"encoding": "tile", "sampling": "step", "decoding": "tile"}  # and what their parts are called
TITLE = "<h1>StableSR-Edge</h1><p>Makes a small or soft picture larger and sharper. Your picture stays on {where}.</p>"
DEMO_NOTE = """<p><b>These are the small demo weights.</b> They were trained on a CPU, on ten photographs with light
blur, noise and JPEG traces, to show how everything works. Expect crisper edges, not new detail. For the full model
start this page with <code>--base</code> and <code>--ckpt</code>.</p>"""
EMPTY = "<p class='quiet'>The result will appear here, beside the picture enlarged by plain bicubic interpolation.</p>"
CSS = """
.gradio-container { max-width: 1180px !important; margin: auto !important; }
.intro h1 { font-size: 1.6rem; margin: .6rem 0 .1rem; } .intro p { color: var(--body-text-color-subdued); margin: 0; }
.note p { border-left: 3px solid var(--primary-500); padding: .1rem .9rem; margin: 0; }
.quiet { color: var(--body-text-color-subdued); } .status p { margin: .3rem 0; }
.refused { border-left: 3px solid #c2410c; padding: .4rem .9rem; }
.track { height: 6px; border-radius: 3px; background: var(--neutral-200); overflow: hidden; }
.dark .track { background: var(--neutral-700); }
.track div { height: 100%; background: var(--primary-500); transition: width .3s; }
.track.unknown div { width: 30%; animation: sweep 1.6s ease-in-out infinite alternate; }
@keyframes sweep { from { margin-left: 0 } to { margin-left: 70% } }
"""


def handed_in(payload: Any) -> Path | None:
    """The file that a picture box was given, as it is: `gr.Image` would decode it, and fail where it is broken."""
    return None if payload is None or not payload.path else Path(payload.path)


class Page:
    """What the page's buttons do. Each browser tab has at most one job."""

    def __init__(self, service: Service, defaults: UpscaleSettings, options: Sequence[str]) -> None:
        self.service = service
        self.defaults = defaults
        self.options = options  # fields of UpscaleSettings, in the order in which the page hands over their values
        self.jobs: dict[str, Job] = {}

    def hand_in(self, file: Path | None) -> tuple[Any, ...]:
        """A new picture => its preview, its file where it can be used, the button, a status, no result, no download."""
        cleared = (gr.update(value=None, visible=False), gr.update(visible=False))
        try:
            if file is None:
                return None, None, gr.update(interactive=False), EMPTY, *cleared
            picture = self.service.open(file)
        except UserError as error:
            return None, None, gr.update(interactive=False), refused(error), *cleared
        preview = picture.to_pil()
        preview.thumbnail((PREVIEW, PREVIEW))
        shown = Path(mkdtemp(dir=self.service.folder)) / f"{file.stem}.png"
        preview.save(shown)
        height, width = picture.size
        ready = f"<p><b>{html.escape(file.name)}</b>, {width} × {height} pixels. Press Upscale.</p>"
        return shown, file, gr.update(interactive=True), ready, *cleared

    def upscale(self, file: Path | None, request: gr.Request, *values: Any) -> Iterator[tuple[Any, ...]]:
        """Upscale => status, the two buttons, slider, download; again and again until it is finished."""
        job = Job()
        if self.jobs.setdefault(request.session_hash, job) is not job:  # a second click, before the button was gone
            yield (gr.skip(),) * 5
            return
        running = (gr.update(visible=False), gr.update(visible=True))
        ended = (gr.update(visible=True), gr.update(visible=False))
        kept = (gr.skip(), gr.skip())
        try:
            if file is None:
                raise UserError("There is no picture yet; drop one into the box")
            settings = replace(self.defaults, **dict(zip(self.options, values, strict=True)))
            for news in self.service.run(file, settings, job):
                if isinstance(news, Progress):
                    yield status(news), *running, *kept
                    continue
                yield (
                    finished(news),
                    *ended,
                    gr.update(value=(str(news.before), str(news.after)), visible=True),
                    gr.update(value=str(news.after), visible=True),
                )
                shutil.rmtree(news.before.parent)  # Gradio has made copies
        except StoppedError:
            yield "<p>Stopped.</p>", *ended, *kept
        except UserError as error:
            yield refused(error), *ended, *kept
        except Exception:
            log.exception("an upscale failed")
            yield refused("Something went wrong that should not; the terminal of this page shows what"), *ended, *kept
        finally:
            self.jobs.pop(request.session_hash, None)

    def stop(self, request: gr.Request) -> None:
        """Stop the job of this tab, if there is one."""
        if job := self.jobs.get(request.session_hash):
            job.stop()


def refused(reason: object) -> str:
    """A sentence in a box."""
    return f"<p class='refused' role='alert'>{html.escape(str(reason))}.</p>"


def status(progress: Progress) -> str:
    """Progress in words and as a bar."""
    if progress.stage == "waiting":
        words, share = f"Waiting: {progress.total} before yours", 0.0
    else:
        share = progress.done / progress.total if progress.total else 0.0
        words = progress.stage.capitalize()
        if progress.stage in STAGES:
            words = f"{words} (part {[*STAGES].index(progress.stage) + 1} of {len(STAGES)})"
        if progress.total:
            words += f": {STAGES[progress.stage]} {min(progress.done + 1, progress.total)} of {progress.total}"
        if progress.seconds_left:
            words += f", about {duration(progress.seconds_left)} left in this part"
    bar = f"<div style='width: {share:.0%}'></div>" if share else "<div></div>"
    kind = "track" if share else "track unknown"
    return f"<div class='status' aria-live='polite'><p>{words}</p><div class='{kind}'>{bar}</div></div>"


def finished(result: Result) -> str:
    """The line above a result."""
    height, width = result.size
    return (
        f"<p><b>Finished:</b> {width} × {height} pixels in {duration(result.seconds)}. Drag the handle to compare: "
        "bicubic interpolation on its left, the result on its right.</p>"
    )


def duration(seconds: float) -> str:
    """Seconds, or minutes and seconds."""
    minutes, rest = divmod(max(1, round(seconds)), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def choices(defaults: UpscaleSettings, demo: bool, cfw: bool) -> dict[str, Any]:
    """The controls by the field of UpscaleSettings that they choose; only those that mean something here."""
    found = {
        "upscale": gr.Slider(
            1, MAX_FACTOR, defaults.upscale, step=0.5, label=LABELS["upscale"], info="How many times as wide and high"
        ),
        "steps": gr.Slider(
            1,
            50 if demo else 1000,
            defaults.steps,
            step=1,
            label=LABELS["steps"],
            info="More steps take longer"
            + (
                " and give more texture, true or not"
                if demo
                else "; 200 for the best result, 4 with the turbo checkpoint"
            ),
        ),
    }
    with gr.Accordion("More choices", open=False):
        found["sampler"] = gr.Radio(
            [("DDPM", "ddpm"), ("DDIM", "ddim")],
            value=defaults.sampler,
            label=LABELS["sampler"],
            info="How noise turns into a picture, step by step",
        )
        found["colorfix"] = gr.Radio(
            [("Match overall", "adain"), ("Match locally", "wavelet"), ("Leave", "none")],
            value=defaults.colorfix,
            label=LABELS["colorfix"],
            info="Take the colours from your picture (AdaIN, wavelet, or not at all)",
        )
        if not demo:
            found["guidance_scale"] = gr.Slider(
                1,
                15,
                defaults.guidance_scale,
                step=0.5,
                label=LABELS["guidance_scale"],
                info="Pull towards the prompt; 1 is off, more takes twice as long",
            )
            found["prompt"] = gr.Textbox(
                defaults.prompt, label=LABELS["prompt"], info="What the picture shows; may stay empty"
            )
            found["negative_prompt"] = gr.Textbox(
                defaults.negative_prompt, label=LABELS["negative_prompt"], info="What it should not look like"
            )
        if cfw:
            found["dec_w"] = gr.Slider(
                0,
                1,
                defaults.dec_w,
                step=0.05,
                label=LABELS["dec_w"],
                info="0: the model's own result; 1: closest to your picture (CFW)",
            )
        found["seed"] = gr.Number(
            defaults.seed,
            precision=0,
            minimum=0,
            label=LABELS["seed"],
            info="Same seed, same result; another one varies it",
        )
    return found


def build(service: Service, defaults: UpscaleSettings, demo: bool, where: str) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="StableSR-Edge", analytics_enabled=False, delete_cache=(3600, 12 * 3600)) as blocks:
        gr.HTML(TITLE.format(where=where), elem_classes="intro")
        if demo:
            gr.HTML(DEMO_NOTE, elem_classes="note")
        file = gr.State()
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    label="Your picture", sources=["upload", "clipboard"], buttons=[], height=300, elem_id="picture"
                )
                picture.preprocess = handed_in
                controls = choices(defaults, demo, service.networks.cfw is not None)
                go = gr.Button("Upscale", variant="primary", interactive=False, elem_id="go")
                stop = gr.Button("Stop", visible=False, elem_id="stop")
            with gr.Column(scale=3, min_width=300):
                shown = gr.HTML(EMPTY, elem_id="status")
                slider = gr.ImageSlider(
                    label="Bicubic | Result",
                    interactive=False,
                    visible=False,
                    max_height=620,
                    buttons=["fullscreen"],
                    elem_id="result",
                )
                download = gr.DownloadButton("Download PNG", visible=False, elem_id="download")
        page = Page(service, defaults, [*controls])
        handed = {"fn": page.hand_in, "inputs": picture, "outputs": [picture, file, go, shown, slider, download]}
        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        gr.on([picture.upload, picture.clear], **handed, **hidden)
        go.click(
            page.upscale,
            [file, *controls.values()],
            [shown, go, stop, slider, download],
            concurrency_limit=None,
            trigger_mode="once",
            **hidden,
        )
        stop.click(page.stop, queue=False, **hidden)
        blocks.unload(page.stop)  # the tab was closed
    return blocks


def main(argv: Sequence[str] | None = None) -> int:
    """Load the networks and serve the page until Ctrl-C; returns the exit status."""
    try:
        args = make_parser().parse_args(argv)
        with TemporaryDirectory(prefix="stablesr-edge-") as folder:
            os.environ["GRADIO_TEMP_DIR"] = str(Path(folder, "cache"))
            return serve(args, Path(folder))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def serve(args: argparse.Namespace, folder: Path) -> int:
    """Serve the page; pictures are kept in `folder`."""
    if args.max_pixels < 1:
        raise UserError(f"--max_pixels is {args.max_pixels}: give 1 or more")
    upscaler = Upscaler.from_checkpoint(
        args.base, args.ckpt, cfw_ckpt=args.cfw_ckpt, device=args.device, precision=args.precision
    )
    where = "this machine" if args.host in ("127.0.0.1", "localhost", "::1") else "the machine that serves this page"
    blocks = build(Service(upscaler.networks, folder, args.max_pixels), upscaler.settings, args.base is None, where)
    theme = gr.themes.Default(
        primary_hue="teal",
        neutral_hue="stone",
        font=["system-ui", "sans-serif"],
        font_mono=["ui-monospace", "monospace"],
    )
    try:
        blocks.launch(
            server_name=args.host,
            server_port=args.port,
            share=False,
            max_file_size=MAX_FILE_SIZE,
            css=CSS,
            theme=theme,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--host {args.host} --port {args.port}: the page cannot be served there ({error}); choose another port"
        ) from error
    print(f"Open {blocks.local_url} in a browser; Ctrl-C ends the page", flush=True)
    blocks.block_thread()
    return 0


def make_parser() -> OneLineParser:
    """The flags; see `upscale.py` for those that it has too."""
    parser = OneLineParser("app.py", description=__doc__)
    add = parser.add_argument
    add("--base", metavar="YAML", help="the config that the checkpoint was trained with")
    add("--ckpt", metavar="FILE", help="the checkpoint: .ckpt or .safetensors")
    add("--cfw_ckpt", metavar="FILE", help="a second-stage autoencoder (CFW), for results closer to the input")
    add(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where to listen (default: 127.0.0.1, this machine "
        "alone; 0.0.0.0 lets everybody in who can reach this machine)",
    )
    add("--port", type=int, metavar="N", help="(default: the first free one from 7860 on)")
    add(
        "--max_pixels",
        type=int,
        default=MAX_PIXELS,
        metavar="N",
        help=f"what a picture and its result may have at most (default: {MAX_PIXELS})",
    )
    add("--precision", default="fp32", metavar="NAME", help=f"{', '.join(PRECISIONS)} (default: fp32)")
    add("--device", default="auto", metavar="NAME", help="auto (the default), cpu, cuda, cuda:1")
    return parser


if __name__ == "__main__":
    sys.exit(main())
