"""Edges as a condition: maps of the same sample, empty maps, zero start, and what does not go together."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.models import SMALL, latents, pair, stage1
from torch import Tensor

from basicsr.data.pair_pool import Pair
from basicsr.utils.edge_utils import EdgeMapGenerator
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.rng import torch_rng
from ldm.models.diffusion.ddpm import LatentDiffusionSRTextWT
from ldm.models.diffusion.edge_condition import EdgeCondition
from ldm.models.diffusion.guidance import Guidance
from ldm.models.diffusion.sampling import Sampling
from ldm.models.diffusion.tiling import Tiling
from ldm.util import check_arguments

FIRST = "structcond_stage_model.input_blocks.0.0.weight"
ENCODER = "ldm.modules.diffusionmodules.openaimodel.EncoderUNetModelWT"


def edged(channels: int = 8, filled: bool = True, **params: Any) -> LatentDiffusionSRTextWT:
    """The small model with so many input channels of its structure encoder."""
    structure = {"target": ENCODER, "params": {**SMALL["structure"], "in_channels": channels}}
    return stage1(filled=filled, structcond_stage_config=structure, **params)


def loss(model: LatentDiffusionSRTextWT, given: Pair) -> Tensor:
    """A training step's, with the draws of one place."""
    return model._step(given, torch_rng("cpu", "here"))[0]


def with_map(index: int = 0) -> Pair:
    """The reference pair with a drawn map: one upright line."""
    drawn = torch.zeros(2, 1, 16, 16)
    drawn[..., 3 + index] = 1
    return Pair(**{**vars(pair()), "edge_01": drawn})


def maps(images_pm1: Tensor) -> Tensor:
    """What the generator, which is tested elsewhere, makes of pictures."""
    found: Tensor = EdgeMapGenerator().generate_from_tensor(images_pm1)
    return found


def test_eight_channels_are_all_that_turns_it_on() -> None:
    assert stage1().edge_condition is None
    assert edged().edge_condition == EdgeCondition(use="beside", source="lq", dropout=0.1, encode="vae")


@pytest.mark.parametrize("source", ["lq", "gt", "file"])
def test_the_encoder_sees_the_lq_latent_and_the_map_of_its_source(source: str) -> None:
    given = with_map()
    assert given.edge_01 is not None
    wanted = {"lq": maps(given.lq_pm1), "gt": maps(given.gt_pm1), "file": given.edge_01 * 2 - 1}[source][:, :1]
    assert wanted.unique().tolist() == [-1, 1]
    seen = edged(5, edge_condition={"source": source, "encode": "resize"}).encode(given, torch_rng("cpu", "here"))
    assert torch.equal(seen.z_struct[:, :4], seen.z_lq)
    small = torch.nn.functional.avg_pool2d(wanted, 2)
    assert torch.allclose(seen.z_struct[:, 4:], small, atol=1e-6)


def test_the_map_is_encoded_as_a_picture_is() -> None:
    model, given = edged(edge_condition={"source": "gt"}), pair()
    z_edge = model.encode(given, torch_rng("cpu", "here")).z_struct[:, 4:]
    posterior = model.first_stage_model.encode(maps(given.gt_pm1))
    draws = (z_edge / model.scale_factor - posterior.mean) / torch.exp(0.5 * posterior.logvar)
    assert draws.abs().max() < 5 and draws.std() == pytest.approx(1, abs=0.15)
    assert abs(float(draws.mean())) < 0.2


def test_alone_the_map_takes_the_place_of_the_lq_latent() -> None:
    model, given = edged(4, edge_condition={"use": "alone", "source": "gt", "dropout": 0.0}), pair()
    assert model.encode(given, torch_rng("cpu", "here")).z_struct.shape == (2, 4, 8, 8)
    other = Pair(-given.lq_pm1, given.gt_pm1, given.paths)
    assert torch.equal(loss(model, given), loss(model, other))  # LQ says nothing
    assert not torch.equal(loss(model, given), loss(model, pair(1)))


def test_resized_maps_are_mean_edges_in_every_channel_and_cost_no_encoder() -> None:
    model, given = edged(6, edge_condition={"encode": "resize", "source": "file"}), with_map()
    z_struct = model.encode(given, torch_rng("cpu", "here")).z_struct
    column = torch.full((8,), -1.0)
    column[1] = 0.0  # of the two columns of pixels below it, one is an edge
    assert torch.equal(z_struct[:, 4:], column.expand(2, 2, 8, 8))


