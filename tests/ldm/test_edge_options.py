"""Every option of the edge loss against values computed by hand, alone and in pairs, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from reference.models import stage1
from torch import Tensor

from basicsr.utils.errors import FieldError, UserError
from ldm.config import check_config, load_config
from ldm.models.diffusion.process import Process
from ldm.models.diffusion.schedule import Schedule, make_betas
from ldm.modules.losses.edge_loss import EdgeLoss
from ldm.modules.losses.edge_operators import dilated, edges_01, image_gradients
from ldm.modules.losses.edge_options import EdgeOptions
from ldm.modules.losses.edge_weight import EdgeWeight

SIDE = 16
EDGE_YAML = Path(__file__).parents[2] / "configs/stableSRNew/v2-finetune_text_T_512_edge_800.yaml"


def half_white() -> Tensor:
    """Black on the left, white from column 8 on: (1, 3, 16, 16). Canny finds one column, the soft ones two."""
    return torch.where(torch.arange(SIDE) < 8, -1.0, 1.0).expand(1, 3, SIDE, SIDE).clone()


def off_by_half() -> Tensor:
    return half_white() + 0.5


def off_right_of_the_edge() -> Tensor:
    """The truth and 0.5 from column 8 on: its error has a derivative of 0.5 in columns 7 and 8 alone."""
    return half_white() + 0.5 * (torch.arange(SIDE) >= 8)


def loss(pred: Tensor, gt: Tensor | None = None, **options: Any) -> float:
    return float(EdgeLoss(options=EdgeOptions(**options))(pred, half_white() if gt is None else gt).loss)


ROOT = math.sqrt(0.25 + 1e-6)  # Charbonnier of 0.5
ALONE = [
    ({}, 0.25 * (1 / 16 + 0.1)),
    ({"base_weight": 0.3}, 0.25 * (1 / 16 + 0.3)),
    ({"base_weight": 0}, 0.25 * (1 / 16)),
    ({"dilate": 1}, 0.25 * (3 / 16 + 0.1)),
    ({"dilate": 2}, 0.25 * (5 / 16 + 0.1)),
    ({"normalize": "mean1"}, 0.25),
    ({"operator": "sobel"}, 0.25 * (2 / 16 + 0.1)),
    ({"operator": "laplacian"}, 0.25 * (2 / 16 + 0.1)),
    ({"loss_type": "charbonnier"}, ROOT * (1 / 16 + 0.1)),
    ({"loss_type": "gradient"}, 0.0),  # an error that is the same everywhere moves no edge
]
PAIRS = [
    ({"base_weight": 0.3, "dilate": 1}, 0.25 * (3 / 16 + 0.3)),
    ({"base_weight": 0.3, "normalize": "mean1"}, 0.25),
    ({"base_weight": 0.3, "operator": "sobel"}, 0.25 * (2 / 16 + 0.3)),
    ({"base_weight": 0.3, "loss_type": "charbonnier"}, ROOT * (1 / 16 + 0.3)),
    ({"dilate": 1, "normalize": "mean1"}, 0.25),
    ({"dilate": 1, "operator": "sobel"}, 0.25 * (4 / 16 + 0.1)),
    ({"dilate": 1, "operator": "laplacian"}, 0.25 * (4 / 16 + 0.1)),
    ({"dilate": 1, "loss_type": "charbonnier"}, ROOT * (3 / 16 + 0.1)),
    ({"normalize": "mean1", "operator": "sobel"}, 0.25),
    ({"normalize": "mean1", "loss_type": "charbonnier"}, ROOT),
    ({"operator": "sobel", "loss_type": "charbonnier"}, ROOT * (2 / 16 + 0.1)),
]
# The derivative's square is 0.25 in columns 7 and 8.
GRADIENT = [
    ({}, 0.25 * (1.1 + 0.1) / 16),
    ({"base_weight": 0.3}, 0.25 * (1.3 + 0.3) / 16),
    ({"dilate": 1}, 0.25 * (1.1 + 1.1) / 16),
    ({"operator": "sobel"}, 0.25 * (1.1 + 1.1) / 16),
    ({"operator": "laplacian"}, 0.25 * (1.1 + 1.1) / 16),
    ({"normalize": "mean1"}, 0.25 * (1.1 + 0.1) / 16 / (1 / 16 + 0.1)),
]


@pytest.mark.parametrize(("options", "value"), ALONE + PAIRS)
def test_an_even_error_costs_what_the_formula_says(options: dict[str, Any], value: float) -> None:
    assert loss(off_by_half(), **options) == pytest.approx(value, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize(("options", "value"), GRADIENT)
def test_the_gradient_loss_sees_where_the_error_changes(options: dict[str, Any], value: float) -> None:
    assert loss(off_right_of_the_edge(), loss_type="gradient", **options) == pytest.approx(value, rel=1e-5)


def test_mean1_makes_pictures_count_alike_however_many_edges_they_have() -> None:
    gt = torch.cat([half_white(), torch.zeros(1, 3, SIDE, SIDE)])
    terms = [EdgeLoss(options=EdgeOptions(normalize=kind))(gt + 0.5, gt) for kind in ("none", "mean1")]
    assert terms[0].by_sample.tolist() == pytest.approx([0.25 * (1 / 16 + 0.1), 0.25 * 0.1], rel=1e-5)
    assert terms[1].by_sample.tolist() == pytest.approx([0.25, 0.25], rel=1e-5)
    # Without any weight to bring to a mean of 1, there is none; above all, no NaN.
    assert loss(gt[1:] + 0.5, gt[1:], normalize="mean1", base_weight=0) == 0


def test_importance_multiplies_each_sample() -> None:
    gt = half_white().repeat(2, 1, 1, 1)
    pred = torch.stack([gt[0] + 0.5, gt[1] + 0.1])
    terms = EdgeLoss()(pred, gt, torch.tensor([2.0, 3.0]))
    assert float(terms.loss) == pytest.approx((2 * 0.25 + 3 * 0.01) / 2 * (1 / 16 + 0.1), rel=1e-4)


# The operators


def test_soft_operators_by_hand() -> None:
    line = torch.full((1, 3, SIDE, SIDE), -1.0)
    line[..., 8] = 0.0  # half grey on black
    generator = EdgeLoss().generator
    sobel, laplacian = (edges_01(kind, line, generator)[0, 0] for kind in ("sobel", "laplacian"))
    assert sobel[5, 6:11].tolist() == pytest.approx([0, 0.5, 0, 0.5, 0], abs=1e-6)
    assert laplacian[5, 6:11].tolist() == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-6)
    assert float(edges_01("sobel", line * 3, generator).max()) <= 1  # beyond the range: clamped
    green = torch.full_like(line, -1.0)
    green[:, 1, :, 8:] = 1
    assert float(edges_01("sobel", green, generator).max()) == pytest.approx(0.587, rel=1e-4)


def test_gradients_go_along_their_axis_and_keep_the_border() -> None:
    slope = torch.arange(6.0).expand(1, 1, 4, 6)
    along_x, along_y = image_gradients(slope)
    assert along_x[0, 0, 1].abs().tolist() == [1, 2, 2, 2, 2, 1]  # over two pixels; the border is repeated
    assert not along_y.any()
    assert torch.equal(image_gradients(slope.mT)[1], along_x.mT)


def test_dilation_takes_a_square() -> None:
    dot = torch.zeros(1, 1, 9, 9)
    dot[..., 4, 4] = 1
    assert dilated(dot, 2).sum() == 25 and dilated(dot, 0) is dot


def test_the_gradient_loss_trains_the_place_of_an_edge() -> None:
    """A soft edge, to be moved: descent on the loss alone brings it there."""
    columns = torch.arange(SIDE, dtype=torch.float32)
    place = torch.tensor(6.0, requires_grad=True)
    criterion = EdgeLoss(options=EdgeOptions(loss_type="gradient", dilate=2))
    optimizer = torch.optim.Adam([place], lr=0.1)
    for _ in range(60):
        pred = torch.tanh(columns - place).expand(1, 3, SIDE, SIDE)
        optimizer.zero_grad()
        criterion(pred, torch.tanh(columns - 8.0).expand(1, 3, SIDE, SIDE)).loss.backward()
        optimizer.step()
    assert float(place.detach()) == pytest.approx(8, abs=0.1)


def test_soft_operators_measure_how_far_edges_differ_too() -> None:
    gt = half_white()
    terms = EdgeLoss(options=EdgeOptions(operator="sobel"))(torch.zeros_like(gt), gt)
    assert float(terms.edge_map_mse) == pytest.approx(2 / 16)  # two columns of 1 against none


# What is looked at


def test_pictures_show_the_weight_in_red_and_the_weighted_error() -> None:
    gt = half_white()
    over, error = EdgeLoss(options=EdgeOptions(base_weight=0.0)).pictures(gt + 0.5, gt)
    (column,) = {int(c) for c in EdgeLoss().edges(gt)[0, 0].nonzero()[:, 1]}
    assert over[0, :, 5, column].tolist() == [1, -1, -1] and error[0, :, 5, column].tolist() == [1, 1, 1]
    assert torch.equal(over[0, :, 5, 0], gt[0, :, 5, 0]) and error[0, 0, 5, 0] == -1


def test_a_picture_without_edges_is_shown_as_it_is() -> None:
    flat = torch.full((1, 3, 16, 16), 0.25)
    assert torch.equal(EdgeLoss().pictures(flat, flat)[0], flat)


# What is refused


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("auto", "edge_loss_weight is 'auto': give a number, 0 or more, or auto:FRACTION"),
        ("much", "edge_loss_weight is 'much'"),
        ("auto:0", "the fraction is 0.0"),
        ("auto:11", "the fraction is 11.0: give one from 1e-06 to 10"),
        ("auto:nan", "edge_loss_weight is 'auto:nan'"),
        (-1, "edge_loss_weight is -1"),
        (True, "edge_loss_weight is True: give a number"),
        (None, "edge_loss_weight is None"),
    ],
)
def test_weights_that_make_no_sense_get_one_line(given: object, line: str) -> None:
    with pytest.raises(FieldError) as error:
        EdgeWeight.parse(given)
    assert line in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("params", "line"),
    [
        ({"warmup_steps": -1}, "edge_warmup_steps is -1"),
        ({"max_timestep": -5}, "edge_max_timestep is -5"),
        ({"max_timestep": 0.5}, "edge_max_timestep is 0.5: give a whole number"),
        ({"min_snr": -1}, "edge_min_snr is -1"),
        ({"crop": 0}, "edge_crop is 0"),
        ({"crop_by": "edge", "crop": 4}, "edge_crop_by is 'edge', which is not known: did you mean 'edges'"),
        ({"crop_by": "edges"}, "edge_crop_by is 'edges' and there is no window: set edge_crop"),
        ({"target": "pixel"}, "did you mean 'pixels'"),
        ({"operator": "sobl"}, "did you mean 'sobel'"),
        ({"dilate": 1.5}, "edge_dilate is 1.5"),
        ({"base_weight": float("inf")}, "edge_base_weight is inf"),
        ({"normalize": "mean"}, "did you mean 'mean1'"),
        ({"loss_type": "mse"}, "edge_loss_type is 'mse', which is not known: "),
        ({"grad_ratio_every": True}, "edge_grad_ratio_every is True"),
    ],
)
def test_values_that_make_no_sense_get_one_line(params: dict[str, Any], line: str) -> None:
    with pytest.raises(FieldError) as error:
        EdgeOptions(**params)
    assert line in str(error.value) and "\n" not in str(error.value)


def test_a_gate_that_no_step_passes_is_refused() -> None:
    t = torch.arange(1000)
    snr = Process(Schedule.from_betas(make_betas(1000, 0.00085, 0.0120)), t, "eps").snr(t)
    EdgeOptions(min_snr=1000).check_process(t, snr)
    with pytest.raises(UserError, match=r"edge_min_snr 1200 leave no step .* least noisy has SNR 1175"):
        EdgeOptions(min_snr=1200).check_process(t, snr)
    with pytest.raises(UserError, match="edge_min_snr 1000000000"):
        stage1(filled=False, edge_min_snr=1e9)


# From a YAML

WORDS = {
    "edge_loss_weight": "auto:0.2", "edge_warmup_steps": 100, "edge_max_timestep": 400, "edge_min_snr": 0.5,
    "edge_crop": 16, "edge_target": "pixels", "edge_operator": "laplacian", "edge_dilate": 2, "edge_base_weight": 0.2,
    "edge_normalize": "mean1", "edge_loss_type": "magnitude", "edge_grad_ratio_every": 50,
}  # fmt: skip


@pytest.mark.parametrize("words", [{key: value} for key, value in WORDS.items()] + [
    {"edge_crop": 16, "edge_crop_by": "edges"}, WORDS, {"edge_max_timestep": None, "edge_crop": None}])  # fmt: skip
def test_each_option_can_be_switched_in_a_yaml(words: dict[str, Any]) -> None:
    given = [f"model.params.{key}={'null' if value is None else value}" for key, value in words.items()]
    config = load_config([EDGE_YAML], given)
    check_config(config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)
    params = {key: value for key, value in config.values["model"]["params"].items() if key.startswith("edge_")}
    assert words.items() <= params.items()
    model = stage1(filled=False, **params)
    assert params["edge_loss_weight"] == words.get("edge_loss_weight", 0.1)
    assert model.edge_loss_weight == (1 if words.get("edge_loss_weight") else 0.1)  # of auto:f, 1 before the first step
    for key, value in words.items():
        if key != "edge_loss_weight":
            assert getattr(model.edge_loss.options, key.removeprefix("edge_")) == value


@pytest.mark.parametrize(("word", "line"), [
    ("edge_loss_weight=auto:lots", "'edge_loss_weight' is 'auto:lots': give a number, 0 or more, or auto:FRACTION"),
    ("edge_crop=wide", "takes int or None for 'edge_crop', not 'wide'"),
    ("edge_max_timesteps=4", "did you mean 'edge_max_timestep'"),
])  # fmt: skip
def test_a_yaml_with_a_mistake_is_refused_before_anything_is_built(word: str, line: str) -> None:
    with pytest.raises(UserError) as error:
        check_config(
            load_config([EDGE_YAML], [f"model.params.{word}"]), trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint
        )
    assert line in str(error.value)


def test_a_weight_is_read_printed_and_ordered() -> None:
    assert EdgeWeight.parse("auto:0.2") == EdgeWeight(0.2, relative=True)
    assert EdgeWeight.parse(2) == EdgeWeight(2.0) == EdgeWeight.parse(EdgeWeight(2.0))
    for text in ("auto:0.2", "auto:1e-06"):
        assert str(EdgeWeight.parse(text)) == text
    assert str(EdgeWeight.parse(0.10)) == "0.1"
    weights = [EdgeWeight.parse(given) for given in ("auto:0.1", 3, 0, "auto:0.01")]
    assert [str(weight) for weight in sorted(weights)] == ["0", "3", "auto:0.01", "auto:0.1"]


def test_the_warm_up_is_a_ramp() -> None:
    assert [EdgeOptions(warmup_steps=4).warmup(step) for step in range(6)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert EdgeOptions().warmup(0) == 1
