"""What a trained model of a study is worth: metrics of the pictures it makes of frames that it was not trained on."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from basicsr.data.latent_pair import LatentPair
from basicsr.data.pair_pool import Pair
from basicsr.metrics.edge_metrics import edge_map, edge_precision_recall_f1, gradient_magnitude
from basicsr.metrics.measure import Lpips, measure
from basicsr.metrics.psnr_ssim import luma
from basicsr.utils.ranges import from_pm1
from basicsr.utils.rng import torch_rng
from ldm.config import Config, load_config
from ldm.models.build import build_model
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Sampling
from ldm.study.plan import VALIDATION, Study
from ldm.util import instantiate_from_config

FRAMES = (1, 2)  # seeds of crop and degradation: so many frames of each photograph
SIDE = 128  # pixels of a frame
BORDER = 4  # pixels that are not measured


@torch.no_grad()
def evaluate(study: Study, part: str, words: Sequence[str]) -> dict[str, float]:
    """The metrics of what the model makes of a set of pictures, as means over frames."""
    frames = frame_words(study.pictures[part], SIDE)
    config = load_config([study.config], [*pictures_words(study), *study.words, *words, *frames])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(config).eval().to(device)
    lpips = Lpips("alex", study.lpips) if study.lpips else None
    rows: list[dict[str, float]] = []
    edges: list[tuple[np.ndarray, np.ndarray]] = []
    for pair, samples_01 in restored(model, config, Sampling(study.sampling_steps, study.sampler), device):
        for mine, gt in zip(samples_01.cpu(), from_pm1(pair.gt_pm1).cpu(), strict=True):
            rows.append(metrics(mine, gt, lpips))
            edges.append((edge_map(mine), edge_map(gt)))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]} | pooled(edges)


def restored(model: Any, config: Config, sampling: Sampling, device: torch.device) -> Iterator[tuple[Pair, Tensor]]:
    """Batches of frames, and what a model of either stage makes of them: (B, 3, H, W) in [0, 1]."""
    for seed in FRAMES:
        pair = pair_of(config, seed, device)
        if isinstance(pair, LatentPair):  # its frames were decided when it was made: there is one set of them
            yield pair, from_pm1(model.reconstruct(pair)[0].clamp(-1, 1))
            return
        yield pair, restored_01(model, pair, sampling, torch_rng(device, "edge experiment", seed))


@torch.no_grad()
def restored_01(model: LatentDiffusionSRTextWT, pair: Pair, sampling: Sampling, rng: torch.Generator) -> Tensor:
    """What a model makes of a batch's LQ pictures: (B, 3, H, W) in [0, 1]."""
    latents, noise = model.encode(pair, rng), model.noise(rng)
    guidance = Guidance(model.context(len(pair)), z_struct=latents.z_struct)
    return from_pm1(model.decode(model.sample(latents.z_lq, guidance, sampling, noise=noise)).clamp(-1, 1))


def pooled(edges: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """Of all frames' edge pixels, predicted and true, together: nearly empty frames would swing a mean over frames."""
    gap = ((0, 2), (0, 0))  # so that no edge meets one of the next frame
    mine, true = (np.concatenate([np.pad(each[i], gap) for each in edges]) for i in (0, 1))
    overlap = edge_precision_recall_f1(mine, true)
    return {"edge_f1": overlap.f1, "false_edges": 1 - overlap.precision}


def metrics(sr_01: Tensor, gt_01: Tensor, lpips: Lpips | None = None) -> dict[str, float]:
    """Those of `ldm.study.results` that are means over frames, of a restored frame (3, H, W) in [0, 1]."""
    found = measure(sr_01, gt_01, BORDER)
    mine, true = (gradient_magnitude(luma(image)).mean() for image in (sr_01, gt_01))
    own = {
        "gradient_error": 255 * 10 ** (-found["gradient_psnr"] / 20),
        "gradient_strength": float(mine / true),
    }
    if lpips is not None:
        own["lpips"] = lpips(sr_01, gt_01, BORDER)
    return {name: found[name] for name in ("edge_psnr", "psnr_y", "ssim_y")} | own


def pair_of(config: Config, seed: int, device: torch.device) -> Pair:
    """The first validation batch: frames and degradations are decided by the seed."""
    handed = {"sf": config.get("sf", 4), "use_usm": config.get("model.params.use_usm", False), "seed": seed}
    data = instantiate_from_config(config.values["data"], degradation=config.get("degradation"), **handed)
    data.setup()
    pair: Pair = data.example_pair(device)
    return pair


def pictures_words(study: Study) -> list[str]:
    """Overrides that name the folders to train and to validate on."""
    words = [f"data.params.validation.params.gt_path={study.pictures[VALIDATION]}"]
    folder = study.pictures.get("train")
    return [*words, f"data.params.train.params.gt_path={folder}"] if folder else words


def frame_words(folder: str, side: int) -> list[str]:
    """Overrides for a validation batch of one frame of `side` pixels out of each picture of a folder.

    Of a folder of the second stage's samples, for a batch of all of them as they are.
    """
    ready = Path(folder, "gts")
    pictures = sum(1 for file in (ready if ready.is_dir() else Path(folder)).iterdir() if file.is_file())
    own = [f"gt_path={folder}"]
    words = [f"data.params.batch_size={pictures}"]
    if not ready.is_dir():
        words, own = [*words, f"degradation.gt_size={side}"], [*own, f"crop_size={side}", f"gt_size={side}"]
    return [*words, *(f"data.params.validation.params.{word}" for word in own)]
