"""The metrics by name, and what a reader must know about each; no torch, for those who only show numbers."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How a metric is shown."""

    label: str
    unit: str
    decimals: int
    meaning: str
    higher_is_better: bool = True


METRICS = {
    "psnr_y": Metric("PSNR Y", "dB", 2, "10 log10(1 / MSE) of luma (BT.601, studio swing)"),
    "psnr_rgb": Metric("PSNR RGB", "dB", 2, "10 log10(1 / MSE) over the three channels"),
    "ssim_y": Metric("SSIM Y", "", 4, "structural similarity of luma, Gaussian window of 11 (Wang et al. 2004)"),
    "ssim_rgb": Metric("SSIM RGB", "", 4, "the mean of the three channels' structural similarities"),
    "ms_ssim": Metric("MS-SSIM Y", "", 4, "SSIM over five scales (Wang et al. 2003), for sides from 176 pixels"),
    "edge_f1": Metric("Edge F1", "", 4, "harmonic mean of edge precision and recall; 1 where neither has edges"),
    "edge_precision": Metric("Edge precision", "", 4, "share of the result's edge pixels that lie by a true one"),
    "edge_recall": Metric("Edge recall", "", 4, "share of the true edge pixels that lie by one of the result"),
    "edge_psnr": Metric("Edge PSNR", "dB", 2, "10 log10(1 / share of pixels where the Canny maps differ)"),
    "gradient_psnr": Metric("Gradient PSNR", "dB", 2, "10 log10(1 / MSE) of luma's Sobel gradient magnitudes"),
    "rmse_edges": Metric(
        "Error on edges", "/255", 2, "root mean square error of luma on and beside true edges", higher_is_better=False
    ),
    "rmse_flat": Metric(
        "Error off edges", "/255", 2, "root mean square error of luma in all other places", higher_is_better=False
    ),
    "lpips": Metric("LPIPS", "", 4, "learned perceptual distance (Zhang et al., CVPR 2018)", higher_is_better=False),
}
