"""Reference guidance: by the closed form for one step, in the sampler, through the upscaler and its command line."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from reference.models import stage1
from reference.parity import noise, relative_error
from skimage import data
from tiny_run import write_tiny_model
from torch import Tensor

from basicsr.utils.errors import FieldError, UserError
from ldm.inference import Upscaler, cli
from ldm.inference.networks import Networks
from ldm.inference.picture import Picture
from ldm.inference.settings import UpscaleSettings
from ldm.models.diffusion.reference import ReferencePull, pulled, towards
from ldm.models.diffusion.sampling import SAMPLERS, Sampling
from ldm.models.diffusion.schedule import make_betas

BETAS = make_betas(1000, 0.00085, 0.0120)
FAST = UpscaleSettings(steps=3, upscale=2, tile="auto", colorfix="none", reference_rate=0.4)
FACE = data.astronaut()[0:64, 180:260]


def part(height: int, width: int, top: int = 0) -> Tensor:
    return torch.from_numpy(FACE[top : top + height, :width].astype(np.float32) / 255).permute(2, 0, 1)


@pytest.fixture(scope="module")
def networks() -> Networks:
    torch.manual_seed(0)
    return Networks(stage1().eval().requires_grad_(False), None, 32, torch.device("cpu"))


@pytest.mark.parametrize("steps", [1, 3])
def test_the_pull_is_gradient_descent_on_the_squared_distance(steps: int) -> None:
    x0, z_ref = noise("x", (2, 4, 5, 6)), noise("ref", (2, 4, 5, 6))
    want = x0.clone()
    for _ in range(steps):
        x = want.clone().requires_grad_()
        (gradient,) = torch.autograd.grad((z_ref - x).square().sum(), x)
        want = want - 0.05 * gradient
    assert relative_error(pulled(x0, z_ref, rate=0.05, steps=steps), want) < 1e-6
    assert relative_error(pulled(x0, z_ref, rate=0.0, steps=steps), x0) < 1e-6
    assert relative_error(pulled(x0, z_ref, rate=0.5, steps=1), z_ref) < 1e-6  # all the way


def test_one_step_of_each_sampler_by_its_closed_form() -> None:
    """One step from t = 999 ends at x_0 for ddpm; ddim's last step keeps a little noise."""
    x_T, z_ref, x0 = (noise(name, (2, 4, 4, 4)) for name in ("xT", "ref", "x0"))
    correct = towards(z_ref, ReferencePull(rate=0.1, steps=2, between=(10, 1000)))
    moved = z_ref + 0.8**2 * (x0 - z_ref)
    ends = {}
    for name, sample in SAMPLERS.items():
        ends[name] = sample(
            lambda x, t: x0, x_T, BETAS, Sampling(1, name), parameterization="x0", noise=torch.randn, correct=correct
        )
    assert relative_error(ends["ddpm"], moved) < 1e-5
    first, last = 1 - BETAS[0], np.prod(1 - BETAS)
    eps = (x_T - np.sqrt(last) * moved) / np.sqrt(1 - last)
    assert relative_error(ends["ddim"], np.sqrt(first) * moved + np.sqrt(1 - first) * eps) < 1e-5


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("between", [(0, 1000), (500, 1000), (300, 600)])
def test_the_range_is_in_timesteps_of_the_whole_process(sampler: str, between: tuple[int, int]) -> None:
    x_T, x0 = noise("xT", (1, 4, 2, 2)), torch.zeros(1, 4, 2, 2)
    told: list[int] = []
    corrected: list[int] = []
    pull = towards(torch.ones_like(x0), ReferencePull(0.1, 1, between))

    def correct(x: Tensor, t: Tensor) -> Tensor:
        after = pull(x, t)
        corrected.extend(t.tolist() if not torch.equal(after, x) else [])
        return after

    def denoise(x: Tensor, t: Tensor) -> Tensor:
        told.append(int(t[0]))
        return x0

    SAMPLERS[sampler](
        denoise, x_T, BETAS, Sampling(10, sampler), parameterization="x0", noise=torch.randn, correct=correct
    )
    assert len(told) == 10 and max(told) >= 900
    assert corrected == [t for t in told if between[0] <= t <= between[1]]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
