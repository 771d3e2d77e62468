"""Canny edge detection on whole batches with PyTorch alone, bit for bit what OpenCV gives for 8-bit pictures.

J. Canny, "A Computational Approach to Edge Detection", PAMI 1986. Pictures stay on their device, as (B, H, W) tensors
of any size from 1x1; all arithmetic is on integers, so no device rounds differently. The constants, roundings and ties
are those of OpenCV 5.0's cvtColor, GaussianBlur, Canny (aperture 3, L1 gradient) and morphologyEx.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad

# Weights of red, green and blue in grey (ITU-R BT.601: 0.299, 0.587, 0.114), in units of 2^-15.
_GREY_WEIGHTS = (9798, 19235, 3735)
_TAN_22_5 = 13573  # tan(22.5 degrees) in units of 2^-15; tan(67.5 degrees) is exactly 2 more


def rgb_to_grey(rgb: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) -> int32 (B, H, W) in 0..255."""
    red, green, blue = (channel.int() * weight for channel, weight in zip(rgb.unbind(1), _GREY_WEIGHTS, strict=True))
    return (red + green + blue + (1 << 14)) >> 15


def gaussian_kernel(size: int, sigma: float) -> list[int]:
    """The `size` (odd) samples of a Gaussian in units of 2^-8. Their sum is exactly 256: each one's rounding error is
    carried to the next, from the ends to the middle, which takes what is left.
    """
    # In OpenCV's order of operations: the squares are of twice the distance, and what follows multiplies by inverses.
    spread = -0.125 / (sigma * sigma)
    side = [math.exp((2 * i + 1 - size) ** 2 * spread) for i in range(size // 2)]
    scale = 1 / (2 * sum(side) + 1)
    rounded: list[int] = []
    error = 0.0
    for value in side:
        wanted = 256 * (value * scale) + error
        rounded.append(round(wanted))
        error = wanted - rounded[-1]
    return [*rounded, 256 - 2 * sum(rounded), *reversed(rounded)]


def gaussian_blur(grey: Tensor, sides: tuple[int, int], sigma: float) -> Tensor:
    """Integers (B, H, W) in 0..255 -> int32 (B, H, W) in 0..255; the border mirrors about its outermost pixel.

    `sides`: the kernel's width and height, odd.
    """
    blurred = grey.int()
    for dim, size in zip((2, 1), sides, strict=True):
        kernel = gaussian_kernel(size, sigma)
        length = blurred.shape[dim]
        if length == 1:  # nothing to mirror: OpenCV leaves such an axis alone
            blurred = blurred * 256
            continue
        # Distance from the nearest multiple of the mirror's period: right however often a small picture is mirrored.
        place = torch.arange(-(size // 2), length + size // 2, device=grey.device).remainder(2 * length - 2)
        mirrored = blurred.index_select(dim, torch.minimum(place, 2 * length - 2 - place))
        blurred = torch.zeros_like(blurred)
        for i, weight in enumerate(kernel):
            blurred.add_(mirrored.narrow(dim, i, length), alpha=weight)
    return (blurred + (1 << 15)) >> 16


def median(grey: Tensor) -> Tensor:
    """Integers (B, H, W) in 0..255 -> float64 (B, 1, 1): each picture's median, between two values their mean."""
    count = grey[0].numel() if len(grey) else 1

    def ranked(rank: int) -> Tensor:
        # The largest v that at most `rank` pixels lie below, bit by bit: no sorting and no waiting for the device.
        value = torch.zeros(len(grey), 1, 1, dtype=torch.int32, device=grey.device)
        for bit in (128, 64, 32, 16, 8, 4, 2, 1):
            below = (grey < value + bit).sum((1, 2), keepdim=True)
            value = torch.where(below <= rank, value + bit, value)
        return value

    return (ranked((count - 1) // 2) + ranked(count // 2)).double() / 2


def edges(grey: Tensor, low: float | Tensor, high: float | Tensor) -> Tensor:
    """Canny's edges of pictures that are blurred already.

    Args:
        grey: integers (B, H, W) in 0..255.
        low: the gradient magnitude |dx| + |dy| above which a ridge continues an edge, a number or one for each picture
            as (B, 1, 1); rounded down. The two thresholds may come in either order.
        high: the one above which it starts an edge.

    Returns:
        bool (B, H, W), True on edges.
    """
    dx, dy = _sobel(grey.int())
    magnitude = dx.abs() + dy.abs()
    thresholds = [torch.as_tensor(threshold, dtype=torch.float64) for threshold in (low, high)]
    weak = _ridges(dx, dy, magnitude) & (magnitude > torch.minimum(*thresholds).floor().int())
    strong = weak & (magnitude > torch.maximum(*thresholds).floor().int())
    return _hysteresis(weak, strong)


def closing(mask: Tensor, element: Tensor) -> Tensor:
    """bool (B, H, W) -> bool (B, H, W), dilated and then eroded by a symmetric (h, w) element, h and w odd.

    What lies outside the picture takes part in neither, as in OpenCV. `element` is best on the CPU, where it is read.
    """
    return ~_dilated(~_dilated(mask, element), element)


def _dilated(mask: Tensor, element: Tensor) -> Tensor:
    height, width = mask.shape[1:]
    above, beside = len(element) // 2, element.shape[1] // 2
    padded = pad(mask, (beside, beside, above, above))
    dilated = torch.zeros_like(mask)
    for i, j in element.nonzero().tolist():
        dilated |= padded[:, i : i + height, j : j + width]
    return dilated


def _sobel(grey: Tensor) -> tuple[Tensor, Tensor]:
    """int32 (B, H, W) -> its derivatives along x and y, -1020..1020; the border repeats its outermost pixel."""
    padded = grey
    for dim in (1, 2):
        length = padded.shape[dim]
        place = torch.arange(-1, length + 1, device=grey.device).clamp(0, length - 1)
        padded = padded.index_select(dim, place)
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return down[:, :, 2:] - down[:, :, :-2], across[:, 2:] - across[:, :-2]


def _ridges(dx: Tensor, dy: Tensor, magnitude: Tensor) -> Tensor:
    """Where the magnitude is a maximum along the gradient, its direction rounded to 45 degrees. bool (B, H, W).

    Of two equal neighbours along an axis the one further left or up is the ridge; along a diagonal neither is.
    """
    height, width = dx.shape[1:]
    padded = pad(magnitude, (1, 1, 1, 1))

    def neighbour(down: int, right: int) -> Tensor:
        return padded[:, 1 + down : 1 + down + height, 1 + right : 1 + right + width]

    rise, flat = dy.abs() << 15, dx.abs() * _TAN_22_5
    horizontal = rise < flat
    vertical = rise > flat + (dx.abs() << 16)
    falling = (dx ^ dy) < 0
    before = torch.where(falling, neighbour(-1, 1), neighbour(-1, -1))
    after = torch.where(falling, neighbour(1, -1), neighbour(1, 1))
    for straight, earlier, later in (
        (horizontal, neighbour(0, -1), neighbour(0, 1)),
        (vertical, neighbour(-1, 0), neighbour(1, 0)),
    ):
        before = torch.where(straight, earlier, before)
        after = torch.where(straight, later - 1, after)
    return (magnitude > before) & (magnitude > after)


def _hysteresis(weak: Tensor, strong: Tensor) -> Tensor:
    """The pixels of `weak` that touch, through other weak ones, sides or corners, one of `strong`. bool (B, H, W).

    Connected components by hooking and pointer jumping (Shiloach and Vishkin, "An O(log n) parallel connectivity
    algorithm", 1982): a spiral of n pixels takes about log(n) rounds where growing edges pixel by pixel takes n.
    """
    height, width = weak.shape[1:]
    # A frame of one empty pixel parts the pictures of the batch and stands for the neighbours that a border lacks.
    framed = pad(weak, (1, 1, 1, 1))
    pixels = framed.flatten().nonzero()[:, 0]
    # Node 0 stands for "on an edge", the weak pixels are nodes 1, 2, ...; no parent has a higher number than its child.
    nodes = torch.arange(1, len(pixels) + 1, device=weak.device)
    number = torch.zeros(framed.numel(), dtype=torch.long, device=weak.device)
    number[pixels] = nodes
    parent = torch.cat([nodes.new_zeros(1), nodes * ~pad(strong, (1, 1, 1, 1)).flatten()[pixels]])
    # Right, and the three below: each touching pair once.
    touching = torch.stack([number[pixels + step] for step in (1, width + 1, width + 2, width + 3)])
    pairs = torch.stack([nodes.expand_as(touching), touching])[:, touching > 0]
    while pairs.numel():
        # Pairs of trees, named by their roots, of which the higher then hangs itself below the lowest that it touches.
        pairs = parent[pairs]
        pairs = pairs[:, pairs[0] != pairs[1]]
        lower, higher = torch.minimum(*pairs), torch.maximum(*pairs)
        parent.scatter_reduce_(0, higher, lower, "amin")
        while not torch.equal(parent, grandparent := parent[parent]):
            parent = grandparent[grandparent]
    on_edge = torch.zeros_like(framed)
    on_edge.view(-1)[pixels] = parent[1:] == 0
    return on_edge[:, 1:-1, 1:-1]
