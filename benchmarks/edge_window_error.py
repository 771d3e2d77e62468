"""How far an edge loss on windows is from the full frame's: the decoder's norms and attention see the window alone.

    python benchmarks/edge_window_error.py [--frame 192] [--crops 4 8 16 24] [--noise 0.3] [--config YAML]

Frames of scikit-image's photographs are encoded by the config's autoencoder. The prediction is their latent plus noise
of that standard deviation. Printed for each window's side, as means over photographs and windows: how much the window's
picture differs from the same part of the whole decoded frame, as a share of the picture's standard deviation there; the
same for the inner half of the window alone; how far the loss on a window is from that of the full decode's pictures
there (its absolute difference, and the ratio of the mean losses); and how the two correlate across windows.
"""

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from basicsr.utils.rng import torch_rng
from benchmarks.canny_speed import photograph_batch
from ldm.config import load_config
from ldm.models.diffusion.first_stage import FirstStage
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_windows import draw_uniform
from ldm.util import instantiate_from_config


def relative(difference: Tensor, picture: Tensor) -> Tensor:
    """RMS of a difference over the standard deviation of a picture, sample by sample: (B,)."""
    deviation = picture.flatten(1).std(dim=1).clamp(min=1e-3)
    return difference.flatten(1).square().mean(dim=1).sqrt() / deviation


def inner(images: Tensor) -> Tensor:
    """The middle half along both axes."""
    quarter = images.shape[-1] // 4
    return images[..., quarter:-quarter, quarter:-quarter]


@torch.no_grad()
def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/demo/edge_cpu.yaml"))
    parser.add_argument("--frame", type=int, default=192, help="pixels")
    parser.add_argument("--crops", type=int, nargs="+", default=[4, 8, 16, 24], help="latent cells")
    parser.add_argument("--noise", type=float, default=0.3, help="of scaled latents, whose deviation is about 1")
    parser.add_argument("--windows", type=int, default=4, help="for each of 16 frames")
    args = parser.parse_args()
    config = load_config([args.config])
    autoencoder = instantiate_from_config(config.get("model.params.first_stage_config")).eval()
    scale, rng = config.get("model.params.scale_factor", 0.18215), torch_rng("cpu", "window error")
    gt_pm1 = photograph_batch(16, args.frame, "cpu")
    first_stage = FirstStage(autoencoder, scale)
    z_gt = first_stage.encode(gt_pm1, rng)
    z_pred = z_gt + args.noise * torch.randn(z_gt.shape, generator=rng)
    full_gt, full_pred = (first_stage.decode(z) for z in (z_gt, z_pred))
    cell, criterion = full_gt.shape[-1] // z_gt.shape[-1], EdgeLoss()
    print(f"16 frames of {args.frame} pixels, {args.windows} windows each, f = {cell}, noise {args.noise}")
    print(f"{'window':>8}{'picture':>10}{'inner half':>12}{'|loss diff|':>13}{'loss ratio':>12}{'correlation':>13}")
    for side in args.crops:
        rows = []
        for _ in tqdm(range(args.windows), desc=f"{side} cells", leave=False):
            windows = draw_uniform(z_gt, side, rng)
            gt, pred = (first_stage.decode(windows.cut(z)) for z in (z_gt, z_pred))
            part_gt, part_pred = windows.cut(full_gt, cell), windows.cut(full_pred, cell)
            loss = criterion(pred, gt).by_sample
            full_loss = criterion(part_pred, part_gt).by_sample
            rows.append(
                torch.stack(
                    [
                        relative(gt - part_gt, part_gt),
                        relative(inner(gt - part_gt), inner(part_gt)),
                        (loss - full_loss).abs() / full_loss,
                        loss,
                        full_loss,
                    ]
                )
            )
        picture, middle, off, loss, full_loss = torch.cat(rows, dim=1)
        correlation = float(torch.corrcoef(torch.stack([loss, full_loss]))[0, 1])
        print(
            f"{side:8}{float(picture.mean()):10.1%}{float(middle.mean()):12.1%}{float(off.mean()):13.1%}"
            f"{float(loss.mean() / full_loss.mean()):12.3f}{correlation:13.3f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
