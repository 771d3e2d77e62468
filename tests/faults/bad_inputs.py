"""Bad inputs from a fixed seed, by kind: configs, checkpoints, pictures and lists. Each case is a command to run."""

import copy
import io
import json
import os
import pickle
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from tiny_run import write_tiny_model, write_tiny_run

from ldm.config import load_config

EACH = 10  # of a kind
COMMON = ["--logger", "csv"]
LIST = "data.params.train.params.meta_info"
# Numbers no value of which may stand there.
OUT_OF_RANGE = {
    "model.base_learning_rate": (0, -1e-4, "nan", "fast"),
    "model.params.scale_factor": (0, -1),
    "model.params.timesteps": (0, 1, -5),
    "model.params.parameterization": ("epsilon", "V"),
    "model.params.edge_loss_weight": (-1, "auto:", "much"),
    "data.params.batch_size": (0, -4, 1000),
    "data.params.num_workers": (-1,),
    "data.params.train.params.queue_size": (-2,),
    "data.params.train.params.crop_size": (0, -32),
    "data.params.train.params.gt_size": (0, -1),
    "degradation.gaussian_noise_prob": (-0.1, 1.5),
    "degradation.jpeg_range": ([95, 60], [0, 200]),
    "degradation.resize_range": ([-1, 1], [2, 1]),
    "lightning.trainer.accumulate_grad_batches": (0, -1),
    "lightning.trainer.log_every_n_steps": (0,),
    "lightning.trainer.precision": ("8-true", 17),
    "lightning.trainer.max_steps": (-7,),
}


@dataclass(frozen=True)
class Case:
    """A command of a program, `train` or `upscale`, whose input is bad."""

    kind: str
    program: str
    words: tuple[str, ...]


