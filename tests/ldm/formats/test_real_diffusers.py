"""Ours against diffusers' and transformers' own classes with the same weights: run with -m diffusers."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from reference.models import NO_LOSS
from tiny_run import export_tiny_diffusers
from torch import Tensor, nn

from ldm.models.autoencoder import AutoencoderKL
from ldm.models.formats import diffusers_keys as keys
from ldm.modules.diffusionmodules.openaimodel import UNetModelDualcondV2
from ldm.modules.encoders.modules import FrozenOpenCLIPEmbedder
from ldm.modules.spade import SPADE

pytestmark = pytest.mark.diffusers
PROMPTS = ["a cat", "", "Ein Bär, über 5 °C!", "x" * 400, *(f"photo {i} of many things, sharp" for i in range(16))]
X, T, CONTEXT = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 871]), 16


def same(one: Tensor, other: Tensor) -> bool:
    return float((one - other).norm() / other.norm()) <= 1e-5


def round_trip(back: dict[str, Tensor], theirs: nn.Module) -> bool:
    state = {key.removeprefix("text_model."): value for key, value in theirs.state_dict().items()}
    back = {key.removeprefix("text_model."): value for key, value in back.items()}
    return back.keys() == state.keys() and all(torch.equal(back[key], state[key]) for key in state)


@torch.no_grad()
def without_structure(unet: nn.Module, context: Tensor) -> Tensor:
    """Our U-Net's output without SPADE, which theirs does not have."""
    with patch.object(SPADE, "forward", lambda self, x, structure: x):
        output: Tensor = unet(X, T, context, {})
    return output


@torch.no_grad()
def test_unet() -> None:
    from diffusers import UNet2DConditionModel

    cross = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    theirs = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64, 64),
        down_block_types=cross,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=CONTEXT,
        attention_head_dim=(2, 4, 4),
        use_linear_projection=True,
    ).eval()
    options: dict[str, Any] = {"attention_resolutions": [1, 2], "channel_mult": [1, 2, 2], "num_head_channels": 16}
    options |= {"num_res_blocks": 2, "context_dim": CONTEXT, "use_linear_in_transformer": True, "semb_channels": 32}
    ours = UNetModelDualcondV2(in_channels=4, out_channels=4, model_channels=32, **options).eval()
    state = keys.unet_to_ours(theirs.state_dict())
    assert set(state) == {key for key in ours.state_dict() if ".spade." not in key}
    ours.load_state_dict(state, strict=False)
    context = torch.randn(2, 7, CONTEXT)
    assert same(without_structure(ours, context), theirs(X, T, context).sample)
    assert round_trip(keys.unet_to_diffusers(ours.state_dict()), theirs)


@torch.no_grad()
def test_autoencoder() -> None:
    from diffusers import AutoencoderKL as Theirs

    levels = {"down_block_types": ("DownEncoderBlock2D",) * 3, "up_block_types": ("UpDecoderBlock2D",) * 3}
    theirs = Theirs(block_out_channels=(32, 64, 64), layers_per_block=2, **levels).eval()
    ddconfig = {"z_channels": 4, "resolution": 32, "ch": 32, "ch_mult": [1, 2, 2], "num_res_blocks": 2}
    ours = AutoencoderKL(ddconfig, NO_LOSS, 4).eval()
    ours.load_state_dict(keys.vae_to_ours(theirs.state_dict()))
    image_pm1, z = torch.rand(1, 3, 32, 32) * 2 - 1, torch.randn(1, 4, 8, 8)
    assert same(ours.encode(image_pm1).mean, theirs.encode(image_pm1).latent_dist.mean)
    assert same(ours.decode(z), theirs.decode(z).sample)
    assert round_trip(keys.vae_to_diffusers(ours.state_dict()), theirs)


@torch.no_grad()
def test_text_encoder_on_twenty_prompts() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    ends = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": 0}
    theirs = CLIPTextModel(CLIPTextConfig(hidden_act="gelu", **sizes, **ends)).eval()
    ours = FrozenOpenCLIPEmbedder(arch={"width": 64, "layers": 2, "heads": 4}, layer="last")
    lacking = ours.model.load_state_dict(keys.text_to_ours(theirs.state_dict()), strict=False)
    assert (set(lacking.missing_keys), lacking.unexpected_keys) == ({"text_projection", "logit_scale"}, [])
    assert len(PROMPTS) == 20
    assert float((ours(PROMPTS) - theirs(ours.tokenize(PROMPTS)).last_hidden_state).abs().max()) <= 1e-5
    assert round_trip(keys.text_to_transformers(ours.model.state_dict()), theirs)


@torch.no_grad()
def test_an_exported_folder_loads_in_stock_diffusers(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL as Vae
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    folder, model = export_tiny_diffusers(tmp_path)
    unet, info = UNet2DConditionModel.from_pretrained(folder / "unet", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    context = torch.randn(2, 7, CONTEXT)
    assert same(without_structure(model.model.diffusion_model, context), unet.eval()(X, T, context).sample)
    vae = Vae.from_pretrained(folder / "vae").eval()
    assert same(model.first_stage_model.decode(X[:1]), vae.decode(X[:1]).sample)
    assert vae.config.scaling_factor == model.scale_factor
    tower = CLIPTextModel.from_pretrained(folder / "text_encoder").eval()
    tokens = model.cond_stage_model.tokenize(PROMPTS)
    assert float((model.contexts(PROMPTS) - tower(tokens).last_hidden_state).abs().max()) <= 1e-5
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    plain = [prompt for prompt in PROMPTS if "!" not in prompt]  # which is its padding, as Stable Diffusion 2 has it
    theirs = torch.tensor(tokenizer(plain, padding="max_length", truncation=True)["input_ids"])
    assert len(plain) > 15 and theirs.equal(model.cond_stage_model.tokenize(plain))
    assert StableDiffusionPipeline.from_pretrained(folder).unet.config.sample_size == 16
    scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
    assert torch.allclose(scheduler.alphas_cumprod, model.schedule.alphas_cumprod, atol=1e-6)
    assert scheduler.config.prediction_type == "v_prediction"
