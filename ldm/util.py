"""Build objects from `{target, params}` mappings, with errors that name the nearest thing that would have worked."""

import importlib
import inspect
import types
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from basicsr.utils.errors import FieldError, UserError, closest, did_you_mean
from ldm import published

# What YAMLs call main.NAME, by its home: in a clone main.py hands these on, and an installed package has no main.py.
MAIN = {
    "DataModuleFromConfig": "ldm.data.datamodule",
    "EdgeMonitorCallback": "ldm.training.callbacks.edge_monitor",
    "EdgeProbe": "ldm.training.callbacks.edge_probe",
    "ImageLogger": "ldm.training.callbacks.image_logger",
    "SampleMetrics": "ldm.training.callbacks.sample_metrics",
    "SkipNotFinite": "ldm.training.callbacks.skip_not_finite",
}


def get_obj_from_str(path: str) -> Any:
    """The class or function that a dotted name such as `ldm.models.autoencoder.AutoencoderKL` stands for.

    Raises:
        UserError: there is no such module, or nothing of that name in it.
    """
    if path in published.ABANDONED:
        raise UserError(f"target {path} {published.INSTEAD}")
    path = published.TARGETS.get(path, path)
    module_name, _, name = str(path).rpartition(".")
    if not module_name:
        raise UserError(f"target {path!r} is not a dotted name such as ldm.models.autoencoder.AutoencoderKL")
    if module_name == "main":
        module_name = MAIN.get(name, module_name)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # A package that the module itself imports may be the one that is missing: that is not a typing error.
        if not (error.name and (module_name == error.name or module_name.startswith(error.name + "."))):
            raise UserError(f"target {path}: {module_name} needs the package {error.name!r}: install it") from error
        raise UserError(f"target {path}: there is no module {error.name!r}{_near_module(error.name)}") from error
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise UserError(f"target {path}: module {module_name} has no {name!r}{did_you_mean(name, public)}")
    return getattr(module, name)


def _near_module(missing: str) -> str:
    """A hint with the nearest module beside the missing one, found without importing anything."""
    import pkgutil

    parent, _, last = missing.rpartition(".")
    search = importlib.import_module(parent).__path__ if parent else None
    near = closest(last, [found.name for found in pkgutil.iter_modules(search)])
    return f"; did you mean {'.'.join(filter(None, [parent, near]))!r}?" if near else ""


def check_arguments(
    build: Callable[..., Any], params: Mapping[str, Any], *, name: str, handed_over: Collection[str] = ()
) -> tuple[str, str] | None:
    """Compare `params` with the signature of `build`: None when they fit, else (the key at fault, what is wrong).

    Looks for names that the signature lacks, required names that are absent, and values whose type cannot fit a
    plain annotation (numbers, strings, lists, mappings); `handed_over` names arguments that come from elsewhere. The
    key is "" where a name is absent, and such as `edge.crop` within a block of options.
    """
    target = _name(build)
    try:
        signature = inspect.signature(build).parameters
        arguments = published.translated(target, params)
    except ValueError as error:
        if isinstance(error, FieldError):
            return error.field, f"{name}: {error}"
        return None  # some classes written in C tell no signature
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    named = {key: p for key, p in signature.items() if p.kind in kinds}
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.values())
    for key in arguments:
        if key not in named and not takes_any:
            known = {*named, *published.flat_names(target)}
            return str(key), f"{name} has no parameter {key!r}{did_you_mean(str(key), known)}"
    absent = [k for k, p in named.items() if p.default is p.empty and k not in arguments and k not in handed_over]
    if absent:
        return "", f"{name} needs {', '.join(map(repr, absent))}"
    hints = _type_hints(build)
    for key, value in arguments.items():
        if key in hints and (problem := _misfit(str(key), value, hints[key])):
            return str(key), f"{name} {problem}"
    for block, options in published.BLOCKS.get(target, {}).items():
        wrong = check_arguments(get_obj_from_str(options), arguments.get(block) or {}, name=name)
        if wrong:
            given = published.key_of_option(target, block, wrong[0], params)
            return given, wrong[1].replace(repr(wrong[0]), repr(given))
    return None


def instantiate_from_config(config: Mapping[str, Any], **handed_over: Any) -> Any:
    """Build `config["target"]` with `config["params"]`, plus arguments that only the caller knows.

    Raises:
        UserError: no target, an unknown one, or params that do not fit its constructor.
    """
    if not isinstance(config, Mapping) or "target" not in config:
        raise UserError(f"expected a mapping with a `target:` (and `params:`), got {config!r:.80}")
    build = get_obj_from_str(config["target"])
    params = {**(config.get("params") or {}), **handed_over}
    if wrong := check_arguments(build, params, name=config["target"]):
        raise UserError(wrong[1])
    return build(**published.translated(_name(build), params))


def _name(build: Any) -> str:
    """The full name of a class or function, as `published` calls it."""
    return f"{getattr(build, '__module__', '')}.{getattr(build, '__qualname__', '')}"


def _type_hints(build: Callable[..., Any]) -> dict[str, Any]:
    try:
        function = getattr(build, "__init__") if isinstance(build, type) else build  # noqa: B009
        return get_type_hints(function, include_extras=True)
    except Exception:  # an annotation that cannot be evaluated says nothing about the value
        return {}


def _misfit(key: str, value: Any, hint: Any) -> str:
    """Why a value from YAML may not stand where `hint` is annotated; "" where it may.

    The extras of an `Annotated` hint are parsers, which raise FieldError for what they do not take.
    """
    for parse in getattr(hint, "__metadata__", ()):
        try:
            parse(value)
        except FieldError as error:
            return f"{key!r} {error.problem}"
    if get_origin(hint) is not Annotated and not _fits(value, hint):
        return f"takes {_in_words(hint)} for {key!r}, not {value!r}"
    return ""


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value from YAML may stand where `hint` is annotated; True for every hint that is not plain data."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str, types.NoneType):
        return isinstance(value, hint)
    container = origin or hint
    if container in (list, tuple, Sequence):
        if not isinstance(value, (list, tuple)):
            return False
        element = [arg for arg in args if arg is not Ellipsis]
        return len(element) != 1 or all(_fits(item, element[0]) for item in value)
    if container in (dict, Mapping):
        return isinstance(value, Mapping)
    return True


def _in_words(hint: Any) -> str:
    """`int | None` -> "int or None"."""
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(_in_words(arg) for arg in get_args(hint))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    if get_origin(hint) is None:
        return "None" if hint is types.NoneType else getattr(hint, "__name__", str(hint))
    return str(hint).replace("collections.abc.", "")
