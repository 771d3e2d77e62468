"""From a config's `model:` block to a model: the one place where one is built."""

from collections.abc import Mapping
from typing import Any

from basicsr.utils.errors import FieldError, UserError, fields_named
from ldm.config import Config
from ldm.models.diffusion.checkpoint import FROZEN
from ldm.models.diffusion.frozen_parts import build_with
from ldm.models.formats.reading import Source, config_value, named, read_state_dict
from ldm.models.initial_values import from_file_if_whole
from ldm.util import instantiate_from_config

FIRST_STAGE = "first_stage_model."
# What the keys of a whole stage-1 checkpoint have in them; Stable Diffusion's lacks the first two.
PARTS = (".spade.", "structcond_stage_model.", "cond_stage_model.", FIRST_STAGE)


def build_model(config: Config, *, ckpt: Source | None = None, learning_rate: float | None = None) -> Any:
    """The model that `model.target` names, with `model.params`; `base_learning_rate` beside them is the caller's.

    Args:
        config: a merged config.
        ckpt: a checkpoint of this very model, or several that make one up, in place of the one to start training from.
            Nothing in it is ignored, and the autoencoder's own file is read only where it leaves the autoencoder out.
            One that leaves out all that is frozen needs the files that the training began with.
        learning_rate: the model's, None for its default.

    Raises:
        UserError: no such target, params that do not fit it, or a checkpoint that does not fit the model.
    """
    block: Mapping[str, Any] = config.get("model", {})
    params = dict(block.get("params") or {})
    if ckpt is not None:
        held = read_state_dict(ckpt, values=False)
        if FROZEN in held:
            return build_with(lambda: build_model(config, learning_rate=learning_rate), params.get("ckpt_path"), ckpt)
        params |= {"ckpt_path": config_value(ckpt), "ignore_keys": [FIRST_STAGE]}
        first_stage = params.get("first_stage_config") or {}
        if any(key.startswith(FIRST_STAGE) for key in held):
            own = {**(first_stage.get("params") or {}), "ckpt_path": None}
            params |= {"first_stage_config": {**first_stage, "params": own}, "ignore_keys": []}
        elif (first_stage.get("params") or {}).get("ckpt_path") is None:
            place = config.place(("model", "params", "first_stage_config"))
            raise UserError(
                f"{named(ckpt)} holds no autoencoder, and {place} names none: give the config that it was trained with "
                "(--base), or name one there as params.ckpt_path"
            )
    if learning_rate is not None:
        if "learning_rate" in params:
            raise FieldError("model.params.learning_rate", "is not a key of a config: set model.base_learning_rate")
        params["learning_rate"] = learning_rate
    with fields_named(lambda field: f"model.params.{field}"):
        described = {"target": block.get("target"), "params": params}
        if "unet_config" in params and params.get("ckpt_path") is not None:
            keys = read_state_dict(params["ckpt_path"], values=False)
            if all(any(part in key for key in keys) for part in PARTS):
                return from_file_if_whole(lambda: instantiate_from_config(described))
        return instantiate_from_config(described)
