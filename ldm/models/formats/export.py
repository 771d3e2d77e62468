"""Weights in the forms in which other people and programs take them, with what they are written beside them."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor

from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.files import OutputError, whole_file, write_whole
from ldm import shipped
from ldm.config import Config, load_config
from ldm.models.formats import diffusers_keys as keys
from ldm.models.formats.detect import config_of_run, header, own_config
from ldm.models.formats.diffusers_configs import folder_configs, tokenizer_files
from ldm.models.formats.diffusers_folder import ADDED, PARTS
from ldm.models.formats.files import read_content
from ldm.models.formats.reading import places, read_state_dict
from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder

State = Mapping[str, Tensor]
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
EDGE_KEYS = ("edge", "edge_")
# What the two public kinds of weights that a model may go back to are licensed under, by the hub's names.
SD_LICENCE, STABLESR_LICENCE = "openrail++", "other: NTU S-Lab License 1.0, non-commercial"


@dataclass(frozen=True)
class Options:
    """What to write: form, precision, and which of the weights.

    ema: the averages in place of the last weights; None: where there are any. trained_only: what training changed.
    without: prefixes of keys to leave out.
    """

    form: str = "safetensors"
    dtype: str = "fp16"
    ema: bool | None = None
    trained_only: bool = False
    without: Sequence[str] = ()


@dataclass(frozen=True)
class Weights:
    """A state dict and what is known about it: its config, and short facts such as its step."""

    state: State
    config: Config | None
    facts: Mapping[str, str] = field(default_factory=dict)

    def header(self) -> dict[str, str]:
        """What goes into the header of a safetensors file."""
        told = {"format": "pt", **self.facts}
        return told if self.config is None else {**told, "config": json.dumps(public_config(self.config))}


def gather(source: str, base: str | None = None, facts: Mapping[str, str] | None = None) -> Weights:
    """Read weights, with the config and facts that their file, or the folder of their run, tells.

    base: their config, where neither tells it. facts: further ones, which win.

    Raises:
        UserError: nothing there, or it cannot be read.
    """
    state = read_state_dict(source)
    (path,) = places(source)
    told = {key: value for key, value in header(path).items() if key not in ("config", "format")}
    run = config_of_run(path)
    config = load_config([base]) if base else load_config([run]) if run else own_config(path)
    if path.is_file() and isinstance(content := read_content(path), Mapping) and "global_step" in content:
        told["step"] = str(content["global_step"])
    if run and (settings := run.parent / "run.yaml").is_file():
        told["seed"] = str((yaml.safe_load(settings.read_text()) or {}).get("seed"))
    return Weights(state, config, {**told, **(facts_of(config) if config else {}), **(facts or {})})


def facts_of(config: Config) -> dict[str, str]:
    """What a config tells of weights: their edge options, what training started from, and the licence of that."""
    params: Mapping[str, Any] = config.get("model.params", {})
    edge = {key: value for key, value in params.items() if key.startswith(EDGE_KEYS)}
    facts = {"edge_options": json.dumps(edge)} if edge else {}
    start = params.get("ckpt_path")
    if start:
        start = start if isinstance(start, list) else [start]
        # Of a path only the file's name is anybody else's business.
        facts["base_model"] = ", ".join(each if each.startswith("hf:/") else Path(each).name for each in start)
        facts["licence"] = STABLESR_LICENCE if "stablesr" in facts["base_model"].lower() else SD_LICENCE
    return facts


def public_config(config: Config) -> dict[str, Any]:
    """What is needed to build and run the model again: no path but those of shipped weights, and no edge loss."""
    model = _without_paths(config.get("model", {}))
    params = {key: value for key, value in (model.get("params") or {}).items() if not key.startswith("edge_loss")}
    values = {"model": {"target": model.get("target"), "params": params}, "sf": config.get("sf", 4)}
    if (side := config.get("degradation.gt_size")) is not None:
        values["degradation"] = {"gt_size": side}
    if (steps := config.get("sampling_steps")) is not None:
        values["sampling_steps"] = steps
    return values


def _without_paths(node: Any) -> Any:
    if not isinstance(node, Mapping):
        return node
    return {key: _shipped(value) if key == "ckpt_path" else _without_paths(value) for key, value in node.items()}


def _shipped(path: Any) -> str | None:
    """The path as it is in every installation, where the file is one of those that come with this project."""
    root = shipped.root()
    inside = isinstance(path, str) and Path(path).is_absolute() and Path(path).is_relative_to(root / shipped.CONFIGS)
    return Path(path).relative_to(root).as_posix() if inside else None


def chosen(weights: Weights, options: Options) -> dict[str, Tensor]:
    """The tensors that the options mean, in their precision. The constants of the schedule stay as they are.

    Raises:
        FieldError: there are no averages, or a number that the precision cannot hold.
    """
    state = dict(weights.state)
    averages = {key: value for key, value in state.items() if key.startswith("model_ema.")}
    if options.ema and not averages:
        raise FieldError("ema", "is asked for, and the checkpoint holds no averages")
    for key in [key for key in state if averages and options.ema is not False and key.startswith("model.")]:
        state[key] = averages.get(f"model_ema.{key.removeprefix('model.').replace('.', '')}", state[key])
    left_out = ("model_ema.", "loss.", "edge_discriminator.", *options.without)
    trained = trained_part(weights.config)
    state = {
        key: value
        for key, value in state.items()
        if not key.startswith(left_out) and (trained(key) or not options.trained_only)
    }
    if not state:
        raise UserError("nothing is left to be written: the checkpoint holds none of the weights that are asked for")
    converted = {key: _converted(key, value, DTYPES[options.dtype]) for key, value in state.items()}
    if odd := next((key for key in state if not converted[key].isfinite().all() and state[key].isfinite().all()), None):
        raise FieldError("dtype", f"is {options.dtype}, which cannot hold the numbers of {odd}: use bf16 or fp32")
    return converted


def trained_part(config: Config | None) -> Callable[[str], bool]:
    """Whether training changes what a key names: what StableSR adds, and with `unfrozen_diff` the whole U-Net."""
    everything = bool(config and config.get("model.params.unfrozen_diff"))
    if everything:
        return lambda key: key.startswith(("model.diffusion_model.", "structcond_stage_model."))
    return lambda key: ".spade." in key or key.startswith("structcond_stage_model.") or ".fusion_layer" in key


def _converted(key: str, value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() and "." in key else value


def write(weights: Weights, options: Options, target: Path, card: str) -> list[Path]:
    """Write the weights in the form that the options name; `card` is the text of a folder's README.md.

    Raises:
        UserError: the target is there already, has a name that does not fit or cannot be written, or the weights are
            not those of this form.
    """
    if target.exists():
        raise UserError(f"{target} is there already; delete it first, or choose another name")
    state = chosen(weights, options)
    if options.form == "safetensors":
        _needs_suffix(target, ".safetensors")
        _save(state, target, weights.header())
        return [target]
    if options.form == "webui":
        _needs_suffix(target, ".ckpt")
        return _write_webui(state, weights.config, target)
    with whole_folder(target) as folder:
        (folder / "README.md").write_text(card)
        if options.form == "diffusers":
            _write_diffusers(state, weights, folder)
        else:
            _save(state, folder / "model.safetensors", weights.header())
            _write_json(folder / "config.json", _small_config(weights))
    return sorted(path for path in target.rglob("*") if path.is_file())


def _needs_suffix(target: Path, suffix: str) -> None:
    if target.suffix != suffix:
        raise UserError(f"{target} does not end with {suffix}, by which it is known as such: choose another name")


def _save(state: State, file: Path, told: Mapping[str, str]) -> None:
    with whole_file(file) as draft:
        save_file({key: value.contiguous() for key, value in state.items()}, draft, dict(told))


def _write_webui(state: State, config: Config | None, target: Path) -> list[Path]:
    """Flat dictionaries as the web UIs' extensions read them: a module, or CFW's autoencoder in two files."""
    if any(".fusion_layer" in key for key in state):
        cfw = {key: value for key, value in state.items() if ".fusion_layer" in key}
        parts = {"_cfw_only": cfw, "_vae_only": {key: value for key, value in state.items() if key not in cfw}}
        files = {target.with_stem(target.stem + end): part for end, part in parts.items() if part}
    else:
        module = {key: value for key, value in state.items() if "spade" in key or "structcond" in key}
        if not module:
            raise UserError("a web UI's module holds SPADE and structure weights, and this checkpoint has none")
        if config and config.get("model.params.unfrozen_diff"):
            raise UserError(
                "this run trained the whole U-Net (unfrozen_diff): a module, which leaves it out, cannot do"
            )
        files = {target: module}
    for file, part in files.items():
        with whole_file(file) as draft:
            torch.save(part, draft)
    return list(files)


def _write_diffusers(state: State, weights: Weights, folder: Path) -> None:
    """unet/, vae/, text_encoder/ and scheduler/ for stock diffusers, and stablesr/ with the rest."""
    config = weights.config
    if config is None:
        raise UserError("diffusers' form needs the config of the checkpoint: name it")
    absent = [name for name, (prefix, _) in PARTS.items() if not any(key.startswith(prefix) for key in state)]
    if absent:
        raise UserError(f"the checkpoint has no {' and no '.join(absent)}: diffusers' form needs a whole model")
    with torch.device("meta"):
        text = FrozenOpenCLIPEmbedder(**config.get("model.params.cond_stage_config.params", {}))
    for path, content in folder_configs(config, text).items():
        _write_json(folder / path, content)
    for name, lines in tokenizer_files(text.max_length).items():
        write_whole(folder / "tokenizer" / name, lines)
    networks: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
        "unet": keys.unet_to_diffusers,
        "vae": keys.vae_to_diffusers,
        "text_encoder": lambda part: keys.text_to_transformers(
            part, len(text.model.transformer.resblocks) - text.leave_out
        ),
    }
    for name, convert in networks.items():
        prefix = PARTS[name][0]
        part = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        file = "model.safetensors" if name == "text_encoder" else "diffusion_pytorch_model.safetensors"
        _save(convert(part), folder / name / file, {"format": "pt"})
    added = {
        key: value for key, value in state.items() if ".spade." in key or key.startswith("structcond_stage_model.")
    }
    _save(added, folder / ADDED / "model.safetensors", weights.header())
    _write_json(folder / ADDED / "config.json", _small_config(weights))


def _small_config(weights: Weights) -> dict[str, Any]:
    return {"library": "stablesr-edge", **weights.facts, **(public_config(weights.config) if weights.config else {})}


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A draft of a folder; it becomes `target` when the context ends well, and is gone where it does not.

    Raises:
        OutputError: no room, no permission, or the like.
    """
    draft = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        try:
            yield draft
            draft.rename(target)
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    except OSError as error:
        raise OutputError(target, error) from error
