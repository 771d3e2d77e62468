"""Data sets from YAML blocks, and several of them as one: real pairs beside pictures that training degrades itself."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from basicsr.utils import checks
from basicsr.utils.errors import FieldError, UserError
from basicsr.utils.rng import numpy_rng
from ldm.util import get_obj_from_str, instantiate_from_config

Sample = dict[str, Any]


def build_dataset(config: Mapping[str, Any], seed: int) -> Dataset[Sample]:
    """The data set that a `{target, params}` block names; `seed` is handed to one that draws anything.

    Raises:
        UserError: see `instantiate_from_config`; and what the data set itself raises.
    """
    target = config.get("target")
    draws = target is not None and "seed" in inspect.signature(get_obj_from_str(target)).parameters
    params = {**({"seed": seed} if draws else {}), **(config.get("params") or {})}
    dataset: Dataset[Sample] = instantiate_from_config({**config, "params": params})
    return dataset


class MixedDataset(Dataset[Sample]):
    """Draws each sample from one of several data sets, at random by their shares.

    An epoch has as many samples as all sets together. Which set and which of its samples is a function of (seed, epoch,
    index); within a set samples are drawn with replacement, each time with crops and flips of their own.

    Args:
        sets: `{target, params}` of each.
        ratio: how often each is drawn, relative to the others; None for all alike.
        seed: of the draws, and of the sets where their params give none.

    Raises:
        FieldError: no sets, or a ratio that does not fit them.
        UserError: what building a set raises.
    """

    def __init__(self, sets: Sequence[Mapping[str, Any]], ratio: Sequence[float] | None = None, seed: int = 23) -> None:
        if not sets:
            raise FieldError("sets", "is empty: give at least one data set")
        self.sets: list[Any] = []
        for number, config in enumerate(sets):
            try:
                self.sets.append(build_dataset(config, seed))
            except UserError as error:
                raise UserError(f"sets.{number}: {error}") from error
        names = [str(config["target"]).rpartition(".")[2] for config in sets]
        self.shares = checks.weights("ratio", [1.0] * len(sets) if ratio is None else ratio, names)
        self.seed = seed
        self.queue_size = max(getattr(dataset, "queue_size", 0) for dataset in self.sets)
        self.gives_pairs = all(getattr(dataset, "gives_pairs", False) for dataset in self.sets)

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.sets)

    def __getitem__(self, draw: int) -> Sample:
        """One sample of one set, with that set's keys; `draw` = epoch * len(self) + index.

        Raises:
            IndexError: draw is negative.
        """
        if draw < 0:
            raise IndexError(f"draw {draw} is negative")
        rng = numpy_rng("mixed", self.seed, int(draw))
        dataset = self.sets[int(rng.choice(len(self.sets), p=self.shares))]
        # The draw's number serves as the set's epoch, so that one picture drawn twice is cut in two ways.
        sample: Sample = dataset[int(draw) * len(dataset) + int(rng.integers(len(dataset)))]
        return sample


def by_kind(samples: Sequence[Sample]) -> list[Sample]:
    """A batch of samples -> one batch for each kind among them: ready-made pairs apart from pictures to degrade.

    Raises:
        UserError: a kind's pictures differ in size.
    """
    kinds: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        kinds.setdefault(tuple(sorted(sample)), []).append(sample)
    for alike in kinds.values():
        sizes = {tuple(value.shape) for sample in alike if isinstance(value := sample.get("gt"), Tensor)}
        if len(sizes) > 1:
            shown = " and ".join(f"{width}x{height}" for _, height, width in sorted(sizes)[:2])
            raise UserError(f"the pictures of one batch differ in size ({shown}): set gt_size, or batch_size to 1")
    return [torch.utils.data.default_collate(alike) for alike in kinds.values()]
