"""The rows of the table: what one call does, for each side.

Training rows are whole steps, optimiser included; sampling rows are steps of a sampler, or a picture. Rows that are
whole commands are in `commands`.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from basicsr.data.degradation_pipeline import DegradationConfig, DegradationPipeline
from basicsr.data.pair_pool import Pair
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.utils.ranges import from_pm1
from basicsr.utils.rng import torch_rng
from benchmarks import baseline_data, baseline_use, commands
from benchmarks.baseline import publish
from benchmarks.case import Case, Ready, Row
from benchmarks.degradation_baseline import PublishedDegradation
from benchmarks.machine import DTYPES
from benchmarks.networks import config_of, latents_of, model_of, pair_of, picture_folder, weights_file
from ldm.inference.networks import Networks
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import UpscaleSettings
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Noise, Sampling, noise_of_pictures
from ldm.models.diffusion.tiling import Tiling

CROP = 16  # latent cells
# Options of a training, by precision.
OURS = {"fp32": (), "bf16": ("model.params.frozen_dtype=bf16", "model.params.channels_last=true")}
SAMPLING_STEPS, PICTURE_STEPS, GUIDANCE_SCALE = 2, 4, 3.0
TILES = 4
DEGRADATIONS, LOADED = 4, 8  # batches, pictures
KERNELS = ("kernel1", "kernel2", "sinc_kernel")
SMALLEST = 96  # pixels: less, reduced, has no room for the published filters' padding


def autocast(case: Case) -> AbstractContextManager[None]:
    """As Lightning's bf16-mixed."""
    if case.precision == "fp32":
        return nullcontext()
    return torch.autocast(case.device.partition(":")[0], dtype=DTYPES[case.precision])


def training_model(case: Case, *overrides: str) -> LatentDiffusionSRTextWT:
    """In the form that a training has it in, with the options of `OURS`, or as published."""
    torch.manual_seed(0)
    if case.side == "baseline":
        model = model_of(case, *overrides)
        publish(model)
        return model
    model = model_of(case, *OURS[case.precision], *overrides)
    model.contexts([model.prompt])
    model.text.release(Path(case.work))  # as in a run, whose folder holds the tower
    model.on_fit_start()
    return model


def training(*edge: str) -> Callable[[Case], Ready]:
    """A row of whole training steps, with the edge loss where its keys are given."""

    def prepare(case: Case) -> Ready:
        model, pair = training_model(case, *edge), pair_of(case.batch, case.pixels, case.device)
        step: Callable[[Pair, int], Tensor] = model.training_step
        optimizer = model.configure_optimizers()
        if case.side == "baseline":
            step = baseline_use.Training(model, edge_loss=bool(edge))
            optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=model.learning_rate)

        def call(index: int) -> Tensor | None:
            with autocast(case):
                loss = step(pair, index)
            optimizer.zero_grad()
            loss.backward()
            result = torch.cat([loss.detach()[None].cpu(), gradient_norms(model)]) if index == 0 else None
            optimizer.step()
            return result

        return Ready(call)

    return prepare


def gradient_norms(model: LatentDiffusionSRTextWT) -> Tensor:
    """Of every trained parameter's gradient."""
    gradients = [p.grad for p in model.parameters() if p.requires_grad]
    return torch.stack([torch.zeros(()) if g is None else g.norm().cpu() for g in gradients])


