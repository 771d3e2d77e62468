"""Grey from colour: the weights of red, green and blue, and where they differ."""

from torch import Tensor

# ITU-R BT.601, as OpenCV, Pillow, JPEG and the metrics of super-resolution weight them.
LUMA = (0.299, 0.587, 0.114)
# Rounded as torchvision's rgb_to_grayscale has them: the published degradation's grey noise is made with that function,
# and its grey, 0.01 % darker, decides which of two levels a value is rounded to.
TORCHVISION_LUMA = (0.2989, 0.587, 0.114)


def luma(rgb: Tensor, weights: tuple[float, float, float] = LUMA) -> Tensor:
    """RGB (..., 3, H, W) of any linear range -> (..., 1, H, W) in the same range."""
    red, green, blue = rgb.split(1, dim=-3)
    grey: Tensor = weights[0] * red + weights[1] * green + weights[2] * blue
    return grey
