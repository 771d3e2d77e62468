"""All metrics of a restored picture, by the names of `basicsr.metrics.table`."""

import importlib.util
import math

import torch
from torch import Tensor

from basicsr.metrics.edge_metrics import edge_map, edge_precision_recall_f1, edge_psnr, gradient_psnr, region_errors
from basicsr.metrics.psnr_ssim import as_8_bit, cropped, luma, ms_ssim, psnr, ssim
from basicsr.utils.errors import UserError


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
    """LPIPS on AlexNet (Zhang et al., CVPR 2018): 0 for equal pictures, upwards without limit; lower is closer.

    Raises:
        UserError: torchvision is not installed, or AlexNet's weights are neither here nor to be had.
    """

    def __init__(self) -> None:
        if importlib.util.find_spec("torchvision") is None:
            raise UserError("LPIPS needs torchvision: pip install 'stablesr-edge[lpips]', or leave --lpips out")
        from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

        try:
            self._distance = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True)
        except (OSError, RuntimeError) as error:  # no network, or a file that is damaged
            reason = (str(error) or type(error).__name__).splitlines()[0]
            raise UserError(
                f"LPIPS cannot load AlexNet's weights ({reason}): put alexnet-owt-7be5be79.pth of PyTorch's model zoo "
                f"into {torch.hub.get_dir()}/checkpoints, or leave --lpips out"
            ) from error

    @torch.no_grad()
    def __call__(self, sr_01: Tensor, gt_01: Tensor, border: int) -> float:
        """RGB (3, H, W) in [0, 1] each, rounded to 8 bits and cropped; NaN where a side is below 32 pixels."""
        sr, gt = (cropped(as_8_bit(img), border)[None].float() for img in (sr_01, gt_01))
        return float(self._distance(sr, gt)) if min(sr.shape[-2:]) >= 32 else math.nan
