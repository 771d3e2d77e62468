"""LPIPS without torchvision: Zhang et al., "The Unreasonable Effectiveness of Deep Features", CVPR 2018.

    d(a, b) = sum_l mean_hw  w_l . (f_l(a) / |f_l(a)| - f_l(b) / |f_l(b)|)^2

f_l are the activations of an ImageNet classifier after some of its layers, w_l >= 0 one learned weight per channel. The
weights w_l come with the package torchmetrics; those of the classifier are a file that users have. Nothing is ever
fetched from the network.
"""

import importlib.util
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from basicsr.utils.checks import unknown
from basicsr.utils.errors import FieldError, first_line
from basicsr.utils.rng import numpy_rng

# The means and standard deviations of ImageNet's colours, for pictures in [-1, 1].
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)
EPSILON = 1e-8  # under the root of the norm: keeps the gradient finite where all channels are 0
_SAVED_IN_SLICES = re.compile(r"^(?:.*\.)?net\.slice\d+\.(\d+\..+)$")

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Backbone:
    """A classifier's convolutional part: torchvision's layers of that name, after which of them to look, its file."""

    label: str
    file: str  # the published weights
    taps: tuple[int, ...]


BACKBONES = {
    "vgg": Backbone("VGG16", "vgg16-397923af.pth", (3, 8, 15, 22, 29)),
    "alex": Backbone("AlexNet", "alexnet-owt-7be5be79.pth", (1, 4, 7, 9, 11)),
    "squeeze": Backbone("SqueezeNet 1.1", "squeezenet1_1-b8a52dc0.pth", (1, 4, 7, 9, 10, 11, 12)),
}


class Fire(nn.Module):
    """SqueezeNet's module (Iandola et al. 2016): `channels` -> `squeezed` -> twice `expanded`, by 1x1 and by 3x3."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, 2 expanded, H, W)."""
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


def _vgg16() -> Iterator[nn.Module]:
    channels = 3
    for stage, (width, convolutions) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        if stage:
            yield nn.MaxPool2d(2)
        for _ in range(convolutions):
            yield from (nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())
            channels = width


def _alexnet() -> Iterator[nn.Module]:
    yield from (nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2))
    yield from (nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2))
    for channels, width in ((192, 384), (384, 256), (256, 256)):
        yield from (nn.Conv2d(channels, width, 3, padding=1), nn.ReLU())


def _squeezenet() -> Iterator[nn.Module]:
    yield from (nn.Conv2d(3, 64, 3, stride=2), nn.ReLU())
    for pair in (((64, 16, 64), (128, 16, 64)), ((128, 32, 128), (256, 32, 128))):
        yield from (nn.MaxPool2d(3, 2, ceil_mode=True), *(Fire(*widths) for widths in pair))
    yield nn.MaxPool2d(3, 2, ceil_mode=True)
    yield from (Fire(*widths) for widths in ((256, 48, 192), (384, 48, 192), (384, 64, 256), (512, 64, 256)))


_LAYERS = {"vgg": _vgg16, "alex": _alexnet, "squeeze": _squeezenet}


