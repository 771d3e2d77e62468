"""A community pipeline for diffusers: StableSR with diffusers' own U-Net, autoencoder, text encoder and schedulers.

    stablesr-edge export logs/RUN/checkpoints/last.ckpt FOLDER --format diffusers

    from diffusers import DiffusionPipeline
    here = "examples/diffusers/stablesr_pipeline.py"
    pipe = DiffusionPipeline.from_pretrained("FOLDER", custom_pipeline=here, trust_remote_code=True)
    pipe.load_structure("FOLDER")
    large = pipe(small, upscale=4, generator=torch.Generator().manual_seed(23)).images[0]

What StableSR adds lies in FOLDER/stablesr: the time-aware encoder joins the U-Net as a module of its own, and each
SPADE changes what the last convolution of its residual block puts out; the U-Net stays diffusers' own. The picture is
taken whole: for tiles, edges and CFW use `ldm.inference.Upscaler`. `trust_remote_code` is for this file.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler, DiffusionPipeline, ImagePipelineOutput
from safetensors.torch import load_file
from torch import Tensor, nn

from basicsr.utils.errors import UserError
from basicsr.utils.ranges import from_pm1, to_pm1
from ldm.inference.canvas import cropped, padded
from ldm.inference.picture import AnyPicture, to_picture
from ldm.inference.pipeline import COLOR_FIXES
from ldm.models.formats.detect import own_config
from ldm.models.formats.diffusers_folder import ADDED
from ldm.models.formats.diffusers_keys import unet_to_diffusers
from ldm.modules.spade import SPADE
from ldm.util import instantiate_from_config

STRUCTURE = "structcond_stage_model."
UNET = "model.diffusion_model."
BRANCH_END = "out_layers.3.weight"  # of a residual block: its last convolution, beside its `spade`


class StableSRPipeline(DiffusionPipeline):  # type: ignore[misc]  # diffusers has no types
    """Makes pictures larger and sharper. `load_structure` comes first.

    The scheduler that StableSR is published with, ancestral over steps from the first to the last, takes the place of
    the one in the folder; another may be put into `scheduler` afterwards.
    """

    _optional_components = ["safety_checker", "feature_extractor"]  # diffusers' own way to say so

    def __init__(
        self,
        vae: nn.Module,
        text_encoder: nn.Module,
        tokenizer: Any,
        unet: nn.Module,
        scheduler: Any,
        safety_checker: Any = None,
        feature_extractor: Any = None,
    ) -> None:
        super().__init__()
        self.register_modules(
            vae=vae,
            text_encoder=text_encoder,
            tokenizer=tokenizer,
            unet=unet,
            scheduler=DDPMScheduler.from_config(scheduler.config, timestep_spacing="linspace"),
            safety_checker=safety_checker,
            feature_extractor=feature_extractor,
        )
        self._features: dict[str, Tensor] = {}  # of the time-aware encoder, at the present step

    def load_structure(self, folder: str | Path) -> None:
        """Add what StableSR adds to Stable Diffusion, from a folder that `stablesr-edge export` wrote.

        Raises:
            UserError: it has no such part, or one that sees edges.
        """
        file = Path(folder) / ADDED / "model.safetensors"
        config = own_config(file) if file.is_file() else None
        if config is None:
            raise UserError(
                f"{folder} has no {ADDED}/model.safetensors with a config: write it by stablesr-edge export"
            )
        if config.get("model.params.structcond_stage_config.params.in_channels") != self.vae.config.latent_channels:
            raise UserError(f"{folder} is of a model that sees edges: use ldm.inference.Upscaler")
        with torch.device("meta"):
            unet = instantiate_from_config(config.get("model.params.unet_config"))
            encoder = instantiate_from_config(config.get("model.params.structcond_stage_config"))
        state = load_file(file)
        encoder.load_state_dict(_part(state, STRUCTURE), assign=True)
        ours = unet.state_dict(keep_vars=True)
        places = {id(value): key for key, value in unet_to_diffusers(ours).items()}
        for name, spade in [(name, each) for name, each in unet.named_modules() if isinstance(each, SPADE)]:
            spade.load_state_dict(_part(state, f"{UNET}{name}."), assign=True)
            convolution = places[id(ours[name.removesuffix("spade") + BRANCH_END])].removesuffix(".weight")
            block = self.unet.get_submodule(convolution.rpartition(".")[0])
            block.spade = spade.to(self.unet.device, self.unet.dtype).requires_grad_(requires_grad=False)
            block.conv2.register_forward_hook(self._modulated(spade))
        encoder.to(self.unet.device, self.unet.dtype).requires_grad_(requires_grad=False)
        self.unet.structure_encoder = encoder.eval()

    def _modulated(self, spade: SPADE) -> Any:
        return lambda convolution, inputs, output: spade(output, self._features)

    @torch.no_grad()
    def __call__(
        self,
        image: AnyPicture,
        *,
        upscale: float = 4,
        prompt: str = "",
        negative_prompt: str = "",
        guidance_scale: float = 1.0,
        num_inference_steps: int = 200,
        generator: torch.Generator | None = None,
        colorfix: str = "adain",
    ) -> ImagePipelineOutput:
        """One picture, a PIL image, array or tensor in [0, 1], `upscale` times as large and of its kind.

        colorfix: adain, wavelet or none. generator: on the CPU, so that a seed means the same everywhere.
        """
        if not hasattr(self.unet, "structure_encoder"):
            raise UserError("call load_structure(FOLDER) first: this U-Net is Stable Diffusion's alone")
        device, dtype = self._execution_device, self.unet.dtype
        picture, back = to_picture(image)
        size = [round(side * upscale) for side in picture.size]
        large_01 = F.interpolate(picture.opaque()[None], size=size, mode="bicubic").clamp(0, 1)
        lq_pm1 = to_pm1(padded(large_01, self._canvas(size)))
        posterior = self.vae.encode(lq_pm1.to(device, self.vae.dtype)).latent_dist
        z_lq = self.vae.config.scaling_factor * posterior.sample(generator)
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        steps = self.scheduler.timesteps
        noise = torch.randn(z_lq.shape, generator=generator).to(z_lq)
        z = self.scheduler.add_noise(z_lq, noise, steps[:1])
        texts = self._texts([prompt, negative_prompt][: 1 + (guidance_scale != 1)]).to(device, dtype)
        for step in self.progress_bar(steps):
            asked = self.scheduler.scale_model_input(z, step).to(dtype)
            self._features = self.unet.structure_encoder(z_lq.to(dtype), step[None])
            output = self.unet(asked.repeat(len(texts), 1, 1, 1), step, texts).sample.to(z.dtype)
            if len(texts) == 2:
                told, untold = output.chunk(2)
                output = untold + guidance_scale * (told - untold)
            extra = {"generator": generator} if isinstance(self.scheduler, DDPMScheduler) else {}
            z = self.scheduler.step(output, step, z, **extra).prev_sample
        decoded_pm1 = self.vae.decode(z.to(self.vae.dtype) / self.vae.config.scaling_factor).sample.float().cpu()
        result_pm1 = cropped(decoded_pm1, size)
        if colorfix != "none":
            result_pm1 = COLOR_FIXES[colorfix](result_pm1, to_pm1(large_01))
        alpha = picture.alpha_01
        if alpha is not None:
            alpha = F.interpolate(alpha[None], size=size, mode="bicubic")[0].clamp(0, 1)
        return ImagePipelineOutput([back(replace(picture, rgb_01=from_pm1(result_pm1[0]).clamp(0, 1), alpha_01=alpha))])

    def _texts(self, prompts: list[str]) -> Tensor:
        tokens = self.tokenizer(
            prompts,
            padding="max_length",
            truncation=True,
            max_length=self.text_encoder.config.max_position_embeddings,
            return_tensors="pt",
        )
        hidden: Tensor = self.text_encoder(tokens["input_ids"].to(self.text_encoder.device)).last_hidden_state
        return hidden

    def _canvas(self, size: list[int]) -> list[int]:
        """Whole steps of the U-Net, and no less than the pictures that it was trained on."""
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        multiple = factor * 2 ** (len(self.unet.config.block_out_channels) - 1)
        return [-(-max(side, factor * self.unet.config.sample_size) // multiple) * multiple for side in size]


def _part(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