def prepare(folder: Path) -> dict[str, Any]:
    """A good config, checkpoint, picture and list in the folder; returns the config's values."""
    write_tiny_run(folder)
    write_tiny_model(folder)
    values = load_config([folder / "tiny.yaml"]).values
    values["lightning"].pop("callbacks")
    (folder / "good.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
    return values


def all_cases(folder: Path, seed: int) -> Iterator[Case]:
    """200 of them; what they need is written to `folder`, in which they are to be run."""
    values, rng = prepare(folder), random.Random(seed)
    yield from configs(folder, values, rng)
    yield from checkpoints(folder, rng)
    yield from pictures(folder, rng)
    yield from lists(folder, rng)


def configs(folder: Path, values: dict[str, Any], rng: random.Random) -> Iterator[Case]:
    """100 of ten kinds."""
    good = (folder / "good.yaml").read_text()
    makers: dict[str, Callable[[int], str | bytes]] = {
        "unknown key": lambda _: changed(values, *misspelt(values, rng)),
        "wrong type": lambda _: changed(values, *other_type(values, rng)),
        "out of range": lambda i: changed(values, *out_of_range(i, rng)),
        "not YAML": lambda _: broken(good, rng),
        "unknown target": lambda _: changed(values, *other_target(values, rng)),
        "missing file": lambda i: changed(values, PATHS[i % len(PATHS)], f"no-such-{rng.randrange(999)}"),
        "no config at all": lambda i: NO_CONFIG[i % len(NO_CONFIG)],
        "base: of no use": lambda i: f"base: {BASES[i % len(BASES)]}\n" + good,
        "block left out": lambda i: changed(values, NEEDED[i % len(NEEDED)], None),
    }
    for kind, make in makers.items():
        for index in range(EACH):
            file = folder / f"{kind.replace(' ', '-').replace(':', '')}-{index}.yaml"
            content = make(index)
            file.write_bytes(content if isinstance(content, bytes) else content.encode())
            yield Case(kind, "train", ("--base", file.name, *COMMON))
    for words in FLAGS:
        yield Case("command line", "train", ("--base", "good.yaml", *COMMON, *words))


PATHS = (
    "data.params.train.params.gt_path",
    "data.params.validation.params.gt_path",
    "model.params.ckpt_path",
    "model.params.first_stage_config.params.ckpt_path",
    "data.params.train.params.meta_info",
)
NEEDED = (
    "model",
    "model.target",
    "model.params.unet_config",
    "model.params.first_stage_config",
    "model.params.first_stage_config.target",
    "data",
    "data.target",
    "data.params.train",
    "data.params.batch_size",
    "degradation",
)
NO_CONFIG = (b"", b"\x89PNG\r\n\x1a\n\0\0", b"- a\n- b\n", b"42", b"\xff\xfem\0o\0d\0", b"just words", b"null", b"[]",
             b"\0" * 64, b"<html></html>")  # fmt: skip
BASES = ("5", "nowhere.yaml", "[good.yaml, 3]", "{a: b}", "pictures", "model.ckpt", "base-of-no-use-6.yaml", "../x",
         "[nowhere.yaml]", "pictures/0.png")  # fmt: skip
FLAGS: tuple[tuple[str, ...], ...] = (
    ("--max_steps", "many"), ("--no_such_flag",), ("model.params..x=1",), ("=3",), ("word",),
    ("model.params.ckpt_path=[1",), ("--seed", "-1"), ("--logger", "paper"), ("--name", "a/b"), ("--resume", "nowhere"),
)  # fmt: skip


def checkpoints(folder: Path, rng: random.Random) -> Iterator[Case]:
    """50 of five kinds."""
    whole = (folder / "model.ckpt").read_bytes()
    state = torch.load(folder / "model.ckpt", weights_only=True)["state_dict"]
    makers: dict[str, Callable[[int, Path], None]] = {
        "cut short": lambda i, file: cut(whole, rng, file),
        "no checkpoint": lambda i, file: not_a_checkpoint(i, rng, file),
        "runs code": lambda i, file: hostile(i, folder, file),
        "of another model": lambda i, file: another_model(i, state, rng, file),
    }
    for kind, make in makers.items():
        for index in range(EACH):
            file = folder / f"{kind.replace(' ', '-')}-{index}.ckpt"
            make(index, file)
            if index % 2:
                yield Case(kind, "train", ("--base", "good.yaml", *COMMON, f"model.params.ckpt_path={file.name}"))
            else:
                words = ("--base", "good.yaml", "--ckpt", file.name, "--input", "pictures/0.png", "--steps", "1")
                yield Case(kind, "upscale", words)
    for index in range(EACH):
        yield Case("no run to resume", "train", ("--resume", not_a_run(index, folder, whole), "--max_steps", "9"))


def pictures(folder: Path, rng: random.Random) -> Iterator[Case]:
    """30 of three kinds."""
    photo = Image.open(folder / "pictures" / "0.png").convert("RGB")
    encoded = {}
    for suffix in ("png", "jpg", "tif", "webp", "bmp"):
        buffer = io.BytesIO()
        photo.save(buffer, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper()))
        encoded[suffix] = buffer.getvalue()
    (folder / "bad").mkdir()
    for index in range(EACH):
        suffix = list(encoded)[index % len(encoded)]
        content = encoded[suffix]
        made = {
            "picture cut short": content[: rng.randrange(1, len(content) // 2)],
            "no picture": (b"", rng.randbytes(500), b"words", b"<svg/>", b"\x89PNG\r\n\x1a\n" + bytes(90))[index % 5],
            "picture that claims too much": claims(2 ** rng.randint(16, 30), 2 ** rng.randint(16, 30)),
        }
        for kind, data in made.items():
            file = folder / "bad" / f"{kind.replace(' ', '-')}-{index}.{'png' if 'claims' in kind else suffix}"
            file.write_bytes(data)
            words = ("--base", "good.yaml", "--ckpt", "model.ckpt", "--input", f"bad/{file.name}", "--steps", "1")
            yield Case(kind, "upscale", words)


def lists(folder: Path, rng: random.Random) -> Iterator[Case]:
    """20 of two kinds."""
    contents = (b"", b"\n\n", b"# 0.png\n", rng.randbytes(300), b"\xff\xfe", b"\0" * 40, b"../x.yaml\n", b"/etc/passwd",
                b"0.jpg\n", b"pictures/\n")  # fmt: skip
    for index in range(EACH):
        names = [f"{rng.randrange(4)}.png" for _ in range(4)]
        names.insert(rng.randrange(5), f"gone-{index}.png")
        (folder / f"gone-{index}.txt").write_text("\n".join(names))
        yield Case("list with missing pictures", "train", ("--base", "good.yaml", *COMMON, f"{LIST}=gone-{index}.txt"))
        (folder / f"list-{index}.txt").write_bytes(contents[index])
        yield Case("no list", "train", ("--base", "good.yaml", *COMMON, f"{LIST}=list-{index}.txt"))


# How values are spoilt


def leaves(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The dotted paths of all values that are no mappings."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def changed(values: dict[str, Any], dotted: str, value: Any) -> str:
    """The config as YAML with another value at a path; without the key for None."""
    copied = copy.deepcopy(values)
    *above, last = dotted.split(".")
    node = copied
    for key in above:
        if not isinstance(node.get(key), dict):
            node[key] = {}
        node = node[key]
    if value is None:
        del node[last]
    else:
        node[last] = value
    return yaml.safe_dump(copied, sort_keys=False)


def misspelt(values: dict[str, Any], rng: random.Random) -> tuple[str, Any]:
    path, value = rng.choice(list(leaves(values)))
    above, dot, key = path.rpartition(".")
    letter = rng.randrange(len(key))
    return f"{above}{dot}{key[:letter]}{rng.choice('qzx')}{key[letter:]}", 1 if value is None else value


def other_type(values: dict[str, Any], rng: random.Random) -> tuple[str, Any]:
    path, _ = rng.choice([item for item in leaves(values) if item[1] is not None and not item[0].endswith("target")])
    return path, {"spam": rng.randrange(9)}


def out_of_range(index: int, rng: random.Random) -> tuple[str, Any]:
    path = sorted(OUT_OF_RANGE)[7 * index % len(OUT_OF_RANGE)]
    return path, rng.choice(OUT_OF_RANGE[path])


def broken(good: str, rng: random.Random) -> str:
    lines = good.splitlines()
    while True:
        spoilt = list(lines)
        spoilt.insert(
            rng.randrange(len(lines)), rng.choice(["\t- x", "}", "a: b: c", "'", "  :\n :", "%", "@x: 1", "[1"])
        )
        try:
            yaml.safe_load("\n".join(spoilt))
        except yaml.YAMLError:
            return "\n".join(spoilt)


def other_target(values: dict[str, Any], rng: random.Random) -> tuple[str, Any]:
    path = rng.choice([path for path, _ in leaves(values) if path.endswith("target")])
    target = rng.choice(
        ["os.system", "ldm.no.such.Thing", "ldm.util.MAIN", "nodots", "main.Nothing", "evil.Code", "", "subprocess.run"]
    )
    return path, target


def cut(whole: bytes, rng: random.Random, file: Path) -> None:
    file.write_bytes(whole[: rng.randrange(1, len(whole) - 200)])


def not_a_checkpoint(index: int, rng: random.Random, file: Path) -> None:
    contents: list[bytes] = [
        b"", rng.randbytes(4000), b"words", b"<!DOCTYPE html><p>404", b"version https://git-lfs.github.com/spec/v1\n",
        json.dumps({"state_dict": [1]}).encode(), pickle.dumps({"a": 1}), b"\x89PNG\r\n\x1a\n",
        struct.pack("<Q", 10**9) + b"{", struct.pack("<Q", 8) + b"{}      ",
    ]  # fmt: skip
    file.write_bytes(contents[index])


def hostile(index: int, folder: Path, file: Path) -> None:
    """Pickles that would leave a file `ran` behind if they were let."""

    class Runs:
        def __reduce__(self) -> Any:
            if index % 3 == 0:
                return os.system, (f"touch {folder}/ran",)
            return (open, (f"{folder}/ran", "w")) if index % 3 == 1 else (eval, (f"open('{folder}/ran', 'w')",))

    content = {"state_dict": {"a": torch.zeros(2)}, "hyper_parameters": Runs()}
    if index < 5:
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content if index < 8 else Runs()))


def another_model(index: int, state: dict[str, torch.Tensor], rng: random.Random, file: Path) -> None:
    key = rng.choice([key for key, value in state.items() if key.startswith("model.") and value.ndim > 1])
    torch.save(
        [
            {"weight": torch.zeros(3)},
            {name: value for name, value in state.items() if name != key},
            {**state, key: torch.zeros(3, 5)},
            {"a": 1, "b": "words"},
            {**state, f"module.{key}": state[key]},
        ][index % 5],
        file,
    )


def not_a_run(index: int, folder: Path, whole: bytes) -> str:
    """A target for --resume that cannot be resumed."""
    run = folder / f"2026-01-31T12-00-00_run{index}"
    for name in ("checkpoints", "configs"):
        (run / name).mkdir(parents=True)
    if index > 1:
        (run / "configs" / "2026-01-31T12-00-00-config.yaml").write_text((folder / "good.yaml").read_text())
    settings = "name: a\nseed: 23\nscale_lr: false\nproject: p\nlogger: csv\nwandb_id: w\n"
    (run / "configs" / "run.yaml").write_text(
        (settings, settings, settings, settings[:30], "- 1", "{", settings)[index % 7]
    )
    training = {"state_dict": {}, "global_step": 1, "loops": {}, "optimizer_states": [{}], "epoch": 0}
    if index in (1, 3, 4, 5):
        torch.save(training, run / "checkpoints" / "last.ckpt")
    elif index in (2, 8):
        (run / "checkpoints" / "last.ckpt").write_bytes(whole if index == 2 else whole[:-500])
    elif index == 9:
        (run / "checkpoints" / "last.ckpt").mkdir()
    return str(run.name) if index else "pictures"


def claims(width: int, height: int) -> bytes:
    """A small PNG whose header claims a size."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", min(width, 2**31 - 1), min(height, 2**31 - 1), 8, 2, 0, 0, 0)
    data = zlib.compress(np.zeros(100, np.uint8).tobytes())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
