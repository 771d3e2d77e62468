"""A study as its YAML describes it: arms, how each is trained and judged, and the questions they answer. No torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from basicsr.utils import checks
from basicsr.utils.errors import FieldError, UserError, did_you_mean, fields_named

VALIDATION, CONFIRM = "validation", "confirm"


@dataclass(frozen=True)
class Arm:
    """One way to train: words that override the study's config, and how many seeds."""

    name: str
    words: tuple[str, ...]
    seeds: int


@dataclass(frozen=True)
class Question:
    """What `first` minus `second`, seed by seed, answers."""

    ask: str
    first: str
    second: str


@dataclass(frozen=True)
class Study:
    """Arms over seeds.

    Keys of the YAML, with their defaults:
        title: a line. notes: what a reader must know.
        config: what all arms share, a file beside the YAML. words: overrides for all of them, as on a command line.
        steps: optimiser steps. seeds (5): 1, 2, …; an arm may have fewer or more: `{words: […], seeds: 8}`.
        budget_of: the arm whose time all arms are given for the second comparison; null leaves that comparison out, as
            the second stage, whose steps are not timed, must.
        sampling_steps (4), sampler (ddpm): how results are sampled.
        lpips: a file of AlexNet's weights, by which LPIPS is measured too (scripts/lpips_weights.py); null for none.
        pictures: folders `train`, `validation`, where arms are compared and chosen, and `confirm`, looked at once.
            For the second stage they are what scripts/generate_cfw_data.py writes.
        arms: name -> words. questions: a list of `{ask, first, second}`.
    """

    file: Path
    title: str
    config: Path
    steps: int
    arms: Mapping[str, Arm]
    questions: tuple[Question, ...]
    budget_of: str | None
    notes: str = ""
    words: tuple[str, ...] = ()
    sampling_steps: int = 4
    sampler: str = "ddpm"
    lpips: str | None = None
    pictures: Mapping[str, str] = field(default_factory=dict)

    @property
    def runs(self) -> list[tuple[Arm, int]]:
        """Every arm and seed: all arms of a seed come before the next seed, so that pairs are complete early."""
        most = max(arm.seeds for arm in self.arms.values())
        return [(arm, seed) for seed in range(1, most + 1) for arm in self.arms.values() if seed <= arm.seeds]

    def settings(self, arm: Arm) -> dict[str, Any]:
        """All that a run's result depends on, beside its seed and the machine."""
        return {
            "config": self.config.name,
            "words": [*self.words, *arm.words],
            "steps": self.steps,
            "sampling": [self.sampling_steps, self.sampler],
            "budget_of": self.budget_of,
            **({"lpips": Path(self.lpips).name} if self.lpips else {}),
        }


KEYS = ("title", "notes", "config", "words", "steps", "seeds", "budget_of", "sampling_steps", "sampler", "lpips",
        "pictures", "arms", "questions")  # fmt: skip


def load_study(path: Path) -> Study:
    """Read and check a study's YAML.

    Raises:
        UserError: it cannot be read, or a value that cannot be.
    """
    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a study: {str(error).splitlines()[0]}") from error
    if not isinstance(given, Mapping) or not isinstance(given.get("arms"), Mapping):
        raise UserError(f"{path} is not a study: it needs `arms:`, a name and a list of words for each")
    for key in given:
        if key not in KEYS:
            raise UserError(f"{path}: unknown key {key!r}{did_you_mean(str(key), KEYS)}")
    with fields_named(lambda name: f"{path}: {name}"):
        seeds = checks.whole_number("seeds", given.get("seeds", 5), 1)
        study = Study(
            path,
            str(given.get("title", path.stem)),
            path.parent / str(given.get("config", "none.yaml")),
            checks.whole_number("steps", given.get("steps", 60), 1),
            {str(name): _arm(path, str(name), block, seeds) for name, block in given["arms"].items()},
            tuple(_question(path, each) for each in given.get("questions", ())),
            given.get("budget_of"),
            str(given.get("notes", "")),
            _words(path, given.get("words", [])),
            checks.whole_number("sampling_steps", given.get("sampling_steps", 4), 1),
            str(given.get("sampler", "ddpm")),
            _file(given.get("lpips")),
            {VALIDATION: "data/photographs/validation", **given.get("pictures", {})},
        )
    wanted = [name for each in study.questions for name in (each.first, each.second)]
    for name in [*wanted, *([study.budget_of] if study.budget_of else [])]:
        if name not in study.arms:
            raise UserError(f"{path}: {name!r} is not an arm{did_you_mean(name, list(study.arms))}")
    return study


def _file(given: object) -> str | None:
    if given is not None and not isinstance(given, str):
        raise FieldError("lpips", f"is {given!r}: give a file of AlexNet's weights, or null")
    return given


def _arm(path: Path, name: str, block: object, seeds: int) -> Arm:
    if isinstance(block, Mapping):
        seeds = checks.whole_number(f"arms.{name}.seeds", block.get("seeds", seeds), 1)
        block = block.get("words", [])
    return Arm(name, _words(path, block), seeds)


def _words(path: Path, words: object) -> tuple[str, ...]:
    if not isinstance(words, Sequence) or isinstance(words, str) or not all("=" in str(word) for word in words):
        raise UserError(f"{path}: {words!r} is not a list of words such as model.params.edge_loss_weight=auto:0.3")
    return tuple(map(str, words))


def _question(path: Path, block: object) -> Question:
    if not isinstance(block, Mapping) or set(block) != {"ask", "first", "second"}:
        raise UserError(f"{path}: {block!r} is not a question: give ask, first and second")
    return Question(**{key: str(value) for key, value in block.items()})
