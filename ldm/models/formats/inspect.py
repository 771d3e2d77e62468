"""What a file of weights is: told from its keys, shapes and types, of which values are no part."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from ldm.config import load_config
from ldm.models.autoencoder import AutoencoderKLResi
from ldm.models.formats.detect import DEMO, VARIANTS, Shapes, expected_shapes, header, matching, sees_edges
from ldm.models.formats.diffusers_folder import holds_weights
from ldm.models.formats.files import read_content
from ldm.models.formats.reading import FROZEN, Source, named, places, read_state_dict

FIRST_STAGE = "first_stage_model."
# What a checkpoint may consist of, in the order of the table; a key belongs to the first that takes it.
PARTS: Mapping[str, Callable[[str], bool]] = {
    "SPADE layers": lambda key: ".spade." in key and key.startswith("model.diffusion_model."),
    "time-aware encoder": lambda key: key.startswith("structcond_stage_model."),
    "U-Net": lambda key: key.startswith("model.diffusion_model."),
    "text encoder": lambda key: key.startswith("cond_stage_model."),
    "CFW layers": lambda key: ".fusion_layer" in key,
    "autoencoder": lambda key: re.match(rf"({FIRST_STAGE})?((en|de)coder|(post_)?quant_conv)\.", key) is not None,
    "averages (EMA)": lambda key: key.startswith("model_ema."),
    "discriminator": lambda key: key.startswith(("loss.", "edge_discriminator.")),
    "else": lambda _: True,
}
STABLE_DIFFUSION = ("U-Net", "autoencoder", "text encoder")
ADDED = ("SPADE layers", "time-aware encoder")
# The width of what a U-Net attends to tells the family of Stable Diffusion.
CONTEXT = re.compile(r"model\.diffusion_model\..*\.attn2\.to_k\.weight")
FAMILIES = {768: "Stable Diffusion 1", 1024: "Stable Diffusion 2", 2048: "Stable Diffusion XL"}


@dataclass(frozen=True)
class Part:
    """A network, or a part of one: tensors and numbers in it, how many of which type, and what it lacks."""

    tensors: int
    parameters: int
    dtypes: Mapping[str, int]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Description:
    """What a file is, what is in it, and what it is of use for."""

    source: str
    kind: str
    form: str
    parts: Mapping[str, Part]
    says: Mapping[str, str]  # what it tells of itself: its step, its licence, …
    uses: Mapping[str, str]  # use -> "yes", or what is missing

    def __str__(self) -> str:
        return "\n".join(_lines(self))


def describe(source: Source) -> Description:
    """Tell what is at `source` by its keys and shapes.

    Raises:
        UserError: there is nothing there, or it cannot be read.
    """
    state = read_state_dict(source, values=False)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    config = matching(shapes)
    parts = _parts(state, _expected(shapes, config))
    paths = places(source)
    says = {key: value for path in paths for key, value in _says(path).items()}
    form, uses = ", ".join(map(_form, paths)), _uses(shapes, parts, config)
    return Description(named(source), _kind(shapes, parts, config), form, parts, says, uses)


def part_of(key: str) -> str:
    """The part of `PARTS` that a key belongs to."""
    return next(name for name, belongs in PARTS.items() if belongs(key))


def _parts(state: Mapping[str, Tensor], expected: Collection[str]) -> dict[str, Part]:
    keys: dict[str, list[str]] = {name: [] for name in PARTS}
    for key in state:
        keys[part_of(key)].append(key)
    missing: dict[str, list[str]] = {name: [] for name in PARTS}
    for key in expected:
        if key not in state:
            missing[part_of(key)].append(key)
    return {
        name: Part(
            len(inside),
            sum(state[key].numel() for key in inside),
            Counter(str(state[key].dtype).removeprefix("torch.") for key in inside),
            tuple(missing[name]),
        )
        for name, inside in keys.items()
        if inside
    }


def _expected(shapes: Shapes, config: str | None) -> set[str]:
    """The keys that the file's parts would have were they whole, as the matching shipped config has them."""
    if config is None and "decoder.conv_in.weight" not in shapes and not any(".fusion_layer" in key for key in shapes):
        return set()
    if config is None:
        return set(_autoencoder_with_cfw())
    keys = expected_shapes(config, edges=sees_edges(shapes))
    return {key for key in keys if not key.startswith(_without_effect(config))}


@cache
def _without_effect(config: str) -> tuple[str, ...]:
    """Of the text encoder's tensors, those that files in other layouts do without."""
    from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder

    params = load_config([config]).get("model.params.cond_stage_config.params", {})
    with torch.device("meta"):
        return tuple(f"cond_stage_model.{name}" for name in FrozenOpenCLIPEmbedder(**params).without_effect)


