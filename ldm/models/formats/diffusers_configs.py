"""The small JSON files of diffusers' layout: what tells diffusers and transformers which networks to build."""

import json
from collections.abc import Mapping
from typing import Any, cast

from basicsr.utils.errors import FieldError
from ldm.config import Config
from ldm.modules.diffusionmodules.model import DDConfig
from ldm.modules.encoders.modules import CausalSelfAttention, FrozenOpenCLIPEmbedder
from ldm.modules.encoders.tokenizer import END, START, VOCAB_SIZE, merges, vocabulary

PREDICTIONS = {"eps": "epsilon", "v": "v_prediction", "x0": "sample"}
Json = dict[str, Any]


def folder_configs(config: Config, text: FrozenOpenCLIPEmbedder) -> dict[str, Json]:
    """Path in the folder -> content, for the Stable Diffusion part of a stage-1 model; `text` is its text encoder.

    Raises:
        FieldError: networks that diffusers' classes do not have.
    """
    params: Mapping[str, Any] = config.get("model.params", {})
    vae = DDConfig(**params["first_stage_config"]["params"]["ddconfig"])
    factor = 2 ** (len(vae.ch_mult) - 1)
    side = config.get("degradation.gt_size") or vae.resolution
    return {
        "model_index.json": model_index(),
        "unet/config.json": unet_config(params["unet_config"]["params"], side // factor),
        "vae/config.json": vae_config(vae, params.get("scale_factor", 0.18215)),
        "text_encoder/config.json": text_config(text),
        "scheduler/scheduler_config.json": scheduler_config(params),
    }


def model_index() -> Json:
    """The parts of a pipeline and their classes."""
    return {
        "_class_name": "StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "requires_safety_checker": False,
    }


def tokenizer_files(length: int) -> dict[str, str]:
    """Of transformers' `CLIPTokenizer`, as Stable Diffusion 2 has it: file -> content. length: tokens of a prompt."""
    start, end = "<|startoftext|>", "<|endoftext|>"
    symbols = [*vocabulary(), start, end]
    special = {"bos_token": start, "eos_token": end, "unk_token": end, "pad_token": symbols[0]}
    told = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "do_lower_case": True}
    return {
        "vocab.json": json.dumps({symbol: index for index, symbol in enumerate(symbols)}, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in merges()),
        "special_tokens_map.json": json.dumps(special, indent=2),
        "tokenizer_config.json": json.dumps(told | special, indent=2),
    }


def unet_config(params: Mapping[str, Any], sample_size: int) -> Json:
    """Of a `UNet2DConditionModel` with our U-Net's weights; SPADE layers are no part of that class."""
    if not params.get("use_linear_in_transformer") or params.get("transformer_depth", 1) != 1:
        raise FieldError("unet_config", "describes transformers of another kind than Stable Diffusion 2's")
    widths = [params["model_channels"] * factor for factor in params["channel_mult"]]
    attends = [2**level in params["attention_resolutions"] for level in range(len(widths))]
    per_head = params.get("num_head_channels", -1)
    heads = [width // per_head if per_head > 0 else params["num_heads"] for width in widths]
    return {
        "_class_name": "UNet2DConditionModel",
        "sample_size": sample_size,
        "in_channels": params["in_channels"],
        "out_channels": params["out_channels"],
        "block_out_channels": widths,
        "layers_per_block": params["num_res_blocks"],
        "down_block_types": ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in attends],
        "up_block_types": ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in reversed(attends)],
        "cross_attention_dim": params["context_dim"],
        "attention_head_dim": heads,  # by its name of old; it is their number
        "use_linear_projection": True,
        "norm_num_groups": params.get("norm_groups", 32),
    }


def vae_config(config: DDConfig, scale_factor: float) -> Json:
    """Of diffusers' `AutoencoderKL`."""
    if config.attn_resolutions:
        raise FieldError(
            "attn_resolutions", "is not empty, and diffusers' autoencoder has attention in the middle alone"
        )
    levels = len(config.ch_mult)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": config.in_channels,
        "out_channels": config.out_ch,
        "latent_channels": config.z_channels,
        "block_out_channels": [config.ch * factor for factor in config.ch_mult],
        "layers_per_block": config.num_res_blocks,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "sample_size": config.resolution,
        "scaling_factor": scale_factor,
        "norm_num_groups": config.norm_groups,
    }


def text_config(text: FrozenOpenCLIPEmbedder) -> Json:
    """Of transformers' `CLIPTextModel`, without the blocks that are left out."""
    width = text.model.ln_final.normalized_shape[0]
    blocks = text.model.transformer.resblocks
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "hidden_act": "gelu",
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": len(blocks) - text.leave_out,
        "num_attention_heads": cast(CausalSelfAttention, blocks[0].attn).heads,
        "max_position_embeddings": text.max_length,
        "vocab_size": VOCAB_SIZE,
        "bos_token_id": START,
        "eos_token_id": END,
        "pad_token_id": 0,
        "layer_norm_eps": 1e-5,
    }


def scheduler_config(params: Mapping[str, Any]) -> Json:
    """Of diffusers' `DDIMScheduler`, over the same betas: linear in their roots."""
    return {
        "_class_name": "DDIMScheduler",
        "beta_schedule": "scaled_linear",
        "beta_start": params.get("linear_start", 0.00085),
        "beta_end": params.get("linear_end", 0.0120),
        "num_train_timesteps": params.get("timesteps", 1000),
        "prediction_type": PREDICTIONS[params.get("parameterization", "eps")],
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }
