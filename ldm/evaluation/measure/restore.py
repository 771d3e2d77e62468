"""From a checkpoint to restored pictures: the one place where an evaluation touches the model."""

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from basicsr.data.pair_pool import Pair
from basicsr.utils.errors import UserError
from basicsr.utils.img_util import read_picture
from basicsr.utils.ranges import from_pm1, to_pm1
from ldm.evaluation.measure.runs import Checkpoint, TrainedRun, read_checkpoint
from ldm.evaluation.measure.sources import Told
from ldm.inference.networks import Networks
from ldm.inference.picture import Picture
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import Edges, Sampler, UpscaleSettings
from ldm.models.build import build_model
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Sampling


def load_networks(run: TrainedRun, checkpoint: Checkpoint, device: torch.device) -> Networks:
    """The run's model with a checkpoint's weights, in evaluation mode.

    Raises:
        UserError: the file does not fit the config, or is another one than when it was selected.
    """
    model: LatentDiffusionSRTextWT = build_model(run.config, ckpt=checkpoint.path)
    if read_checkpoint(checkpoint.path).identity != checkpoint.identity:
        raise UserError(f"{checkpoint.path} was written anew while it was read: run the same command again")
    frame = run.config.get("degradation.gt_size") or model.first_stage_model.config.resolution
    return Networks(model.eval().requires_grad_(False).to(device), None, frame, device)


def told_edges(networks: Networks, told: Told, gt_01: Tensor, file: Path | None) -> tuple[Edges, Picture | None]:
    """What an upscaler is to be told, and the picture of edges that goes with it: for `gt` the true picture's."""
    condition = networks.model.edge_condition
    if told == "gt" and condition is not None:
        return "file", Picture(from_pm1(condition.map_of(to_pm1(gt_01[None])))[0], grey=True)
    if told == "file" and file is not None:
        return "file", Picture.from_stored(read_picture(file))
    return cast(Edges, told), None


def restore(
    networks: Networks,
    lq_01: Tensor,
    steps: int,
    seed: int,
    sampler: Sampler = "ddpm",
    edges: Edges = "auto",
    edge_picture: Picture | None = None,
) -> Tensor:
    """One picture of any size, in tiles of the size that the model was trained at.

    Args:
        lq_01: RGB (3, H, W) in [0, 1], at the size of the result.
        steps, sampler: of the diffusion process: see `Sampling`.
        seed: decides all noise.
        edges, edge_picture: what a model that sees edges is told: see `UpscaleSettings` and `Upscaler`.

    Returns:
        RGB (3, H, W) in [0, 1], on the CPU; its colours are the model's own, not corrected.
    """
    settings = UpscaleSettings(1, steps, sampler, seed=seed, colorfix="none", batch=4, edges=edges)
    return Upscaler(networks, settings).upscale([Picture(lq_01)], edges=[edge_picture])[0].rgb_01


@torch.no_grad()
def sample_frames(
    model: LatentDiffusionSRTextWT, pair: Pair, steps: int, rng: torch.Generator, sampler: str = "ddim"
) -> Tensor:
    """Frames of a size that the model trains on -> restored ones (B, 3, H, W), clamped to [-1, 1].

    A model that sees edges is told those that it is trained with.
    """
    with model.ema_scope():
        z_lq = model.first_stage.encode(pair.lq_pm1, rng)
        z_struct, noise = model.structure.of_pair(z_lq, pair, rng), model.noise(rng)
        condition, guidance = model.edge_condition, Guidance(model.context(len(z_lq)), z_struct=z_struct)
        alone = condition is not None and condition.use == "alone"  # there is no picture to start from
        x_T = noise(z_lq.shape) if alone else None
        z = model.sample(z_lq, guidance, Sampling(steps, sampler), x_T=x_T, noise=noise)
        return model.decode(z).clamp(-1, 1)
