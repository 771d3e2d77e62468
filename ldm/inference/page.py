"""The page's controls and what its buttons do, in Gradio; `ldm/inference/app.py` serves it."""

import html
import logging
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import gradio as gr

from basicsr.utils.errors import UserError
from ldm.inference.guard import COOKIE, Visitors
from ldm.inference.service import LABELS, BeforeAndAfter, Service, Stop, StoppedError, friendly_errors
from ldm.inference.settings import UpscaleSettings

log = logging.getLogger(__name__)

MAX_FACTOR = 8
UNITS = {"encoding": "tiles", "sampling": "steps", "decoding": "tiles"}  # what each stage counts
PREVIEW = 1024  # pixels, of the longer side
TITLE = "<h1>StableSR-Edge</h1><p>Makes a small or soft picture larger and sharper. Your picture stays on {where}.</p>"
DEMO_NOTE = """<p><b>These are the small demo weights.</b> They were trained on a CPU, on some forty photographs with
light blur, noise and JPEG traces, to show how everything works. Expect crisper edges, not new detail. For the full
model start this page with <code>--base</code> and <code>--ckpt</code>.</p>"""
EMPTY = "<p class='quiet'>The result will appear here, beside the picture enlarged by plain bicubic interpolation.</p>"
CSS = """
.gradio-container { max-width: 1180px !important; margin: auto !important; }
.intro h1 { font-size: 1.6rem; margin: .6rem 0 .1rem; } .intro p { color: var(--body-text-color-subdued); margin: 0; }
.note p { border-left: 3px solid var(--primary-500); padding: .1rem .9rem; margin: 0; }
.quiet { color: var(--body-text-color-subdued); } .status p { margin: .3rem 0; }
.refused { border-left: 3px solid #c2410c; padding: .4rem .9rem; }
"""


def uploaded_path(payload: Any) -> str | None:
    """The path that a picture box was given, as it is: `gr.Image` would decode it, and fail where it is broken."""
    return None if payload is None or not payload.path else str(payload.path)


