"""Makes lpips.npz: torchmetrics' LPIPS on the random weights of `LPIPS(net, random_seed=0)`.

Run once by hand where torchvision is installed, from the project's folder: python tests/reference/lpips_distances.py
It was made with torch 2.13.0, torchvision 0.28.0, torchmetrics 1.9.0 on a CPU. Each entry `net` holds (2,) distances of
the pairs that `pictures` gives; torchmetrics reads its heads by itself, the backbone's weights are copied by name.
"""

import sys
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from basicsr.metrics.lpips import BACKBONES, LPIPS
from basicsr.utils.rng import numpy_rng


def pictures() -> tuple[Tensor, Tensor]:
    """Two pairs of pictures of noise (2, 3, 64, 72) in [-1, 1], a little and quite different."""
    rng = numpy_rng("LPIPS reference")
    a = rng.uniform(-1, 1, (2, 3, 64, 72)).astype(np.float32)
    b = rng.uniform(-1, 1, (2, 3, 64, 72)).astype(np.float32)
    share = np.array([0.1, 0.9], np.float32).reshape(2, 1, 1, 1)
    return torch.from_numpy(a), torch.from_numpy((1 - share) * a + share * b)


def torchmetrics_distances(net: str) -> np.ndarray:
    """(2,) by torchmetrics; its backbone is torchvision's, cut into slices that keep the layers' order."""
    from torchmetrics.functional.image.lpips import _LPIPS

    theirs = _LPIPS(pretrained=True, net=cast(Any, net), pnet_rand=True)
    ours = LPIPS(net, random_seed=0).features.state_dict()
    slots = list(theirs.net.state_dict())
    assert len(slots) == len(ours)
    # The layers' last names (such as squeeze.weight) and shapes agree in order, or loading fails.
    theirs.net.load_state_dict(dict(zip(slots, ours.values(), strict=True)))
    distances: np.ndarray = theirs(*pictures()).flatten().numpy()
    return distances


if __name__ == "__main__":
    torch.set_grad_enabled(False)
    found = {net: torchmetrics_distances(net) for net in BACKBONES}
    np.savez(Path(__file__).with_name("lpips.npz"), **cast(Any, found))
    sys.stdout.write(f"{found}\n")
