"""What the README says is there: files, flags, YAML keys, make targets."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_lightning as pl
from pytorch_lightning.callbacks import ModelCheckpoint

from ldm.config import check_config, load_config
from ldm.entry import COMMANDS
from ldm.training.cli import parse_arguments

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
# Without what is about the flags of other programs than main.py.
ABOUT_OTHERS = r"(## (Upscaling|Second stage \(CFW\)|Did it get better\?)\n|Upscaling, where).*?(?=\n## )"
LINES_OF_OTHERS = r"[^\n]*(scripts/|stablesr-edge|pip install|conda env)[^\n]*"
OF_MAIN = re.sub(f"{ABOUT_OTHERS}|{LINES_OF_OTHERS}", "", TEXT, flags=re.DOTALL)


def test_its_files_are_there() -> None:
    named = set(re.findall(r"`((?:basicsr|ldm|configs|scripts|tests)/[\w/.]*|[\w.]+\.(?:py|yaml|md)|LICENSE)`", TEXT))
    named.remove("configs/mine.yaml")  # what the reader is to write
    assert len(named) > 10
    rooms = ("ldm/models/diffusion", "ldm/modules/losses")  # rows of the table name files in these by their names alone
    places = [ROOT, *(ROOT / room for room in rooms)]
    assert [path for path in named if not any((place / path).exists() for place in places)] == []


def test_its_yaml_fits(tmp_path: Path) -> None:
    blocks = re.findall(r"```yaml\n( *)(.*?)```", TEXT, re.DOTALL)
    assert len(blocks) == 2
    (tmp_path / "stableSRNew").symlink_to(ROOT / "configs/stableSRNew")
    for indent, block in blocks:
        (tmp_path / "mine.yaml").write_text(indent + block)
        config = load_config([tmp_path / "mine.yaml"])
        check_config(config, trainer=pl.Trainer, modelcheckpoint=ModelCheckpoint)
        assert config.get("model.params.edge_loss_weight") == 0.1


@pytest.mark.parametrize("script", ["upscale", "evaluate", "compare_runs", "generate_cfw_data"])
def test_its_scripts_take_their_flags(script: str) -> None:
    commands = TEXT.replace("\\\n", " ").splitlines()
    used = {flag for line in commands if f"{script}.py" in line for flag in re.findall(r"(--[a-z_]+)", line)}
    told = subprocess.run([sys.executable, f"scripts/{script}.py", "--help"], cwd=ROOT, capture_output=True, text=True)
    assert used and told.returncode == 0
    assert used <= set(re.findall(r"--[a-z_]+", told.stdout))


def test_its_commands_of_the_one_name_are_those_that_it_has() -> None:
    (listed,) = re.findall(r"`stablesr-edge ((?:[\w-]+ \| )+\w+)`", TEXT)
    assert listed.split(" | ") == list(COMMANDS)
    assert set(re.findall(r"stablesr-edge ([\w-]+) --", TEXT)) <= set(COMMANDS)


def test_its_commands_parse() -> None:
    commands = set(re.findall(r"python main\.py ([^`\n]*)", TEXT)) - {"--help"}
    assert len(commands) >= 5
    for command in commands:
        parse_arguments(command.split())


def test_its_flags_exist() -> None:
    values = {"--logger": "csv"}  # the others can take a 1
    flags = set(re.findall(r"(?<![\w-])(--?[a-z][\w-]*)(?=[` ])", OF_MAIN)) - {"--help"}
    assert {"--resume", "--max_steps", "--no-test"} <= flags
    for flag in flags:
        parse_arguments([flag, values.get(flag, "1")])


def test_its_make_targets_exist() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    said = set(re.findall(r"(?:^|`)make (\w+)", TEXT, re.MULTILINE))
    assert {"demo", "test", "setup"} <= said <= targets
