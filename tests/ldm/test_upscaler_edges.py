"""Upscaling with models that see edges: what they are told, in tiles, with guidance, and from edges alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference.models import SMALL, stage1
from reference.parity import relative_error
from skimage import data
from torch import Tensor

from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import FieldError
from basicsr.utils.ranges import to_pm1
from basicsr.utils.rng import torch_rng
from ldm.inference import Upscaler
from ldm.inference.networks import Networks
from ldm.inference.picture import Picture
from ldm.inference.settings import UpscaleSettings
from ldm.inference.tiled_vae import TiledAutoencoder

FRAME = 32  # pixels; f is 2
FAST = UpscaleSettings(steps=2, upscale=2, colorfix="none")
PHOTO = np.ascontiguousarray(data.coffee()[::6, ::6])  # so small that it is full of edges
SMALL_PHOTO = torch.from_numpy(PHOTO[20:40, 20:46].astype(np.float32) / 255).permute(2, 0, 1)


def networks(channels: int, **condition: Any) -> Networks:
    torch.manual_seed(0)
    structure = {
        "target": "ldm.modules.diffusionmodules.openaimodel.EncoderUNetModelWT",
        "params": {**SMALL["structure"], "in_channels": channels},
    }
    model = stage1(structcond_stage_config=structure, edge_condition=condition or None)
    return Networks(model.eval().requires_grad_(False), None, FRAME, torch.device("cpu"))


@pytest.fixture(scope="module")
def beside() -> Networks:
    return networks(8, use="beside")


@pytest.fixture(scope="module")
def alone() -> Networks:
    return networks(4, use="alone")


def upscaled(of: Networks, picture: Tensor = SMALL_PHOTO, drawn: Any = None, **settings: Any) -> Tensor:
    result = Upscaler(of, replace(FAST, **settings))(picture, edges=drawn)
    assert isinstance(result, Tensor)
    return result


def told(of: Networks, picture: Tensor, **settings: Any) -> Tensor:
    shown = Upscaler(of, replace(FAST, **settings)).edge_map(Picture(picture))
    assert shown is not None
    return shown.rgb_01


def test_what_is_told_decides_the_result_and_nothing_else_does(beside: Networks) -> None:
    results = {edges: upscaled(beside, edges=edges) for edges in ("lq", "none", "dummy")}
    pairs = [("lq", "none"), ("lq", "dummy"), ("none", "dummy")]
    assert all((results[a] - results[b]).abs().max() > 1e-3 for a, b in pairs)
    assert torch.equal(upscaled(beside), results["lq"])  # which is the default


def test_a_drawn_map_that_is_the_lq_map_gives_the_same_result(beside: Networks) -> None:
    size = (3, 32, 32)  # a whole frame: nothing is mirrored, whose edges would be others
    photo = torch.nn.functional.interpolate(SMALL_PHOTO[None, :, :16, :16], size=size[1:], mode="bicubic")[0].clamp(
        0, 1
    )
    own = told(beside, photo, upscale=1)
    expected = EdgeMapGenerator().edges_01(to_pm1(photo)[None])[0].expand(3, -1, -1)
    assert torch.equal(own, expected) and 0 < expected.mean() < 0.5
    given = upscaled(beside, photo, own, upscale=1, edges="file")
    assert torch.equal(given, upscaled(beside, photo, upscale=1))
    moved = upscaled(beside, photo, own.flip(-1), upscale=1, edges="file")
    assert (given - moved).abs().max() > 1e-3


def test_pictures_of_edges_may_be_of_any_kind_and_size(beside: Networks) -> None:
    drawn = np.zeros((40, 52), np.uint8)  # the result's size
    drawn[10, 5:40] = drawn[10:30, 20] = 255
    grey = upscaled(beside, drawn=drawn, edges="file")
    assert torch.equal(upscaled(beside, drawn=Image.fromarray(drawn).convert("RGB"), edges="file"), grey)
    large = np.kron(drawn, np.ones((3, 3), np.uint8))
    assert torch.equal(upscaled(beside, drawn=large, edges="file"), grey)
    transparent = np.full((40, 52, 4), 255, np.uint8)
    transparent[..., 3] = drawn
    assert torch.equal(upscaled(beside, drawn=transparent, edges="file"), grey)
    # A line one pixel wide is there at a third of the size, too.
    thin = np.zeros((120, 156), np.uint8)
    thin[31] = 255
    shown = Upscaler(beside, replace(FAST, edges="file")).edge_map(
        Picture(SMALL_PHOTO), Picture.from_planes(torch.from_numpy(thin)[None] / 255)
    )
    assert shown is not None and shown.rgb_01[0, 10].min() == 1 and shown.rgb_01.sum() == 3 * 52


def test_tiles_cut_map_and_picture_alike() -> None:
    resized = networks(5, use="beside", encode="resize")  # whose map can be told in what the encoder sees
    photo = torch.from_numpy(PHOTO[:32, :64].astype(np.float32) / 255).permute(2, 0, 1)
    seen: list[Tensor] = []
    hook = resized.model.structcond_stage_model.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    upscaled(resized, photo, upscale=1, steps=1, tile_overlap=0, edge_scale=2.0)
    hook.remove()
    cells = torch.nn.functional.avg_pool2d(to_pm1(told(resized, photo, upscale=1)[:1]), 2)
    vae = TiledAutoencoder(resized.model.first_stage_model, None, resized.model.scale_factor, resized.device, 16, 0)
    z_lq = vae.encode(to_pm1(photo)[None], torch_rng("cpu", "upscale", FAST.seed))
    (left, left_without), (right, right_without) = (with_and_without.split(1) for with_and_without in seen)
    for tile, without, columns in ((left, left_without, slice(0, 16)), (right, right_without, slice(16, 32))):
        assert relative_error(tile[0, 4:], cells[..., columns]) < 1e-6
        assert (without[0, 4] == -1).all() and torch.equal(tile[:, :4], without[:, :4])
        assert torch.equal(tile[:, :4], z_lq[..., columns])


def test_guidance_on_edges(beside: Networks) -> None:
    lq, none = upscaled(beside), upscaled(beside, edges="none")
    assert torch.equal(upscaled(beside, edge_scale=1.0), lq)
    assert relative_error(upscaled(beside, edge_scale=0.0), none) < 1e-4
    assert (upscaled(beside, edge_scale=3.0) - lq).abs().max() > 1e-3
    both = upscaled(beside, edge_scale=3.0, guidance_scale=2.0, prompt="a cat")
    assert (both - upscaled(beside, edge_scale=3.0)).abs().max() > 1e-3


def test_a_batch_is_its_pictures_one_by_one(beside: Networks) -> None:
    pictures = [Picture(SMALL_PHOTO), Picture(SMALL_PHOTO.flip(-1))]
    maps = [Picture(told(beside, picture.rgb_01)) for picture in pictures]
    upscaler = Upscaler(beside, replace(FAST, edges="file", edge_scale=2.0, batch=2))
    together = upscaler.upscale(pictures, edges=maps)
    for picture, edges, result in zip(pictures, maps, together, strict=True):
        single = upscaler.upscale([picture], edges=[edges])[0]
        assert (single.rgb_01 - result.rgb_01).abs().max() < 1e-5


def test_edges_become_a_picture(alone: Networks) -> None:
    drawn = np.zeros((32, 32), np.uint8)
    drawn[8, 4:28] = drawn[8:24, 16] = 255
    upscaler = Upscaler(alone, replace(FAST, upscale=1, colorfix="adain"))
    assert (upscaler.settings.edges, upscaler.settings.start) == ("input", "noise")
    made = upscaler(drawn)
    assert isinstance(made, np.ndarray) and made.shape == (32, 32, 3)  # in colours, though its edges are grey
    shown = upscaler.edge_map(Picture.from_planes(torch.from_numpy(drawn)[None] / 255))
    assert shown is not None and torch.equal((shown.rgb_01[0] * 255).to(torch.uint8), torch.from_numpy(drawn))
    other = Upscaler(alone, replace(FAST, upscale=1))(drawn[::-1].copy())
    assert not np.array_equal(other, made)  # type: ignore[arg-type]  # a picture for a picture
    from_edges = Upscaler(alone, replace(FAST, upscale=1, start="input"))(drawn)
    assert not np.array_equal(from_edges, made)  # type: ignore[arg-type]  # a picture for a picture
    prompted = Upscaler(alone, replace(FAST, upscale=1, prompt="a house"))(drawn)
    assert not np.array_equal(prompted, made)  # type: ignore[arg-type]  # a picture for a picture
    assert Upscaler(alone, replace(FAST, start_t=500)).settings.start == "input"


def test_edges_of_a_photograph_become_a_picture(alone: Networks) -> None:
    # Nothing but its edges is seen of it: pictures of one map become one picture.
    photo = torch.nn.functional.interpolate(SMALL_PHOTO[None, :, :16, :16], size=(32, 32), mode="bicubic")[0].clamp(
        0, 1
    )
    made = upscaled(alone, photo, upscale=1, edges="lq")
    drawn = EdgeMapGenerator().edges_01(to_pm1(photo)[None])[0]
    assert torch.equal(made, upscaled(alone, drawn, upscale=1))


def test_a_map_at_the_size_of_the_latent() -> None:
    resized = networks(5, use="beside", encode="resize")
    lq, none = upscaled(resized), upscaled(resized, edges="none")
    assert (lq - none).abs().max() > 1e-3
    only = networks(1, use="alone", encode="resize")
    assert upscaled(only, SMALL_PHOTO.mean(dim=0, keepdim=True).round()).shape == (3, 40, 52)
    with pytest.raises(FieldError, match="start is input: this model's edges are no latent"):
        upscaled(only, start="input")


def test_wrong_wishes_are_refused(beside: Networks) -> None:
    plain = networks(4)
    for wrong in ({"edges": "lq"}, {"edge_scale": 2.0}):
        with pytest.raises(FieldError, match="this model sees no edges"):
            Upscaler(plain, replace(FAST, **wrong))
    assert Upscaler(plain, FAST).edge_map(Picture(SMALL_PHOTO)) is None
    with pytest.raises(FieldError, match="edges is input: this model wants edges beside"):
        Upscaler(beside, replace(FAST, edges="input"))
    with pytest.raises(FieldError, match="edges is file, and no picture of edges is given"):
        upscaled(beside, edges="file")
    with pytest.raises(FieldError, match="edges is lq, and a picture of edges is given: choose file"):
        upscaled(beside, drawn=SMALL_PHOTO)
    with pytest.raises(FieldError, match="did you mean 'none'"):
        replace(FAST, edges="non")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(FieldError, match="start is noise, which is all there is at the last step"):
        replace(FAST, start="noise", start_t=3)
