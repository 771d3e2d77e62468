"""A pool of latents: each pair encoded once and drawn k times, at different steps, also in a run that was resumed."""

from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from reference.models import stage1
from tiny_run import write_tiny_run
from torch import Tensor

from ldm.models.diffusion.latent_pool import Encoded, LatentPool
from main import main

COMMON = ["--logger", "csv", "lightning.callbacks=null"]
LATENTS = ["model.params.pool=latents", "model.params.draws_per_pair=2"]


def numbered(first: int, count: int = 2) -> Encoded:
    """Latents that tell their number, which is that of their path, too."""
    z = torch.arange(float(first), first + count)[:, None, None, None].expand(count, 4, 2, 2)
    return Encoded(z, -z, None, tuple(str(first + i) for i in range(count)))


def test_a_pair_is_drawn_at_k_different_steps_and_its_parts_stay_together() -> None:
    pool = LatentPool(3)
    pool.open(8, seed=1)
    at: dict[int, list[int]] = {}
    for step in range(200):
        drawn = pool.draw(numbered(2 * step))
        numbers = drawn.z_gt[:, 0, 0, 0].int().tolist()
        assert numbers == (-drawn.z_struct[:, 0, 0, 0]).int().tolist() == [int(path) for path in drawn.paths]
        assert len(drawn) == 6 and pool.drawn == drawn.paths and drawn.gt_pm1 is None
        for number in numbers:
            at.setdefault(number, []).append(step)
    settled = [steps for number, steps in at.items() if 8 <= number < 200]
    assert len(settled) == 192 and all(len(steps) == 3 for steps in settled)
    assert Counter(len(set(steps)) for steps in settled)[3] > 150  # seldom two draws fall together


def test_a_saved_pool_goes_on_as_if_nothing_had_been() -> None:
    pool, other = LatentPool(2), LatentPool(2)
    pool.open(4, seed=1)
    for step in range(7):
        pool.draw(numbered(2 * step))
    other.load_state_dict(deepcopy(pool.state_dict()))  # as a file holds it
    other.open(4, seed=1)
    other.load_state_dict(other.state_dict())  # saved again before its first step
    for step in range(7, 30):
        assert pool.draw(numbered(2 * step)).paths == other.draw(numbered(2 * step)).paths


@pytest.mark.parametrize(("draws", "size"), [(3, 4), (2, 8)])
def test_a_pool_of_another_kind_fills_afresh_and_says_so(
    draws: int, size: int, caplog: pytest.LogCaptureFixture
) -> None:
    pool, other = LatentPool(2), LatentPool(draws)
    pool.open(4, seed=1)
    pool.draw(numbered(0))
    other.load_state_dict(pool.state_dict())
    other.open(size, seed=1)
    assert set(other.draw(numbered(10)).paths) == {"10", "11"}
    assert "the pool fills afresh" in caplog.text


def last_checkpoint(folder: Path, name: str) -> dict[str, Any]:
    (run,) = (folder / "logs").glob(f"*_{name}")
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    return checkpoint


def test_a_run_encodes_each_pair_once_and_a_resumed_one_has_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    encoded: list[int] = []
    trained_on: list[int] = []

    def count(module: Any, given: tuple[Tensor, ...]) -> None:
        kind = type(module).__name__
        if kind == "Encoder":
            encoded.append(len(given[0]))
        elif kind == "UNetModelDualcondV2" and module.training:
            trained_on.append(len(given[0]))

    handle = torch.nn.modules.module.register_module_forward_pre_hook(count)
    assert main(["--base", "tiny.yaml", *COMMON, *LATENTS, "-n", "straight", "--max_steps", "5"]) == 0
    handle.remove()
    assert encoded[:10] == [1] * 10 and trained_on == [2] * 5
    assert main(["--base", "tiny.yaml", *COMMON, *LATENTS, "-n", "parted", "--max_steps", "4"]) == 0
    (run,) = (tmp_path / "logs").glob("*_parted")
    assert main(["--resume", str(run), "--max_steps", "5"]) == 0
    straight, parted = (last_checkpoint(tmp_path, name) for name in ("straight", "parted"))
    for key, value in straight["state_dict"].items():
        assert torch.equal(value, parted["state_dict"][key]), key
    (pools,) = straight["latent_pool"]["ranks"]
    assert [len(pool["z_gt"]) for pool in pools] == [2, 2] and "gt_pm1" not in pools[0]


def test_what_does_not_go_with_it_is_said_by_check_and_by_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tiny_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    for words, said in (
        (["model.params.edge_target=pixels"], "model.params.pool: is 'latents', which has no pictures"),
        (["model.params.random_size=true"], "model.params.random_size: does not go with pool: latents"),
        (["data.params.train.params.queue_size=0"], "model.params.pool: has no effect: "),
        (["model.params.pool=latent"], "did you mean 'latents'?"),
    ):
        assert main(["--base", "tiny.yaml", "--check", *LATENTS, *words]) == 2
        assert said in capsys.readouterr().out
    assert main(["--base", "tiny.yaml", "--check", *LATENTS]) == 0
    assert main(["--base", "tiny.yaml", *COMMON, *LATENTS, "model.params.random_size=true"]) == 2
    assert "model.params.pool is 'latents', and random_size" in capsys.readouterr().err


def test_without_pictures_of_the_loss_s_own_the_draws_need_none() -> None:
    model = stage1(
        pool="latents", edge_loss_weight=0, edge_target="pixels"
    )  # an edge loss that is off asks for nothing
    assert model.compute.pool == "latents"