@cache
def _autoencoder_with_cfw() -> tuple[str, ...]:
    params = load_config([VARIANTS["512"]]).get("model.params.first_stage_config.params")
    with torch.device("meta"):
        network = AutoencoderKLResi(params["ddconfig"], {"target": "torch.nn.Identity"}, params["embed_dim"])
    return tuple(network.state_dict())


def _kind(shapes: Shapes, parts: Mapping[str, Part], config: str | None) -> str:
    has = parts.keys()
    size = (
        ""
        if config == VARIANTS["512"]
        else ", the demo's size"
        if config == DEMO
        else ", of a size that is not shipped"
    )
    edges = ", with edges as a condition (8 input channels)" if sees_edges(shapes) else ""
    variant = " for 512, 768v or turbo (the same keys and shapes)" if config == VARIANTS["512"] else ""
    if FROZEN in shapes:
        return f"what a run trained, without the rest (save_trainable_only){variant}{size}{edges}"
    if has >= {"U-Net", *ADDED}:
        return f"StableSR, stage 1{variant}{size}{edges}"
    if "U-Net" not in has and has & set(ADDED):
        return f"what StableSR adds to Stable Diffusion alone (a module){variant}{size}{edges}"
    if "U-Net" in has:
        width = next((shape[1] for key, shape in shapes.items() if CONTEXT.fullmatch(key)), 0)
        family = FAMILIES.get(width, "a diffusion model")
        which = " (2.1 base or 2.1 with v-prediction: the same keys and shapes)" if width == 1024 and config else ""
        return f"{family}{which}{size if width == 1024 else ', which this project has no use for'}"
    if "CFW layers" in has:
        return "a second-stage autoencoder (CFW)" if "autoencoder" in has else "the layers of CFW alone"
    if "autoencoder" in has:
        return "an autoencoder"
    return "a text encoder" if "text encoder" in has else "no model that this project knows"


def _uses(shapes: Shapes, parts: Mapping[str, Part], config: str | None) -> dict[str, str]:
    """What it may be given for, and what is missing for that."""

    def lacks(*names: str) -> list[str]:
        absent = [name for name in names if name not in parts]
        holes = [f"{len(parts[n].missing)} tensors of the {n}" for n in names if n in parts and parts[n].missing]
        return absent + holes

    def answer(missing: list[str], otherwise: str = "") -> str:
        return f"no: it lacks {', '.join(missing)}{otherwise}" if missing else "yes"

    module = not lacks(*ADDED)
    base = lacks(*STABLE_DIFFUSION)
    with_sd = "; with --sd STABLE_DIFFUSION yes" if module else ""
    own_autoencoder = config == DEMO and base == ["autoencoder"]
    uses = {
        "upscale --ckpt": "yes" if module and own_autoencoder else answer(lacks(*ADDED) + base, with_sd),
        "upscale --sd": answer(base),
        "upscale --cfw_ckpt": answer(lacks("CFW layers")),
        "ckpt_path of stage 1's training": answer(base),
        "ckpt_path of CFW's training": answer(lacks("autoencoder")),
    }
    if FROZEN in shapes:
        uses["upscale --ckpt"] = "yes, with the run's config, whose ckpt_path names the rest"
    return uses


def _says(path: Path) -> dict[str, str]:
    """What a file tells of itself beside its tensors."""
    if told := header(path):
        return {key: value for key, value in told.items() if key not in ("config", "format")}
    content = read_content(path) if path.is_file() else {}
    known = ("epoch", "global_step", "pytorch-lightning_version")
    return {key: str(content[key]) for key in known if key in content} if isinstance(content, Mapping) else {}


def _form(path: Path) -> str:
    if holds_weights(path):
        return "a folder of weights"
    kind = "safetensors" if _is_safetensors(path) else "PyTorch"
    return f"{kind}, {path.stat().st_size / 1e9:.2f} GB"


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{"


def _lines(found: Description) -> Iterator[str]:
    yield f"{found.source}: {found.kind}"
    yield f"  {found.form}"
    yield f"  {'part':20}{'tensors':>8}{'parameters':>14}  types"
    for name, part in found.parts.items():
        types = ", ".join(
            f"{dtype}" + (f" {count}" if len(part.dtypes) > 1 else "") for dtype, count in part.dtypes.items()
        )
        hole = f"; {len(part.missing)} missing, such as {part.missing[0]}" if part.missing else ""
        yield f"  {name:20}{part.tensors:>8}{part.parameters / 1e6:>12.2f} M  {types}{hole}"
    for key, value in found.says.items():
        yield f"  {key}: {value}"
    for use, answer in found.uses.items():
        yield f"  {use}: {answer}"
