"""What is chosen by the device: precision and batch."""

import logging

import pytest
import torch
from reference.models import stage1

from basicsr.utils.errors import FieldError
from ldm.inference import batch, precision
from ldm.inference.batch import CPU_BYTES, MOST, fitting_batch
from ldm.inference.networks import Networks
from ldm.inference.pipeline import Upscaler
from ldm.inference.precision import chosen_precision
from ldm.inference.settings import UpscaleSettings

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("able", "chosen", "why"),
    [
        ({"avx512_bf16": True, "amx_bf16": True}, "bf16", "this CPU has AMX"),
        ({"avx512_bf16": True, "amx_bf16": False}, "bf16", "this CPU has AVX512-BF16"),
        ({"avx512_f": True, "avx512_bf16": False}, "fp32", "this CPU has no units for bf16"),
        ({}, "fp32", "this CPU has no units for bf16"),
    ],
)
def test_auto_is_what_the_cpu_has_units_for_and_is_told(
    able: dict[str, bool],
    chosen: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    with caplog.at_level(logging.INFO, precision.__name__):
        assert chosen_precision("auto", CPU) == chosen
    (line,) = caplog.messages
    assert line.startswith(f"precision: {chosen}, ") and why in line


def test_a_precision_that_is_named_is_taken_silently(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, precision.__name__):
        assert [chosen_precision(name, CPU) for name in ("fp32", "bf16", "fp16")] == ["fp32", "bf16", "fp16"]
    assert not caplog.messages
    with pytest.raises(FieldError, match="precision is 'bf61': did you mean 'bf16'"):
        chosen_precision("bf61", CPU)


def test_group_norm_of_bf16_has_the_statistics_of_float32() -> None:
    # With a mean of 200 the spread of 1 is below what bf16 tells apart in a sum; what is left is the input's rounding.
    x = (200 + torch.randn(1, 32, 64, 64, generator=torch.Generator().manual_seed(0))).bfloat16()
    norm = torch.nn.GroupNorm(4, 32)
    exact = norm(x.float())
    assert (norm.bfloat16()(x).float() - exact).abs().max() < 0.02


@pytest.fixture(scope="module")
def networks() -> Networks:
    return Networks(stage1().eval().requires_grad_(False), None, 32, CPU)


def test_auto_fills_half_of_the_free_memory(networks: Networks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_free", lambda device: float("inf"))
    assert fitting_batch(networks, 16, 1) == MOST["cpu"]
    assert fitting_batch(networks, None, 1) == 1
    needed = 128**2 * 32 * batch.FLOATS * 4
    assert fitting_batch(networks, 128, 1) == CPU_BYTES // needed > fitting_batch(networks, 128, 3) > 1
    monkeypatch.setattr(batch, "_free", lambda device: 2.0 * 3 * needed)
    assert [fitting_batch(networks, 128, conditions) for conditions in (1, 2, 3)] == [3, 1, 1]
    monkeypatch.setattr(batch, "_free", lambda device: 1e6)
    assert fitting_batch(networks, 128, 1) == 1


def test_the_free_memory_is_known_and_what_is_said_is_taken(networks: Networks) -> None:
    assert 0 < batch._free(CPU) < 2**50
    assert Upscaler(networks, UpscaleSettings(batch=7)).batch == 7
    assert 1 <= Upscaler(networks, UpscaleSettings(tile=64, batch="auto")).batch <= MOST["cpu"]
    assert Upscaler(networks, UpscaleSettings(tile="none", batch="auto")).batch == 1
    with pytest.raises(FieldError, match="batch is 'all': give auto or a whole number"):
        UpscaleSettings(batch="all")  # type: ignore[arg-type]  # wrong on purpose
