"""Loaded networks as a page of the hub: what `Upscaler.from_pretrained` reads."""

from dataclasses import replace
from pathlib import Path

from basicsr.utils import checks
from basicsr.utils.errors import UserError
from ldm.inference.networks import Networks
from ldm.models.formats.card import model_card
from ldm.models.formats.export import DTYPES, Options, Weights, facts_of, write


def save_page(networks: Networks, steps: int, folder: Path, dtype: str, repo_id: str) -> None:
    """Write model.safetensors, config.json and README.md to a new folder.

    steps: of sampling, which are kept with the weights. dtype: fp32, bf16 or fp16. repo_id: for the card's example.

    Raises:
        UserError: the folder is there or cannot be written, a dtype that cannot hold the weights, networks that no
            config is known of, or that have CFW, which a page has no place for.
    """
    if dtype not in DTYPES:
        raise checks.unknown("dtype", dtype, DTYPES)
    if networks.config is None:
        raise UserError("these networks were not built from a config, and nothing could be built from a page of them")
    if networks.cfw is not None:
        raise UserError("a page has no place for CFW: load the upscaler without cfw_ckpt, whose file goes by itself")
    config = replace(networks.config, values={**networks.config.values, "sampling_steps": steps})
    weights = Weights(networks.model.state_dict(), config, facts_of(config))
    write(weights, Options("hub-folder", dtype), folder, model_card(folder.name, weights.facts, repo_id))