def test_with_dropout_one_training_never_depends_on_the_map() -> None:
    always, never = (edged(edge_condition={"source": "file", "dropout": share}) for share in (1.0, 0.0))
    assert torch.equal(loss(always, with_map(0)), loss(always, with_map(5)))
    assert not torch.equal(loss(never, with_map(0)), loss(never, with_map(5)))
    assert not torch.equal(loss(always.eval(), with_map(0)), loss(always, with_map(5)))  # validation drops nothing


def test_dropout_empties_its_share_of_the_samples() -> None:
    model = edged(6, edge_condition={"encode": "resize", "source": "file", "dropout": 0.3})
    drawn = torch.ones(500, 1, 2, 2)
    given = Pair(torch.zeros(500, 3, 2, 2), torch.zeros(500, 3, 2, 2), ("",) * 500, drawn)
    z_struct = model.structure.of_pair(torch.zeros(500, 4, 1, 1), given, torch_rng("cpu", "here"), drop=True)
    values = z_struct[:, 4:].flatten(1)
    emptied = (values == -1).all(1)
    assert ((values == 1).all(1) | emptied).all()
    assert 110 < int(emptied.sum()) < 190  # 150, four standard deviations of 10


def plain_checkpoint(folder: Path) -> LatentDiffusionSRTextWT:
    """The published kind of model, saved."""
    model = stage1()
    torch.save({"state_dict": model.state_dict()}, folder / "plain.ckpt")
    return model


