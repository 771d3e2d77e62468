import re
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference.models import NO_LOSS, SMALL, stage1
from reference.parity import fill, relative_error
from skimage import data
from torch import Tensor

from basicsr.metrics.seams import seam_score
from basicsr.utils.errors import UserError
from ldm.inference import Upscaler
from ldm.inference.networks import Networks, chosen_device
from ldm.inference.picture import Picture
from ldm.inference.pipeline import NotEnoughMemoryError, friendly_memory_errors
from ldm.inference.settings import UpscaleSettings
from ldm.inference.tiled_vae import TiledAutoencoder, feather
from ldm.models.autoencoder import AutoencoderKLResi
from ldm.models.diffusion.tiling import tile_starts

FRAME = 32  # pixels; f is 2, and the U-Net halves once
FAST = UpscaleSettings(steps=2, upscale=2, tile="auto")
PHOTO = data.chelsea()[60:124, 100:190]


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(stage1().eval().requires_grad_(False), None, FRAME, torch.device("cpu"))


def part(height: int, width: int, top: int = 0) -> Tensor:
    """(3, height, width) of a photograph in [0, 1]."""
    return torch.from_numpy(PHOTO[top : top + height, :width].astype(np.float32) / 255).permute(2, 0, 1)


def upscaled(networks: Networks, picture: Tensor, **settings: object) -> Tensor:
    result = Upscaler(networks, replace(FAST, **settings))(picture)  # type: ignore[arg-type]  # keywords of several types
    assert isinstance(result, Tensor)
    return result


@pytest.mark.parametrize(("height", "width", "factor"), [(8, 8, 1), (9, 31, 2), (20, 13, 3.3), (17, 40, 2.5)])
def test_any_size_and_factor(networks: Networks, height: int, width: int, factor: float) -> None:
    result = upscaled(networks, part(height, width), upscale=factor)
    assert result.shape == (3, round(height * factor), round(width * factor))
    assert result.min() >= 0 and result.max() <= 1 and result.std() > 0.01


def test_the_result_looks_like_the_input(networks: Networks) -> None:
    # The networks are random, so that only the colour correction can have brought it near.
    small = part(16, 16)
    large = Upscaler(networks, FAST).enlarged(Picture(small)).rgb_01
    for fix in ("adain", "wavelet"):
        corrected = upscaled(networks, small, colorfix=fix)
        assert (corrected.mean(dim=(1, 2)) - large.mean(dim=(1, 2))).abs().max() < 0.05
    assert (upscaled(networks, small, colorfix="none") - corrected).abs().max() > 0.1


def test_neither_company_nor_batch_size_changes_a_picture(networks: Networks) -> None:
    pictures = [Picture(part(14, 15, top)) for top in (0, 20, 40)]
    together = Upscaler(networks, replace(FAST, batch=4)).upscale(pictures)
    for picture, result in zip(pictures, together, strict=True):
        alone = Upscaler(networks, replace(FAST, batch=1)).upscale([picture])[0]
        assert (result.rgb_01 - alone.rgb_01).abs().max() < 1e-5
    tiles = [upscaled(networks, part(20, 40), batch=batch) for batch in (1, 4)]
    assert (tiles[0] - tiles[1]).abs().max() < 1e-5
    assert not torch.equal(tiles[0], upscaled(networks, part(20, 40), seed=1))


def test_a_batched_tensor_is_its_pictures_one_by_one(networks: Networks) -> None:
    both = torch.stack([part(8, 9), part(8, 9, 30)])
    result = upscaled(networks, both)
    assert torch.equal(result[1], upscaled(networks, both[1]))


def test_alpha_and_greyness_are_kept(networks: Networks) -> None:
    alpha = np.tile(np.linspace(0, 255, 16, dtype=np.uint8), (16, 1))
    rgba = np.concatenate([PHOTO[:16, :16], alpha[..., None]], axis=2)
    result = Upscaler(networks, FAST)(Image.fromarray(rgba))
    assert isinstance(result, Image.Image) and result.mode == "RGBA" and result.size == (32, 32)
    grown = np.asarray(result)[..., 3].astype(int)
    assert (np.diff(grown.mean(axis=0)) >= 0).all() and abs(grown - np.repeat(alpha, 2, axis=1)[:1]).max() < 15
    grey = Upscaler(networks, FAST)(PHOTO[:16, :16, 0])
    assert isinstance(grey, np.ndarray) and grey.shape == (32, 32) and grey.dtype == np.uint8


@pytest.mark.parametrize(
    "settings",
    [
        {"sampler": "ddim", "eta": 0.5},
        {"start_t": 200},
        {"guidance_scale": 4.0, "negative_prompt": "blurred"},
    ],
)
def test_every_choice_of_sampling_has_an_effect(networks: Networks, settings: dict[str, Any]) -> None:
    assert (upscaled(networks, part(16, 16), **settings) - upscaled(networks, part(16, 16))).abs().max() > 1e-3