class Page:
    """What the page's buttons do. Each session (a tab of a browser) has at most one upscale."""

    def __init__(self, service: Service, visitors: Visitors, defaults: UpscaleSettings, options: Sequence[str]) -> None:
        self.service = service
        self.visitors = visitors
        self.defaults = defaults
        self.options = options  # fields of UpscaleSettings, in the order in which the page hands over their values
        self.stops: dict[str, Stop] = {}
        self.made: dict[str, list[Path]] = {}  # folders of previews and results, by session

    def hand_in(self, path: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A new picture => its preview, its file where it can be used, the button, a status, no result, no download.

        And no edges that were told, where the model sees any.
        """
        cleared = [gr.update(value=None, visible=False), gr.update(visible=False)]
        cleared += [gr.update(value=None, visible=False)] * sees_edges(self.service)
        nothing = (None, None, gr.update(interactive=False))
        if path is None:
            return *nothing, EMPTY, *cleared
        try:
            shown, file, (height, width) = self._opened(path, request)
        except UserError as error:
            return *nothing, refused(error), *cleared
        ready = f"<p><b>{html.escape(file.name)}</b>, {width} × {height} pixels. Press Upscale.</p>"
        return shown, file, gr.update(interactive=True), ready, *cleared

    def hand_in_edges(self, path: str | None, request: gr.Request) -> tuple[Any, ...]:
        """A new picture of edges, or none => its preview, its file where it can be used, a status."""
        if path is None:
            return None, None, gr.skip()
        try:
            shown, file, _ = self._opened(path, request)
        except UserError as error:
            return None, None, refused(error)
        return shown, file, f"<p><b>{html.escape(file.name)}</b> are the edges. Press Upscale.</p>"

    def _opened(self, path: str, request: gr.Request) -> tuple[Path, Path, tuple[int, int]]:
        """What was handed in => its preview's file, its own, height and width. Raises UserError as a sentence."""
        visitor = request.cookies.get(COOKIE, "")
        if not self.visitors.owns(visitor, path):  # whatever was sent in its place
            raise UserError("That picture was not handed in here")
        file = Path(path)
        picture = self.service.open(file)
        preview = picture.to_pil()
        preview.thumbnail((PREVIEW, PREVIEW))
        place = self.visitors.place(visitor)
        place.mkdir(parents=True, exist_ok=True)
        shown = Path(mkdtemp(dir=place)) / f"{file.stem}.png"
        preview.save(shown)
        self.made.setdefault(str(request.session_hash), []).append(shown.parent)
        return shown, file, picture.size

    def begin(self, request: gr.Request) -> tuple[Any, ...]:
        """The button was pressed => the two buttons, a status."""
        self.stops.setdefault(str(request.session_hash), Stop())
        return gr.update(visible=False), gr.update(visible=True), "<p>Upscaling, or waiting for its turn.</p>"

    def upscale(
        self,
        file: Path | None,
        edges: Path | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 (how Gradio hands one over)
        *values: Any,
    ) -> tuple[Any, ...]:
        """Upscale => status, slider, download, and the edges that the model was told, where it sees any."""
        session = str(request.session_hash)
        kept = (gr.skip(),) * (2 + sees_edges(self.service))
        stop = self.stops.setdefault(session, Stop())
        try:
            if file is None:
                raise UserError("There is no picture yet; drop one into the box")
            with friendly_errors(file):
                settings = replace(self.defaults, **dict(zip(self.options, values, strict=True)))
            made = self.service.upscale(
                file,
                settings,
                self.visitors.place(request.cookies.get(COOKIE, "")),
                stop,
                lambda stage, parts: progress.tqdm(list(parts), desc=stage.capitalize(), unit=UNITS[stage]),
                edges=edges,
            )
        except StoppedError:
            return "<p>Stopped.</p>", *kept
        except UserError as error:
            return refused(error), *kept
        except Exception:
            log.exception("an upscale failed")
            return refused("Something went wrong that should not; the terminal of this page shows what"), *kept
        self.made.setdefault(session, []).append(made.after.parent)
        return (
            finished(made),
            gr.update(value=(str(made.before), str(made.after)), visible=True),
            gr.update(value=str(made.after), visible=True),
            *([] if made.told is None else [gr.update(value=str(made.told), visible=True)]),
        )

    def end(self, request: gr.Request) -> tuple[Any, ...]:
        """The upscale has ended => the two buttons."""
        self.stops.pop(str(request.session_hash), None)
        return gr.update(visible=True), gr.update(visible=False)

    def stop(self, request: gr.Request) -> tuple[Any, ...]:
        """Stop the upscale of this session, where there is one, also while it waits => the two buttons, a status."""
        if stop := self.stops.pop(str(request.session_hash), None):
            stop.set()
        return gr.update(visible=True), gr.update(visible=False), "<p>Stopped.</p>"

    def leave(self, request: gr.Request) -> None:
        """The tab was closed: nothing of it is kept."""
        self.stop(request)
        for folder in self.made.pop(str(request.session_hash), []):
            shutil.rmtree(folder, ignore_errors=True)


def sees_edges(service: Service) -> bool:
    """Whether the page's model is told edges."""
    return service.networks.model.edge_condition is not None


def refused(reason: object) -> str:
    """A sentence in a box."""
    return f"<p class='refused' role='alert'>{html.escape(str(reason))}.</p>"


def finished(made: BeforeAndAfter) -> str:
    """The line above a result."""
    height, width = made.size
    minutes, seconds = divmod(max(1, round(made.seconds)), 60)
    took = f"{minutes} min {seconds} s" if minutes else f"{seconds} s"
    return (
        f"<p><b>Finished:</b> {width} × {height} pixels in {took}. Drag the handle to compare: bicubic interpolation "
        "on its left, the result on its right.</p>"
    )


def choices(defaults: UpscaleSettings, *, demo: bool, cfw: bool) -> dict[str, Any]:
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
        found |= more_choices(defaults, demo=demo, cfw=cfw)
    return found


def more_choices(defaults: UpscaleSettings, *, demo: bool, cfw: bool) -> dict[str, Any]:
    """The controls that most people leave as they are."""
    found: dict[str, Any] = {}
    found["sampler"] = gr.Radio(
        [("DDPM", "ddpm"), ("DDIM", "ddim"), ("DPM-Solver++", "dpmpp"), ("UniPC", "unipc")],
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
    if defaults.edges != "none":  # what a model that sees none is told
        found |= edge_choices(defaults)
    found["seed"] = gr.Number(
        defaults.seed,
        precision=0,
        minimum=0,
        label=LABELS["seed"],
        info="Same seed, same result; another one varies it",
    )
    return found


def edge_choices(defaults: UpscaleSettings) -> dict[str, Any]:
    """The controls of a model that sees edges."""
    own = ("Your picture is one of edges", "input")
    found = [("Those of your picture", "lq"), ("None", "none")]
    return {
        "edges": gr.Radio(
            [own, *found] if defaults.edges == "input" else found,
            value=defaults.edges,
            label=LABELS["edges"],
            info="What the model is told, unless you give it a picture of edges",
        ),
        "edge_scale": gr.Slider(
            0,
            10,
            defaults.edge_scale,
            step=0.5,
            label=LABELS["edge_scale"],
            info="1 is off, more follows them more closely and takes twice as long, 0 leaves them out",
        ),
    }


def build(service: Service, visitors: Visitors, defaults: UpscaleSettings, *, demo: bool, where: str) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="StableSR-Edge", analytics_enabled=False, delete_cache=(3600, 12 * 3600)) as blocks:
        gr.HTML(TITLE.format(where=where), elem_classes="intro")
        if demo:
            gr.HTML(DEMO_NOTE, elem_classes="note")
        file, edge_file = gr.State(), gr.State()
        edgy = sees_edges(service)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    label="Your picture", sources=["upload", "clipboard"], buttons=[], height=300, elem_id="picture"
                )
                picture.preprocess = uploaded_path
                drawn = gr.Image(
                    label="Its edges, white on black (if you have drawn some)", sources=["upload", "clipboard"],
                    buttons=[], height=180, elem_id="edges", visible=edgy,
                )  # fmt: skip
                drawn.preprocess = uploaded_path
                controls = choices(defaults, demo=demo, cfw=service.networks.cfw is not None)
                go = gr.Button("Upscale", variant="primary", interactive=False, elem_id="go")
                stop = gr.Button("Stop", visible=False, elem_id="stop")
            with gr.Column(scale=3, min_width=300):
                shown = gr.HTML(EMPTY, elem_id="status", min_height=60)
                slider = gr.ImageSlider(
                    label="Bicubic | Result", interactive=False, visible=False, max_height=620,
                    buttons=["fullscreen"], elem_id="result",
                )  # fmt: skip
                told = gr.Image(
                    label="The edges that the model was told", interactive=False, visible=False, height=300,
                    elem_id="told",
                )  # fmt: skip
                download = gr.DownloadButton("Download PNG", visible=False, elem_id="download")
        page = Page(service, visitors, defaults, [*controls])
        private, hidden = {"api_visibility": "private"}, {"show_progress": "hidden", "api_visibility": "private"}
        edges_shown = [told] if edgy else []
        preview = [picture, file, go, shown, slider, download, *edges_shown]
        gr.on([drawn.upload, drawn.clear], page.hand_in_edges, drawn, [drawn, edge_file, shown], **hidden)
        gr.on([picture.upload, picture.clear], page.hand_in, picture, preview, **hidden)
        begun = go.click(page.begin, None, [go, stop, shown], trigger_mode="once", **hidden)
        # Gradio's queue lets one upscale run, and tells the others how many are before them.
        upscale = begun.then(
            page.upscale,
            [file, edge_file, *controls.values()],
            [shown, slider, download, *edges_shown],
            show_progress_on=shown,
            **private,
        )
        upscale.then(page.end, None, [go, stop], **hidden)
        stop.click(page.stop, None, [go, stop, shown], cancels=[upscale], **hidden)
        blocks.unload(page.leave)
    return blocks