def sampling(*, scale: float = 1.0, tiles: bool = False) -> Callable[[Case], Ready]:
    """A row of sampling steps: of a canvas of the case's pixels, or of one half larger in four tiles of that size."""

    def prepare(case: Case) -> Ready:
        networks = networks_of(case)
        model, tile = networks.model, case.pixels // networks.downsampling
        z_lq = latents_of(case.batch, tile * 3 // 2 if tiles else tile, case.device)

        def noise() -> Noise:
            return noise_of_pictures([torch_rng("cpu", "benchmark noise", i) for i in range(case.batch)], case.device)

        def ours(_index: int) -> Tensor:
            context, uncond = model.contexts(["", ""]).to(case.device)[:, None]
            guidance = Guidance(context, uncond, scale)
            tiling = Tiling(tile, tile // 2, TILES) if tiles else None
            return model.sample(z_lq, guidance, Sampling(SAMPLING_STEPS), tiling=tiling, noise=noise()).cpu()

        sampler = baseline_use.Sampler(model, SAMPLING_STEPS, tile, tile // 2, scale)
        return Ready(ours if case.side == "ours" else lambda _: sampler(z_lq, noise()).cpu(), SAMPLING_STEPS)

    return prepare


def networks_of(case: Case) -> Networks:
    """An upscaler's, with the work folder's weights."""
    precision = case.precision if case.side == "ours" else "fp32"
    networks = Networks.load(
        config_of(case.size), weights_file(case.size, case.work), device=case.device, precision=precision
    )
    if case.side == "baseline":
        publish(networks.model.to(case.device))
    else:
        networks.model.contexts([""])  # kept from the first picture on
    return networks


def picture(case: Case) -> Ready:
    """A whole upscale by 4 to the case's pixels: encode, sample, decode, correct the colours; no tiles."""
    networks, factor = networks_of(case), 4
    small = from_pm1(pair_of(1, case.pixels // factor, case.device).lq_pm1)
    if case.side == "ours":
        settings = UpscaleSettings(upscale=factor, steps=PICTURE_STEPS, tile="none", seed=0)
        upscaler = Upscaler(networks, settings)
        return Ready(lambda _: upscaler(small[0].cpu()))
    cells = case.pixels // networks.downsampling
    sampler = baseline_use.Sampler(networks.model, PICTURE_STEPS, cells, 0)

    def call(_index: int) -> Tensor:
        return baseline_use.upscaled(sampler, small, factor, torch_rng("cpu", "upscale", 0))[0].cpu()

    return Ready(call)


def encoding(case: Case) -> Ready:
    """The latents of a training pair."""
    model, pair = training_model(case), pair_of(case.batch, case.pixels, case.device)

    @torch.no_grad()
    def call(_index: int) -> Tensor:
        rng = torch_rng(case.device, "benchmark encoding")
        with autocast(case):
            if case.side == "ours":
                latents = model.encode(pair, rng)
                return torch.cat([latents.z_gt, latents.z_lq]).cpu()
            return torch.cat([baseline_use.encode(model, x, rng) for x in (pair.gt_pm1, pair.lq_pm1)]).cpu()

    return Ready(call)


def decoding(case: Case) -> Ready:
    """Pictures of a batch of latents, without gradient."""
    model = training_model(case)
    z = latents_of(case.batch, case.pixels // model.first_stage_model.config.downsampling, case.device)

    @torch.no_grad()
    def call(_index: int) -> Tensor:
        with autocast(case):
            return (model.decode(z) if case.side == "ours" else baseline_use.decode(model, z)).float().cpu()

    return Ready(call)


def degradation(case: Case) -> Ready:
    """Batches of six, each degraded otherwise; compared is one whose noise is Gaussian, for Poisson's draws diverge."""
    config = config_of(case.size)
    options = DegradationConfig.from_mapping(config.get("degradation"), sf=config.get("sf", 4), use_usm=True)
    options = replace(options, gt_size=None, no_degradation_prob=0.0)
    gaussian = replace(options, gaussian_noise_prob=1.0, gaussian_noise_prob2=1.0)
    gt_01 = from_pm1(pair_of(case.batch, max(case.pixels, SMALLEST), case.device).gt_pm1)
    dataset = dataset_of(case)
    samples = [dataset[index] for index in range(case.batch)]  # for their kernels
    drawn = [torch.stack([sample[name] for sample in samples]).to(case.device) for name in KERNELS]
    kernels = drawn[0], drawn[1], drawn[2]

    def degraded(options: DegradationConfig, seed: int) -> Tensor:
        rng = torch_rng(case.device, "benchmark degradation", seed)
        if case.side == "ours":
            return pipelines[options](gt_01, *kernels, rng)[0]
        return PublishedDegradation(options)(gt_01, *kernels, rng)[0]

    pipelines = {each: DegradationPipeline(each) for each in (options, gaussian)}

    def call(index: int) -> Tensor:
        for seed in range(DEGRADATIONS):
            degraded(options, seed)
        return torch.zeros(()) if index else degraded(gaussian, 0).cpu()

    return Ready(call, DEGRADATIONS * case.batch)


def dataset_of(case: Case) -> RealESRGANDataset:
    """The config's training set of the work folder's pictures."""
    params = {**config_of(case.size).get("data.params.train.params"), "crop_size": case.pixels, "gt_size": case.pixels}
    return RealESRGANDataset(**{**params, "gt_path": str(picture_folder(case.size, case.work)), "image_type": None})


def loading(case: Case) -> Ready:
    """Samples of the data set in one process: read, decode, crop, draw kernels."""
    dataset = dataset_of(case)

    def call(_index: int) -> Tensor:
        read = dataset.__getitem__ if case.side == "ours" else partial(baseline_data.read_sample, dataset)
        return torch.stack([read(index)["gt"] for index in range(LOADED)])

    return Ready(call, LOADED)


EDGE = ("model.params.edge_loss_weight=0.1",)
ROWS: dict[str, Row] = {
    "plain": Row(training(), "step"),
    "full-edge": Row(training(*EDGE), "step"),
    "crop-edge": Row(training(*EDGE, f"model.params.edge_crop={CROP}"), "step", sides=("ours",)),
    "sample": Row(sampling(), "step"),
    "sample-guided": Row(sampling(scale=GUIDANCE_SCALE), "step"),
    "sample-tiled": Row(sampling(tiles=True), "step"),
    "picture": Row(picture, "picture"),
    "encode": Row(encoding, "pair"),
    "decode": Row(decoding, "picture"),
    "degradation": Row(degradation, "picture", precisions=("fp32",), fixed=(6, 512), mean=True),
    "loader": Row(loading, "picture", precisions=("fp32",), fixed=(1, 512)),
    **commands.ROWS,
}
GROUPS = {
    "training": ("plain", "full-edge", "crop-edge"),
    "sampling": ("sample", "sample-guided", "sample-tiled", "picture"),
    "autoencoder": ("encode", "decode"),
    "data": ("degradation", "loader"),
    "files": tuple(commands.ROWS),
}
