"""Which config, checkpoint and default settings an upscaler is to have, from what its user gives."""

import argparse
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from basicsr.utils.errors import FieldError
from ldm.config import Config
from ldm.inference.networks import demo_files
from ldm.inference.settings import DEFAULTS, DEMO_DEFAULTS, UpscaleSettings
from ldm.models.formats.detect import detect
from ldm.models.formats.reading import Source

log = logging.getLogger(__name__)


def choose(
    config: Source | Config | None, ckpt: Source | None, variant: str | None = None
) -> tuple[str | Path | Config, Source, UpscaleSettings]:
    """Complete a config and a checkpoint: with neither, the demo's; with a checkpoint alone, the config that fits it.

    A checkpoint may also stand in the config's place. For `variant` see `detect`.

    Raises:
        FieldError: a config without a checkpoint, or a variant where it decides nothing.
        UserError: see `detect`.
    """
    if ckpt is None and config is not None and not _is_config(config):
        config, ckpt = None, config
    if variant is not None and (config is not None or ckpt is None):
        raise FieldError("variant", "is given without need: a config says it, and so do the demo's files; leave it out")
    if ckpt is None:
        if config is not None:
            raise FieldError(
                "ckpt",
                "is not given: a config was given, and the two belong together; give the checkpoint that was trained "
                "with it, or neither for the demo weights",
            )
        return *demo_files(), DEMO_DEFAULTS
    if isinstance(config, (str, Path, Config)):
        return config, ckpt, DEFAULTS
    found = detect(ckpt, variant)
    log.info("config: %s", found.how)
    defaults = DEMO_DEFAULTS if found.is_demo else DEFAULTS
    return found.config, ckpt, replace(defaults, steps=found.steps) if found.steps else defaults


def checkpoint_of(args: argparse.Namespace) -> str | list[str] | None:
    """What --ckpt and --sd name together."""
    if args.sd is not None and args.ckpt is None:
        raise FieldError("sd", "is given without --ckpt: name the module, or another checkpoint of StableSR, there")
    ckpt: str | None = args.ckpt
    return ckpt if args.sd is None or ckpt is None else [args.sd, ckpt]


def _is_config(given: Source | Config) -> bool:
    several = isinstance(given, Sequence) and not isinstance(given, str)
    return isinstance(given, Config) or (not several and Path(str(given)).suffix in (".yaml", ".yml"))