@pytest.mark.parametrize("tile", ["none", 64])
def test_a_result_comes_nearer_to_its_reference(networks: Networks, sampler: Any, tile: Any) -> None:
    reference = part(32, 40, 20).flip(2)

    def drawn(rate: float, top: int = 0) -> Tensor:
        settings = replace(FAST, sampler=sampler, tile=tile, reference_rate=rate, reference_range=(0, 1000))
        result = Upscaler(networks, settings)(part(16, 20, top), reference=reference)
        assert isinstance(result, Tensor)
        return result

    end = drawn(0.5)  # all the way: what the input was matters no more, but for the noise that ddim keeps at its end
    assert (drawn(0.5, top=30) - end).abs().mean() < (1e-5 if sampler == "ddpm" else 0.02)
    distances = [float((drawn(rate) - end).abs().mean()) for rate in (0.0, 0.3, 0.45)]
    assert distances[0] > distances[1] > 1.1 * distances[2]
    without = Upscaler(networks, replace(FAST, sampler=sampler, tile=tile))(part(16, 20))
    assert isinstance(without, Tensor)
    assert (drawn(0.0) - without).abs().max() < 1e-4  # its encoding takes no noise away from the picture


def test_company_in_a_batch_changes_nothing(networks: Networks) -> None:
    pictures = [Picture(part(14, 15, top)) for top in (0, 20, 40)]
    references = [Picture(part(28, 30, top)) for top in (30, 10, 0)]
    together = Upscaler(networks, replace(FAST, batch=4)).upscale(pictures, references=references)
    for picture, reference, result in zip(pictures, references, together, strict=True):
        (alone,) = Upscaler(networks, FAST).upscale([picture], references=[reference])
        assert (result.rgb_01 - alone.rgb_01).abs().max() < 1e-5


def test_a_reference_of_another_shape_is_told(networks: Networks) -> None:
    with pytest.raises(UserError, match="its reference has 20 x 30 pixels, another shape than the result's 32 x 32"):
        Upscaler(networks, FAST)(part(16, 16), reference=part(30, 20))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"reference_rate": -0.1}, "reference_rate is -0.1"),
        ({"reference_rate": 1.5}, "reference_rate is 1.5"),
        ({"reference_steps": 0}, "reference_steps is 0"),
        ({"reference_range": (9, 3)}, "reference_range is .9, 3.: the first number must not be above the second"),
    ],
)
def test_values_that_cannot_be(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(FieldError, match=problem):
        UpscaleSettings(**settings)


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """faces/ and references/ of the same names, and a tiny model."""
    folder = tmp_path_factory.mktemp("faces")
    write_tiny_model(folder)
    for place, side in (("faces", 12), ("references", 24)):
        for index in range(2):
            file = folder / place / "some" / f"{index}.{'jpg' if side == 24 else 'png'}"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(FACE[20 * index : 20 * index + side, :side]).save(file)
    return folder


def upscale(faces: Path, output: str, *words: str) -> int:
    model = ["--base", str(faces / "tiny.yaml"), "--ckpt", str(faces / "model.ckpt"), "--device", "cpu"]
    return cli.main([*model, "--output", str(faces / output), "--steps", "2", "--upscale", "2", *words])


def test_the_command_line_matches_references_by_name(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, more = ["--input", str(faces / "faces")], ["--reference_rate", "0.5", "--reference_range", "10", "1000"]
    referred = ["--reference", str(faces / "references")]
    assert upscale(faces, "plain", *source) == upscale(faces, "drawn", *source, *referred, *more) == 0
    drawn, plain = ((faces / place / "some/1.png").read_bytes() for place in ("drawn", "plain"))
    assert drawn != plain
    one = ["--input", str(faces / "faces/some/1.png"), "--reference", str(faces / "references/some/1.jpg")]
    assert upscale(faces, "one", *one, *more) == 0
    assert (faces / "one/1.png").read_bytes() == drawn
    capsys.readouterr()
    Image.fromarray(FACE[:24, 10:34]).save(faces / "references/some/0.jpg")  # another picture: another result
    assert upscale(faces, "drawn", *source, *referred, *more) == 1
    assert "some/0.png is there, made from another picture" in capsys.readouterr().err


def test_references_that_are_missing_are_listed(faces: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (faces / "few/some").mkdir(parents=True)
    Image.new("RGB", (24, 24)).save(faces / "few/some/0.png")
    for reference, problem in (
        ("few", "few, which has no picture for 1 inputs: some/1"),
        ("nowhere", "nowhere, which is not there"),
        ("references/some/0.jpg", "one picture for all of"),
    ):
        words = ["--input", str(faces / "faces"), "--reference", str(faces / reference)]
        assert upscale(faces, "none", *words) == 2
        assert problem in capsys.readouterr().err
    assert not (faces / "none").exists()
