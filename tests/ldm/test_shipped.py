"""Files that come with the project, by name, from any folder."""

from pathlib import Path

import pytest

from basicsr.utils.errors import UserError
from ldm import shipped
from ldm.config import load_config

DEMO = shipped.root() / "configs/demo/edge_cpu.yaml"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("name", ["configs/demo/edge_cpu.yaml", "demo/edge_cpu.yaml"])
def test_a_shipped_file_is_found_from_any_folder(name: str) -> None:
    assert shipped.find(name) == DEMO


def test_the_users_own_file_comes_first(tmp_path: Path) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo/edge_cpu.yaml").write_text("mine: 1")
    assert shipped.find("demo/edge_cpu.yaml") == Path("demo/edge_cpu.yaml")


@pytest.mark.parametrize("name", ["demo/no_such.yaml", "../README.md", "demo", "configs", "/demo/edge_cpu.yaml", ""])
def test_what_is_no_shipped_file_stays_as_it_is(name: str) -> None:
    assert shipped.find(name) == Path(name)


def test_a_config_of_ones_own_builds_on_a_shipped_one_and_finds_its_weights(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: demo/edge_cpu.yaml\nmodel: {params: {edge_loss_weight: 0.5}}\n")
    config = load_config(["mine.yaml"])
    assert config.get("model.params.edge_loss_weight") == 0.5
    weights = Path(config.get("model.params.first_stage_config.params.ckpt_path"))
    assert weights == DEMO.with_name("autoencoder.safetensors") and weights.is_file()


def test_a_base_that_is_nowhere_is_named_with_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("base: demo/edge_cpo.yaml\n")
    with pytest.raises(UserError, match=r"edge_cpo\.yaml is not there.*`base:` of mine\.yaml"):
        load_config(["mine.yaml"])