def test_one_tile_that_covers_all_is_no_tiling(networks: Networks) -> None:
    small = part(48, 40)
    whole = upscaled(networks, small, tile="none")
    assert (upscaled(networks, small, tile=128) - whole).abs().max() < 1e-5
    assert (upscaled(networks, small, tile=64) - whole).abs().max() > 1e-3


def test_seams_are_no_steeper_than_the_rest(networks: Networks) -> None:
    small, tile, overlap = part(48, 48), 64, 32
    settings = {"tile_overlap": overlap, "steps": 1}
    tiled, whole = (upscaled(networks, small, tile=choice, **settings) for choice in (tile, "none"))
    starts = tile_starts(96, tile, overlap)
    borders = [*starts[1:], *(start + tile for start in starts[:-1])]
    score = seam_score(tiled.permute(1, 2, 0).numpy(), whole.permute(1, 2, 0).numpy(), borders, borders)
    assert 0 < score < 1.25


@pytest.mark.parametrize("tile", [8, 12])
def test_the_autoencoder_in_tiles_is_nearly_the_autoencoder(networks: Networks, tile: int) -> None:
    vae = networks.model.first_stage_model
    tiled, whole = (TiledAutoencoder(vae, None, 0.5, networks.device, side, 4) for side in (tile, None))
    image = part(48, 64)[None] * 2 - 1
    z, z_whole = (each.encode(image, torch.Generator().manual_seed(0)) for each in (tiled, whole))
    assert z.shape == z_whole.shape == (1, 4, 24, 32)
    assert torch.equal(tiled.decode(z, image), tiled.decode(z, image + 1))  # without CFW the input is not looked at
    # Random group norms see other statistics in each tile, so that only the gist can agree.
    assert np.corrcoef(z.flatten(), z_whole.flatten())[0, 1] > 0.8
    decoded, decoded_whole = tiled.decode(z_whole, image), whole.decode(z_whole, image)
    assert decoded.shape == image.shape and np.corrcoef(decoded.flatten(), decoded_whole.flatten())[0, 1] > 0.8


def test_a_feather_fades_over_the_overlap_and_is_flat_inside() -> None:
    weights = feather(12, 20, 4)
    assert weights.shape == (12, 20) and weights.min() > 0
    assert torch.equal(weights[4:8, 4:16], torch.ones(4, 12))
    assert torch.allclose(weights[6, :4] + weights[6, -4:], torch.ones(4))  # neighbours sum to 1


@pytest.fixture(scope="module")
def wrapped(networks: Networks) -> Networks:
    """A model whose autoencoder has three levels, with a CFW decoder."""
    three = {**SMALL["first_stage"], "ch_mult": [1, 1, 1]}
    kind = {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"embed_dim": 4, "ddconfig": three, "lossconfig": NO_LOSS},
    }
    model = stage1(first_stage_config=kind).eval().requires_grad_(False)
    cfw = AutoencoderKLResi(three, NO_LOSS, 4)
    fill(cfw).eval().requires_grad_(False)
    cfw.load_state_dict(model.first_stage_model.state_dict(), strict=False)
    return Networks(model, cfw, FRAME, networks.device)


def test_feature_wrapping_follows_its_weight(wrapped: Networks) -> None:
    plain, small = replace(wrapped, cfw=None), part(24, 20)
    assert plain.multiple == 8  # f is 4 here
    assert torch.equal(upscaled(wrapped, small, dec_w=0.0), upscaled(plain, small))
    results = [upscaled(wrapped, small, dec_w=w) for w in (0.0, 0.5, 1.0)]
    assert relative_error(results[1], results[0]) > 1e-3 and relative_error(results[2], results[1]) > 1e-3


def test_threads_that_share_networks_keep_their_own_weight_of_features(wrapped: Networks) -> None:
    small, weights = part(24, 20), (0.0, 0.5, 1.0)
    alone = [upscaled(wrapped, small, dec_w=w) for w in weights]
    together = threading.Barrier(len(weights), timeout=60)
    waited = threading.local()

    def meet(*_: object) -> None:
        # The upscales meet once, before any of them decodes: of what they set on the networks the last one would win.
        if not getattr(waited, "done", False):
            waited.done = True
            together.wait()

    with wrapped.model.model.diffusion_model.register_forward_pre_hook(meet), ThreadPoolExecutor(len(weights)) as pool:
        results = list(pool.map(lambda w: upscaled(wrapped, small, dec_w=w), weights))
    for result, expected in zip(results, alone, strict=True):
        assert torch.equal(result, expected)


def test_what_does_not_change_between_steps_is_computed_once(networks: Networks) -> None:
    model, calls = networks.model, {"structure": 0, "unet": 0, "encoder": 0}

    def counted(name: str) -> object:
        return lambda *_: calls.update({name: calls[name] + 1})

    parts = {
        "structure": model.structcond_stage_model,
        "unet": model.model.diffusion_model,
        "encoder": model.first_stage_model.encoder,
    }
    hooks = [module.register_forward_hook(counted(name)) for name, module in parts.items()]
    upscaled(networks, part(16, 24), steps=3, tile_overlap=16, guidance_scale=2.0)  # two tiles
    for hook in hooks:
        hook.remove()
    assert calls == {"structure": 6, "unet": 6, "encoder": 2}  # both texts in one batch