def test_from_zero_start_step_0_is_the_published_model(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plain, path = plain_checkpoint(tmp_path), str(tmp_path / "plain.ckpt")
    with caplog.at_level("INFO"):
        model = edged(filled=False, ckpt_path=path, edge_condition={"source": "gt"})
    assert "the file's 4 channels are kept and the 4 new ones, for edges, begin at zero" in caplog.text
    weight = model.get_parameter(FIRST)
    assert torch.equal(weight[:, :4], plain.get_parameter(FIRST)) and not weight[:, 4:].any()
    ours, theirs = loss(model, pair()), loss(plain, pair())
    assert abs(ours - theirs) <= 1e-6 * abs(theirs)
    t, z_lq = torch.tensor([17, 800]), latents()["z_lq"]
    z_struct = model.structure(z_lq, maps(pair().gt_pm1), torch_rng("cpu", "here"))
    for width, feature in plain.structcond_stage_model(z_lq, t).items():
        difference = model.structcond_stage_model(z_struct, t)[width] - feature
        assert difference.norm() <= 1e-6 * feature.norm()
    ours.backward()
    assert model.get_parameter(FIRST).grad[:, 4:].any()  # type: ignore[index]  # and it can learn to use the edges


def test_ignore_keys_as_in_the_fork_give_a_random_convolution_and_a_better_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, path = plain_checkpoint(tmp_path), str(tmp_path / "plain.ckpt")
    model = edged(filled=False, ckpt_path=path, ignore_keys=["structcond_stage_model.input_blocks.0.0"])
    assert "Better: leave it out of ignore_keys" in caplog.text
    weight = model.get_parameter(FIRST)
    assert weight[:, 4:].any() and not torch.equal(weight[:, :4], plain.get_parameter(FIRST))
    assert torch.equal(*(m.get_parameter("model.diffusion_model.out.2.weight") for m in (model, plain)))


def test_a_checkpoint_with_edges_fits_no_model_without(tmp_path: Path) -> None:
    torch.save({"state_dict": edged().state_dict()}, tmp_path / "edged.ckpt")
    with pytest.raises(UserError, match=r"input_blocks.0.0.weight has shape \(32, 8, 3, 3\) in the file but \(32, 4,"):
        stage1(filled=False, ckpt_path=str(tmp_path / "edged.ckpt"))


def test_only_gt_beside_lq_is_told_as_an_oracle(caplog: pytest.LogCaptureFixture) -> None:
    for channels, use, source, oracle in (
        (8, "beside", "gt", True),
        (8, "beside", "lq", False),
        (4, "alone", "gt", False),
    ):
        caplog.clear()
        model = edged(channels, filled=False, edge_condition={"use": use, "source": source})
        assert model.edge_condition is not None and model.edge_condition.is_oracle == oracle
        assert ("ORACLE" in caplog.text) == oracle


def test_sampling_sees_the_structure_that_it_is_given_whole_and_in_tiles() -> None:
    model = edged().eval()
    z_lq, guidance = latents()["z_lq"], Guidance(model.context(2))
    z_struct = model.structure(z_lq, maps(pair().gt_pm1), torch_rng("cpu", "here"))

    def sampled(z_struct: Tensor | None = None, **options: Any) -> Tensor:
        noise = model.noise(torch_rng("cpu", "noise"))
        return model.sample(z_lq, replace(guidance, z_struct=z_struct), Sampling(2), noise=noise, **options)

    seen = sampled(z_struct=z_struct)
    assert torch.allclose(seen, sampled(z_struct=z_struct, tiling=Tiling(8, 4)), atol=1e-5)
    empty = torch.full((2, 3, 16, 16), -1.0)
    assert torch.equal(sampled(), sampled(z_struct=model.structure(z_lq, empty)))
    assert not torch.allclose(seen, sampled(), atol=1e-3)


def test_a_look_shows_the_map_and_what_it_does() -> None:
    model = edged(edge_condition={"source": "gt"}).eval()
    images = model.log_images(pair(), n=2, steps=1)
    assert torch.equal(images["edge_condition"], maps(pair().gt_pm1))
    effect = model.edge_effect(pair())
    assert effect["effect"] > 0 and effect == model.edge_effect(pair())
    blank = edged(edge_condition={"source": "file", "encode": "resize"}).eval()
    empty = Pair(**{**vars(pair()), "edge_01": torch.zeros(2, 1, 16, 16)})
    assert blank.edge_effect(empty) == {"effect": 0.0, "gain": 0.0}
    alone = edged(4, edge_condition={"use": "alone", "source": "gt"}).eval()
    other = Pair(-pair().lq_pm1, pair().gt_pm1, pair().paths)
    assert torch.equal(alone.log_images(pair(), 1, 1)["sample"], alone.log_images(other, 1, 1)["sample"])


@pytest.mark.parametrize(
    ("channels", "block", "line"),
    [
        (8, {"use": "besides"}, "edge_condition.use 'besides' is not known: did you mean 'beside'"),
        (8, {"source": "lr"}, "edge_condition.source 'lr' is not known: "),
        (8, {"dropout": 2}, "edge_condition.dropout is 2: give a number from 0 to 1"),
        (
            8,
            {"generator": {"low": 3}},
            "edge_condition.generator does not fit: EdgeMapGenerator has no parameter 'low'",
        ),
        (
            8,
            {"generator": {"gaussian_kernel_size": 4}},
            "edge_condition.generator.gaussian_kernel_size is 4: give an odd",
        ),
        (4, {"use": "beside"}, "in_channels is 4: edges beside make it 8"),
        (8, {"use": "alone"}, "in_channels is 8: edges alone make it 4"),
        (5, None, "in_channels is 5: edges beside make it 8"),
        (4, {"encode": "resize"}, "in_channels is 4, of which z_lq takes 4: edges beside it need more"),
    ],
)
def test_what_does_not_go_together_is_told(channels: int, block: dict[str, Any] | None, line: str) -> None:
    with pytest.raises(FieldError) as told:
        edged(channels, filled=False, edge_condition=block)
    assert line in str(told.value)


def test_a_mistyped_key_of_the_block_is_named_before_anything_is_built() -> None:
    configs: dict[str, Any] = dict.fromkeys(
        ("first_stage_config", "cond_stage_config", "structcond_stage_config", "unet_config"), {}
    )
    wrong = check_arguments(LatentDiffusionSRTextWT, {**configs, "edge_condition": {"sourse": "lq"}}, name="model")
    assert wrong is not None and wrong[0] == "edge_condition.sourse" and "did you mean 'source'" in wrong[1]


def test_a_data_set_without_maps_is_told_where_files_are_to_give_them() -> None:
    with pytest.raises(FieldError, match="^edge_condition.source is 'file', and the data set gives no edge maps: set"):
        loss(edged(edge_condition={"source": "file"}), pair())


def test_the_generator_takes_its_arguments() -> None:
    given = pair()
    condition = EdgeCondition(generator={"threshold_mode": "median"})
    median: Tensor = EdgeMapGenerator(threshold_mode="median").generate_from_tensor(given.gt_pm1)
    assert torch.equal(condition.map_of(given.gt_pm1), median)
