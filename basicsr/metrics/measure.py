"""All metrics of a restored picture, by the names of `basicsr.metrics.table`."""

import math
from pathlib import Path

import torch
from torch import Tensor

from basicsr.metrics.edge_metrics import edge_map, edge_precision_recall_f1, edge_psnr, gradient_psnr, region_errors
from basicsr.metrics.lpips import LPIPS
from basicsr.metrics.psnr_ssim import as_8_bit, cropped, luma, ms_ssim, psnr, ssim
from basicsr.utils.ranges import to_pm1


def measure(sr_01: Tensor, gt_01: Tensor, border: int) -> dict[str, float]:
    """Every metric of `METRICS` but LPIPS; see the functions of this package for formulas and ranges.

    Args:
        sr_01, gt_01: restored and true RGB pictures (3, H, W) in [0, 1], of one shape; both are rounded to 8 bits.
        border: pixels to leave out on every side; edge maps and gradients are made before, of whole pictures.

    Returns:
        NaN where a metric is not defined: the picture is too small, or has no pixel of a region.
    """
    sr, gt = as_8_bit(sr_01), as_8_bit(gt_01)
    sr_edges, gt_edges = (cropped(torch.from_numpy(edge_map(img)), border).numpy() for img in (sr, gt))
    sr_rgb, gt_rgb, sr_y, gt_y = (cropped(img, border) for img in (sr, gt, luma(sr), luma(gt)))
    overlap = edge_precision_recall_f1(sr_edges, gt_edges)
    regions = region_errors(sr_y, gt_y, gt_edges)
    return {
        "psnr_y": psnr(sr_y, gt_y),
        "psnr_rgb": psnr(sr_rgb, gt_rgb),
        "ssim_y": ssim(sr_y, gt_y),
        "ssim_rgb": ssim(sr_rgb, gt_rgb),
        "ms_ssim": ms_ssim(sr_y, gt_y),
        "edge_f1": overlap.f1,
        "edge_precision": overlap.precision,
        "edge_recall": overlap.recall,
        "edge_psnr": edge_psnr(sr_edges, gt_edges),
        "gradient_psnr": gradient_psnr(sr_y, gt_y),
        "rmse_edges": 255 * math.sqrt(regions.edges),
        "rmse_flat": 255 * math.sqrt(regions.flat),
    }


class Lpips:
    """LPIPS of single pictures (Zhang et al., CVPR 2018): 0 for equal ones, upwards without limit; lower is closer.

    Args:
        net, weights: see `basicsr.metrics.lpips.LPIPS`, which says what it raises.
    """

    def __init__(self, net: str = "alex", weights: str | Path | None = None) -> None:
        self._distance = LPIPS(net, weights)

    @torch.no_grad()
    def __call__(self, sr_01: Tensor, gt_01: Tensor, border: int) -> float:
        """RGB (3, H, W) in [0, 1] each, rounded to 8 bits and cropped; NaN where a side is below 32 pixels."""
        sr, gt = (cropped(as_8_bit(img), border)[None].float() for img in (sr_01, gt_01))
        return float(self._distance(to_pm1(sr), to_pm1(gt))) if min(sr.shape[-2:]) >= 32 else math.nan