def test_progress_is_seen(networks: Networks) -> None:
    seen: dict[str, int] = {}

    def progress(name: str, parts: Iterable[Any]) -> Iterable[Any]:
        parts = list(parts)
        seen[name] = len(parts)
        return parts

    Upscaler(networks, FAST)(part(16, 24), progress)
    assert seen == {"encoding": 2, "sampling": 2, "decoding": 2}


@pytest.mark.parametrize(("precision", "tolerance"), [(torch.bfloat16, 0.2), (torch.float16, 0.05)])
def test_half_precision_is_near(networks: Networks, precision: torch.dtype, tolerance: float) -> None:
    half = stage1().eval().requires_grad_(False)
    for network in (half.model, half.structcond_stage_model):
        network.to(precision)
    got = upscaled(replace(networks, model=half), part(16, 16))
    assert 0 < (got - upscaled(networks, part(16, 16))).abs().mean() < tolerance


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"upscale": 0.5}, "upscale is 0.5: give a number from 1 to 16"),
        ({"steps": 0}, "steps is 0"),
        ({"sampler": "ddmp"}, "sampler is 'ddmp': did you mean 'ddpm'"),
        ({"colorfix": "adian"}, "did you mean 'adain'"),
        ({"eta": 2}, "eta is 2"),
        ({"dec_w": -1}, "dec_w is -1"),
        ({"tile": 63}, "tile is 63: give 64"),
        ({"tile": "all"}, "tile is 'all'"),
        ({"tile_overlap": 32}, "less than the tiles' 32 pixels"),
        ({"batch": 0}, "batch is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(networks: Networks, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        upscaled(networks, part(8, 8), **settings)


def test_pictures_that_cannot_be_upscaled_are_refused(networks: Networks) -> None:
    for picture, message in ((part(1, 1), "1 x 1 pixels: each side must be 8"), (part(3, 90), "90 x 3 pixels")):
        with pytest.raises(UserError, match=message):
            upscaled(networks, picture)
    with pytest.raises(UserError, match="not enough memory for a result of 64000 x 1600000"):
        Upscaler(networks, replace(FAST, upscale=16)).canvas_size(Picture(torch.zeros(1, 1, 1).expand(3, 100000, 4000)))
    with pytest.raises(UserError, match="device nonsense is not there"):
        chosen_device("nonsense")


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("place", ["sampling", "decoding", "one pixel"])
def test_a_result_that_is_not_finite_is_an_error(precision: torch.dtype, place: str) -> None:
    model = stage1().eval().requires_grad_(False)
    model.model.to(precision)
    model.structcond_stage_model.to(precision)
    if place == "sampling":
        model.get_parameter("model.diffusion_model.input_blocks.0.0.bias").fill_(torch.finfo(precision).max)

    def spoil(_module: object, _inputs: object, output: Tensor) -> Tensor:
        return (
            output
            if place == "sampling"
            else output.index_put(tuple(torch.tensor([i]) for i in (0, 1, 7, 9)), torch.tensor(float("inf")))
            if place == "one pixel"
            else output / 0
        )

    with model.first_stage_model.decoder.register_forward_hook(spoil):
        networks = Networks(model, None, FRAME, torch.device("cpu"))
        for colorfix in ("adain", "wavelet", "none"):
            with pytest.raises(UserError, match="not finite") as error:
                upscaled(networks, part(16, 16), colorfix=colorfix)
    advice = "precision is fp16, .* choose bf16 or fp32" if precision == torch.float16 else "weights may be damaged"
    assert re.search(advice, str(error.value))


def test_what_transparency_hides_does_not_bleed(networks: Networks) -> None:
    y, x = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    disc = ((x - 15.5) ** 2 + (y - 15.5) ** 2 < 100).float()[None]
    red, black = torch.tensor([1.0, 0.16, 0.16]).view(3, 1, 1).expand(3, 32, 32), torch.zeros(3, 32, 32)
    full = Upscaler(networks, FAST).upscale([Picture(red, disc)])[0]
    hidden = Upscaler(networks, FAST).upscale([Picture(red * disc + black * (1 - disc), disc)])[0]
    assert torch.allclose(full.rgb_01, hidden.rgb_01, atol=1e-5)
    assert hidden.alpha_01 is not None and 0 < hidden.alpha_01.min() + hidden.alpha_01.max() <= 1
    large = Upscaler(networks, FAST).enlarged(Picture(red * disc, disc)).rgb_01
    assert torch.allclose(large, red[:, :1, :1].expand_as(large), atol=1e-5)  # red to the rim and beyond


def test_running_out_of_memory_is_explained_and_bugs_are_not() -> None:
    for error in (
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"),
    ):
        with pytest.raises(NotEnoughMemoryError, match="not enough memory here"), friendly_memory_errors("here"):
            raise error
    with pytest.raises(RuntimeError, match="shapes"), friendly_memory_errors("here"):
        raise RuntimeError("shapes")
