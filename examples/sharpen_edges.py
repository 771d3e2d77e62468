"""What this project does, in a minute on a CPU: upscale a photograph, find its edges, and feel the edge loss pull.

    python examples/sharpen_edges.py [--output results/example]

A photograph of scikit-image's is shrunk by four, and made large again by bicubic interpolation and by the small demo
weights. Printed is how well the edges of each agree with the true ones, and the edge loss of each. Then the bicubic
picture itself follows the loss's gradient for some steps: what a network learns from it, without the network. The strip
of pictures is edges.png: true, bicubic, upscaled, after the steps; below each are its edges.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.data
import torch
from PIL import Image
from torch import Tensor

from basicsr.metrics.edge_metrics import edge_precision_recall_f1
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.ranges import from_pm1, to_pm1, to_u8
from ldm.inference import Upscaler
from ldm.modules.losses.edge_loss import EdgeLoss

STEPS = 20
PULL = 0.3  # of the way to the truth that one step goes where the loss weighs most


def photograph() -> tuple[Image.Image, Image.Image]:
    """A photograph (256 x 256) and what is left of it at a quarter of the sides."""
    true = Image.fromarray(skimage.data.chelsea()[40:296, 100:356])
    return true, true.resize((64, 64), Image.Resampling.BICUBIC)


def as_tensor(image: Image.Image) -> Tensor:
    """(1, 3, H, W) in [-1, 1]."""
    return to_pm1(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255)


def follow_the_loss(start_pm1: Tensor, gt_pm1: Tensor, loss: EdgeLoss) -> Tensor:
    """The picture after some steps down the gradient, the steepest of which goes `PULL` of its way."""
    picture = start_pm1.clone().requires_grad_()
    for _ in range(STEPS):
        (gradient,) = torch.autograd.grad(loss(picture, gt_pm1).loss, picture)
        # d/dx of mean((x - gt)^2 W) is 2 (x - gt) W / N: a step of N / 2 / max W would end at the truth on edges.
        picture = (picture - PULL * picture.numel() / 2 / 1.1 * gradient).detach().requires_grad_()
    return picture.detach()


def main(argv: Sequence[str] | None = None) -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/example"), metavar="FOLDER")
    folder: Path = parser.parse_args(argv).output

    true, small = photograph()
    upscaled = Upscaler.from_checkpoint()(small)
    assert isinstance(upscaled, Image.Image)
    loss, generator = EdgeLoss(), EdgeMapGenerator()
    pictures = {"true": as_tensor(true), "bicubic": as_tensor(small.resize(true.size, Image.Resampling.BICUBIC))}
    pictures["upscaled"] = as_tensor(upscaled)
    pictures["after the steps"] = follow_the_loss(pictures["bicubic"], pictures["true"], loss)

    edges = {name: generator.edges_01(picture) for name, picture in pictures.items()}
    print(f"{'':18}{'edge F1':>8}{'edge loss':>12}")
    for name, picture in pictures.items():
        found, wanted = (each[0, 0].numpy() > 0 for each in (edges[name], edges["true"]))
        overlap = edge_precision_recall_f1(found, wanted)
        print(f"{name:18}{overlap.f1:8.3f}{loss(picture, pictures['true']).loss:12.5f}")

    rows = [torch.cat([from_pm1(p).clamp(0, 1) for p in pictures.values()], dim=3)]
    rows += [torch.cat(list(edges.values()), dim=3).expand(-1, 3, -1, -1)]
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(to_u8(torch.cat(rows, dim=2)[0]).permute(1, 2, 0).numpy()).save(folder / "edges.png")
    print(f"pictures: {folder / 'edges.png'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
