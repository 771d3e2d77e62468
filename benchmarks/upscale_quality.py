"""The demo upscaler against bicubic interpolation on photographs that it was not trained on, and how visible tiles are.

    python benchmarks/upscale_quality.py [--output results/quality] [--base YAML --ckpt FILE] [upscale.py's settings]

The photographs are the validation set of scripts/demo_photos.py. Each is degraded as in training, with fixed seeds, and
its bicubic enlargement by the config's factor is what the upscaler gets and what it is compared with. Per photograph:
PSNR (dB), SSIM and edge F1 (Canny edges against the true ones, 1 pixel of tolerance), all higher is better, and a strip
FOLDER/NAME.png: bicubic, upscaled, true. Then the seam score of a tiled result against an untiled one with the same
noise: how much steeper their difference is across the tiles' borders than elsewhere (1: not at all), with seams.png.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor
from tqdm import tqdm

from basicsr.data.degradation_pipeline import DegradationConfig, DegradationPipeline
from basicsr.data.realesrgan_dataset import RealESRGANDataset
from basicsr.metrics.edge_metrics import edge_precision_recall_f1
from basicsr.metrics.seams import seam_score
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.grid import labelled_grid
from basicsr.utils.img_util import read_rgb_01
from basicsr.utils.rng import torch_rng
from ldm.config import load_config
from ldm.inference.networks import demo_files
from ldm.inference.pipeline import Upscaler
from ldm.inference.settings import DEMO_DEFAULTS
from ldm.models.diffusion.tiling import tile_starts
from scripts.demo_photos import write


def degraded(config_file: str | Path, photos: Path) -> list[tuple[str, Tensor, Tensor]]:
    """Name, LQ and GT of every photograph, (3, H, W) in [0, 1], LQ enlarged to GT's size."""
    config = load_config([config_file])
    params = {**config.get("data.params.validation.params"), "gt_path": str(photos)}
    block = {**config.get("degradation"), "gt_size": None}
    pipeline = DegradationPipeline(DegradationConfig.from_mapping(block, sf=config.get("sf", 4), use_usm=False))
    pairs = []
    for sample in RealESRGANDataset(**params):
        name = Path(sample["gt_path"]).stem
        gt = torch.from_numpy(read_rgb_01(sample["gt_path"])).permute(2, 0, 1)[None]
        kernel1, kernel2, sinc = (sample[key][None] for key in ("kernel1", "kernel2", "sinc_kernel"))
        lq, _ = pipeline(gt, kernel1, kernel2, sinc, torch_rng("cpu", "quality", name))
        pairs.append((name, lq[0], gt[0]))
    return pairs


def scores(image_01: Tensor, gt_01: Tensor) -> tuple[float, float, float]:
    """PSNR, SSIM and edge F1 of an RGB picture, rounded to 8 bits as in a file."""
    image, gt = ((each * 255).round() / 255 for each in (image_01, gt_01))
    edges, true_edges = (EdgeMapGenerator().edges_01(each[None] * 2 - 1)[0, 0].numpy() > 0 for each in (image, gt))
    pixels, true = (each.permute(1, 2, 0).numpy() for each in (image, gt))
    return (
        peak_signal_noise_ratio(true, pixels, data_range=1),
        structural_similarity(true, pixels, data_range=1, channel_axis=2),
        edge_precision_recall_f1(edges, true_edges, 1).f1,
    )


def table(upscaler: Upscaler, pairs: list[tuple[str, Tensor, Tensor]], folder: Path) -> None:
    """Upscale, print a line per photograph and the means, write the strips."""
    rows = []
    print(f"{'':12}{'PSNR':>16}{'SSIM':>18}{'edge F1':>18}\n{'':12}" + f"{'bicubic':>9}{'ours':>8} " * 3)
    for name, lq, gt in tqdm(pairs, desc="photographs", leave=False):
        result = upscaler(lq)
        assert isinstance(result, Tensor)
        rows.append((scores(lq, gt), scores(result, gt)))
        tqdm.write(line(name, *rows[-1]))
        strip = {"bicubic": lq, "upscaled": result, "true": gt}
        labelled_grid({label: image[None] * 2 - 1 for label, image in strip.items()}).save(folder / f"{name}.png")
    print(line("mean", *np.mean(rows, axis=0)))


def line(name: str, bicubic: tuple[float, ...], ours: tuple[float, ...]) -> str:
    """One row of the table."""
    digits = (2, 3, 3)
    return f"{name:12}" + "".join(f"{a:9.{d}f}{b:8.{d}f} " for a, b, d in zip(bicubic, ours, digits, strict=True))


def seams(upscaler: Upscaler, lq: Tensor, folder: Path) -> None:
    """Print the seam score of a square cut-out, with and without tiles on the same noise, and write both pictures."""
    frame, multiple = upscaler.networks.frame, upscaler.networks.multiple
    side = min(*lq.shape[1:], 2 * frame + frame // 3) // multiple * multiple
    cut = lq[:, :side, :side]
    whole = Upscaler(upscaler.networks, replace(upscaler.settings, tile="none"))(cut)
    tiled = upscaler(cut)
    assert isinstance(whole, Tensor) and isinstance(tiled, Tensor)
    assert upscaler.tile is not None
    f = upscaler.networks.downsampling
    starts = tile_starts(side // f, upscaler.tile, upscaler.overlap)
    # Where a tile begins, where one ends, and the middle between, where neighbours weigh the same.
    edges = [(start, end + upscaler.tile) for end, start in zip(starts[:-1], starts[1:], strict=True)]
    borders = sorted({f * at // 2 for start, end in edges for at in (2 * start, start + end, 2 * end)})
    in_tiles, at_once = (image.permute(1, 2, 0).numpy() for image in (tiled, whole))
    score = seam_score(in_tiles, at_once, borders, borders)
    print(f"seam score at pixels {', '.join(map(str, borders))} of {side}: {score:.3f}")
    difference = (0.5 + 4 * (tiled - whole)).clamp(0, 1)
    strip = {"in tiles": tiled, "at once": whole, "difference x 4": difference}
    labelled_grid({label: image[None] * 2 - 1 for label, image in strip.items()}).save(folder / "seams.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/quality"))
    parser.add_argument("--photos", type=Path, default=Path("data/demo"), help="where scripts/demo_photos.py writes")
    parser.add_argument("--base", help="config (default: the demo's)")
    parser.add_argument("--ckpt", help="checkpoint (default: the demo's)")
    for name in ("steps", "start_t", "seed"):
        parser.add_argument(f"--{name}", type=int, default=getattr(DEMO_DEFAULTS, name))
    for name in ("sampler", "colorfix"):
        parser.add_argument(f"--{name}", default=getattr(DEMO_DEFAULTS, name))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    write(args.photos)
    settings = replace(
        DEMO_DEFAULTS,
        upscale=1,
        steps=args.steps,
        start_t=args.start_t,
        seed=args.seed,
        sampler=args.sampler,
        colorfix=args.colorfix,
    )
    upscaler = Upscaler.from_checkpoint(args.base, args.ckpt, settings=settings)
    pairs = degraded(args.base or demo_files()[0], args.photos / "validation")
    print(
        f"{settings.sampler}, {settings.steps} steps, start_t {settings.start_t}, colorfix {settings.colorfix}, seed "
        f"{settings.seed}"
    )
    table(upscaler, pairs, args.output)
    seams(upscaler, pairs[0][1], args.output)
    print(f"pictures: {args.output}")


if __name__ == "__main__":
    main()