class LPIPS(nn.Module):
    """The distance of two batches of pictures; frozen, yet a gradient passes to the pictures.

    Args:
        net: "vgg", "alex" or "squeeze". The authors report AlexNet and train with VGG16.
        weights: the file of the classifier's weights, PyTorch's or safetensors; None looks for the published file in
            `$TORCH_HOME/hub/checkpoints`. A checkpoint that holds an LPIPS on VGG16 or AlexNet, as published CFW ones
            do, serves too.
        random_seed: with it the classifier has random weights of this seed, and no file is read. The numbers are then
            **no LPIPS**: a stand-in for tests, and for comparisons where no weights are to be had.

    Raises:
        FieldError: of `lpips_net`: there is no such network; of `lpips_weights`: the file is missing, cannot be read,
            or holds something else.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, net: str = "vgg", weights: str | Path | None = None, random_seed: int | None = None) -> None:
        super().__init__()
        if net not in BACKBONES:
            raise unknown("lpips_net", net, BACKBONES)
        self.net = net
        with torch.device("meta"):  # nothing is initialised in vain
            self.features = nn.Sequential(*_LAYERS[net]())
        shapes = {name: value.shape for name, value in self.features.state_dict().items()}
        if random_seed is None:
            state = _read_backbone(net, weights, shapes)
        else:
            state = _random_backbone(net, random_seed, shapes)
        self.features.load_state_dict(state, assign=True)
        self.heads = nn.ParameterList(_read_heads(net))
        self.register_buffer("shift", torch.tensor(SHIFT).view(3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(SCALE).view(3, 1, 1), persistent=False)
        self.requires_grad_(False)

    def forward(self, a_pm1: Tensor, b_pm1: Tensor) -> Tensor:
        """Pictures (B, 3, H, W) in [-1, 1], sides of 32 pixels or more -> distances (B,), 0 for equal ones."""
        total = a_pm1.new_zeros(len(a_pm1), dtype=torch.float32)
        with torch.autocast(a_pm1.device.type, enabled=False):  # squared differences of unit vectors need the digits
            for a, b, head in zip(self.unit_features(a_pm1), self.unit_features(b_pm1), self.heads, strict=True):
                total = total + ((a - b).square() * head).sum(1).mean((1, 2))
        return total

    def unit_features(self, img_pm1: Tensor) -> list[Tensor]:
        """(B, 3, H, W) in [-1, 1] -> each tap's activations (B, C_l, H_l, W_l), of length 1 over the channels."""
        x = (img_pm1.float() - self.shift) / self.scale
        found = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in BACKBONES[self.net].taps:
                found.append(x / (x.square().sum(1, keepdim=True) + EPSILON).sqrt())
        return found


def _read_heads(net: str) -> list[nn.Parameter]:
    """w_l as (C_l, 1, 1), from the installed torchmetrics, which is not imported for it."""
    spec = importlib.util.find_spec("torchmetrics")
    folders = (spec.submodule_search_locations if spec else None) or ["torchmetrics"]
    file = Path(folders[0], "functional", "image", "lpips_models", f"{net}.pth")
    if not file.is_file():
        raise FieldError("lpips_net", f"{net} needs {file}, which comes with the package torchmetrics: install it anew")
    state = torch.load(file, map_location="cpu", weights_only=True)
    count = len(BACKBONES[net].taps)
    return [nn.Parameter(state[f"lin{index}.model.1.weight"].view(-1, 1, 1)) for index in range(count)]


def _random_backbone(net: str, seed: int, shapes: dict[str, torch.Size]) -> StateDict:
    """Normal weights that keep the variance through ReLUs (He et al. 2015), zero biases."""
    rng = numpy_rng("random LPIPS features", net, seed)
    state = {}
    for name, shape in shapes.items():
        deviation = math.sqrt(2 / math.prod(shape[1:])) if len(shape) > 1 else 0.0
        state[name] = torch.from_numpy(rng.standard_normal(shape, dtype="float32")) * deviation
    return state


def _read_backbone(net: str, weights: str | Path | None, shapes: dict[str, torch.Size]) -> StateDict:
    """The classifier's tensors by their names in `features`."""
    label, name = BACKBONES[net].label, BACKBONES[net].file
    folder = Path(torch.hub.get_dir(), "checkpoints")
    file = Path(weights).expanduser() if weights else folder / name
    if not file.is_file():
        advice = f"put {name}, {label}'s ImageNet weights from torchvision's model zoo, into {folder}, or name the file"
        raise FieldError("lpips_weights", f"{file} is not there: {advice}" if weights else f"are not there: {advice}")
    state = _tensors(file)
    plain = {_SAVED_IN_SLICES.sub(r"\1", key).removeprefix("features."): value for key, value in state.items()}
    if wrong := [key for key, shape in shapes.items() if key not in plain or plain[key].shape != shape]:
        raise FieldError("lpips_weights", f"{file} holds no {label}: features.{wrong[0]} is absent or of another shape")
    return {key: plain[key].float() for key in shapes}


def _tensors(file: Path) -> StateDict:
    """The tensors of a state dict or of a checkpoint; nothing in the file can run code."""
    try:
        content = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:  # readers fail on damaged files in every possible way
        raise FieldError("lpips_weights", f"{file} cannot be read as weights ({first_line(error)})") from error
    state = content.get("state_dict", content) if isinstance(content, dict) else {}
    items = state.items() if isinstance(state, dict) else ()
    return {key: value for key, value in items if isinstance(value, Tensor)}
