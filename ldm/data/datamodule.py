"""The data side of training: loaders in a resumable order, and pairs degraded on the training device."""

import logging
import os
import signal
from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from basicsr.data.degradation_pipeline import DegradationConfig, DegradationPipeline
from basicsr.data.latent_pair import LatentPair
from basicsr.data.pair_pool import Pair, PairPool
from basicsr.data.transforms import random_window
from basicsr.utils import checks
from basicsr.utils.errors import FieldError, UserError, fields_named
from basicsr.utils.ranges import to_pm1
from basicsr.utils.rng import numpy_rng, torch_rng
from ldm.data.mixed import build_dataset, by_kind
from ldm.data.sampler import TrainingSampler

log = logging.getLogger(__name__)

Batch = dict[str, Any]


def bear_one_sigterm(worker: int) -> None:
    """In a loader's worker: go on after a first SIGTERM, and end at a second one.

    Schedulers send theirs to every process of a job, where the training still needs a batch to end its step; PyTorch's
    own handler would end the worker at once.
    """
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


class Numbered(Dataset[Batch]):
    """Another data set, whose samples also say which draw they are: what happens to them depends on that alone."""

    def __init__(self, dataset: Dataset[Batch]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]  # Dataset declares no __len__

    def __getitem__(self, draw: int) -> Batch:
        return {**self.dataset[draw], "draw": draw}


class DataModuleFromConfig(pl.LightningDataModule):
    """Builds the data sets that a YAML's `data:` names and turns their batches into `Pair`s.

    Args:
        batch_size: samples per process and step.
        train, validation: `{target, params}` of data sets such as RealESRGANDataset; either may be absent. Data sets
            with `gives_pairs` hold LQ as well, at GT's size: their samples pass as they are.
        test: stands in for `validation` where that is absent, as in a `test_data:` block.
        num_workers: loader processes per training process; None for up to 8, by the number of cores.
        wrap: accepted and without effect; StableSR's YAMLs carry it.
        degradation: the YAML's `degradation:` block; not needed where all data sets give pairs.
        sf: factor between GT and the degraded picture.
        use_usm: sharpen GT before degrading.
        random_size: crop each training pair to a random size (StableSR's key of that name).
        queue_size: samples in the training-pair pool; 0 for none, None for what the training set says.
        seed: with it, every order, crop, kernel and degradation is decided.

    Raises:
        UserError: a `degradation:` block that is wrong; from `setup`, one that is missing.
    """

    def __init__(
        self,
        batch_size: int,
        train: Mapping[str, Any] | None = None,
        validation: Mapping[str, Any] | None = None,
        test: Mapping[str, Any] | None = None,
        num_workers: int | None = None,
        wrap: bool = False,
        degradation: Mapping[str, Any] | None = None,
        sf: int = 4,
        use_usm: bool = True,
        random_size: bool = False,
        queue_size: int | None = None,
        seed: int = 23,
    ) -> None:
        super().__init__()
        checks.whole_number("batch_size", batch_size, 1)
        if num_workers is not None:
            checks.whole_number("num_workers", num_workers, 0)
        self.batch_size = batch_size
        self.num_workers = min(8, os.cpu_count() or 1) if num_workers is None else num_workers
        self.random_size = random_size
        self.seed = seed
        self.datasets: dict[str, Numbered] = {}
        self._configs = {"train": train, "validation": validation or test}
        self._pipeline: DegradationPipeline | None = None
        if degradation is not None:
            blockless = ("degradation", "sf", "use_usm")
            with fields_named(lambda field: field if field in blockless else f"degradation.{field}"):
                config = DegradationConfig.from_mapping(degradation, sf=sf, use_usm=use_usm)
            self._pipeline = DegradationPipeline(config)
        self._queue_size = queue_size
        self._pools = True
        self._pool: PairPool | None = None
        self._origins: PairPool | None = None  # for each place of the pool, where the sample there came from
        self._saved_origins: list[dict[str, Any]] | None = None

    def setup(self, stage: str | None = None) -> None:
        """Build the data sets (once). Every process may call it: nothing is written."""
        for role, config in self._configs.items():
            if config is not None and role not in self.datasets:
                try:
                    dataset = build_dataset(config, self.seed)
                except FieldError as error:
                    raise FieldError(f"{role}.params.{error.field}", error.problem) from error
                except UserError as error:
                    raise UserError(f"data.params.{role}: {error}") from error
                if self._pipeline is None and not getattr(dataset, "gives_pairs", False):
                    raise UserError(
                        "the config has no `degradation:` block: low-quality pictures cannot be made without one"
                    )
                self.datasets[role] = Numbered(dataset)

    def check_sizes(self, ranks: int) -> None:
        """Raise a UserError where a process gets less than a batch, or the pool's size is not a multiple of one."""
        if "train" not in self.datasets:
            raise UserError("the config's data.params has no `train:`: there is nothing to train on")
        length, needed = len(self.datasets["train"]), self.batch_size * ranks
        if length < needed:
            processes = f" on {ranks} processes" if ranks > 1 else ""
            raise UserError(
                f"one step with data.params.batch_size={self.batch_size}{processes} takes {needed} pictures and the "
                f"training set has {length}: lower data.params.batch_size or add pictures"
            )
        if rest := self._pool_size() % self.batch_size:
            below = self._pool_size() - rest
            raise UserError(
                f"data.params.train.params.queue_size={self._pool_size()} is not a multiple of "
                f"data.params.batch_size={self.batch_size}: use {below or self.batch_size}, or 0 for no pair pool"
            )

    def leave_pool(self) -> int:
        """Leave the pool to the caller: pairs come as they are made from now on. Returns how many it is to hold.

        Raises:
            FieldError: pairs are cropped to a size of each batch's own, so no pool can hold what is made of them.
        """
        if self.random_size:
            raise FieldError("pool", "is 'latents', and random_size gives them many sizes: leave one of the two out")
        self._pools = False
        return self._pool_size()

    def train_dataloader(self) -> DataLoader[Batch]:
        dataset = self.datasets["train"]
        sampler = TrainingSampler(
            len(dataset),
            self.batch_size,
            self.seed,
            self._batches_done,
            *self._rank_of(),
        )
        return self._loader(dataset, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader[Batch] | list[DataLoader[Batch]]:
        if "validation" not in self.datasets:
            return []
        dataset = self.datasets["validation"]
        rank, ranks = self._rank_of()
        length = len(dataset)
        # Each rank takes every n-th sample; the first ones fill the last row up, for ranks must agree on the number.
        draws = [draw % length for draw in range(rank, -(-length // ranks) * ranks, ranks)]
        return self._loader(dataset, sampler=draws)

    def example_pair(self, device: torch.device) -> Pair:
        """The first validation pair, the same at every call; without a validation set, training pictures stand in."""
        dataset = self.datasets.get("validation") or self.datasets["train"]
        count = min(self.batch_size, len(dataset))
        batches = by_kind([dataset[draw] for draw in range(count)])
        return self._pair([self._to_device(batch, device) for batch in batches], "validation")

    def on_after_batch_transfer(self, batch: list[Batch], dataloader_idx: int) -> Pair:
        """A batch of the data set by kinds, on the training device -> `Pair`, (B, 3, H, W) in -1 to 1.

        All randomness derives from the draws in the batch, so it is the same in a run that was resumed.
        """
        assert self.trainer is not None
        if not self.trainer.training:
            return self._pair(batch, "validation")
        pair = self._pair(batch, "degradation")
        if self._pools:
            pair = self._pooled(pair, torch.cat([kind["draw"] for kind in batch]))
        if self.random_size:
            rng = numpy_rng("random_size", self.seed, int(batch[0]["draw"][0]))
            pair = pair.cropped(*random_window(pair.gt_pm1.shape[-2:], rng))
        return pair

    def state_dict(self) -> dict[str, Any]:
        """From where each rank's pool has its samples, for a resumed run to make the same ones again.

        Order and degradations need no state: the step decides them. All ranks must call it together.
        """
        if self._origins is None:
            return {}
        mine = self._origins.state_dict()
        everyone = [mine] * self._rank_of()[1]
        if len(everyone) > 1:
            torch.distributed.all_gather_object(everyone, mine)
        return {"pool_origins": everyone}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `state_dict` gave; the pictures are made when the first batch comes."""
        self._saved_origins = state_dict.get("pool_origins")
        if "pool" in state_dict:
            log.warning("the checkpoint is of an earlier version: the pair pool fills afresh, and the order changes")

    def _pair(self, batches: list[Batch], purpose: str) -> Pair:
        """The kinds of a batch, each made a pair in its own way, as one."""
        pairs = [self._degrade(batch, purpose) for batch in batches]
        if len(pairs) == 1:
            return pairs[0]
        if len(sizes := {tuple(pair.gt_pm1.shape[2:]) for pair in pairs}) > 1:
            shown = " and ".join(f"{width}x{height}" for height, width in sorted(sizes))
            raise UserError(f"pairs and degraded pictures differ in size ({shown}): give all the same gt_size")
        edges = [pair.edge_01 for pair in pairs if pair.edge_01 is not None]
        if edges and len(edges) < len(pairs):
            raise UserError(
                "some of the data sets have edge maps and some have none: give all of them a folder of maps"
            )
        lq_pm1, gt_pm1 = (torch.cat([getattr(pair, name) for pair in pairs]) for name in ("lq_pm1", "gt_pm1"))
        paths = tuple(path for pair in pairs for path in pair.paths)
        return Pair(lq_pm1, gt_pm1, paths, torch.cat(edges) if edges else None)

    @torch.no_grad()
    def _degrade(self, batch: Batch, purpose: str) -> Pair:
        if "gt" not in batch:
            raise UserError("the data set gives pictures without their true ones: there is nothing to learn or measure")
        gt_01: Tensor = batch["gt"]
        if "latent" in batch:
            lq_pm1, gt_pm1, sample_pm1 = (to_pm1(batch[key]) for key in ("lq", "gt", "sample"))
            return LatentPair(lq_pm1, gt_pm1, tuple(batch["gt_path"]), z=batch["latent"], sample_pm1=sample_pm1)
        if "lq" in batch:
            return Pair(to_pm1(batch["lq"]), to_pm1(gt_01), tuple(batch["gt_path"]), batch.get("edge"))
        assert self._pipeline is not None  # setup has seen to it
        rng = torch_rng(gt_01.device, purpose, self.seed, int(batch["draw"][0]))
        kernels = batch["kernel1"], batch["kernel2"], batch["sinc_kernel"]
        edge_01 = batch.get("edge", gt_01[:, :0])
        lq_01, gt_01, edge_01 = self._pipeline.with_maps(gt_01, *kernels, rng, edge_01)
        edges = edge_01 if "edge" in batch else None
        return Pair(to_pm1(lq_01.clamp(0, 1)), to_pm1(gt_01), tuple(batch["gt_path"]), edges)

    def _pooled(self, pair: Pair, draws: Tensor) -> Pair:
        """Exchange a batch with the pool, and note beside it where the samples came from.

        The origins go through a pool of their own that draws the same places. A sample's origin is its place in its
        batch and all of that batch's draws, for a batch is degraded as a whole: rows of 1 + B whole numbers.
        """
        if self._pool is None or self._origins is None:
            self._pool, self._origins = (PairPool(self._pool_size(), self.seed, self._rank_of()[0]) for _ in range(2))
            self._refill(pair)
        draws = draws.cpu()
        origins = torch.cat([torch.arange(len(draws))[:, None], draws.expand(len(draws), -1)], 1)
        self._origins.push_pop(Pair(origins, origins, pair.paths))
        return self._pool.push_pop(pair)

    def _refill(self, like: Pair) -> None:
        """Make the samples that the pool held when the checkpoint was saved once more."""
        saved, self._saved_origins = self._saved_origins, None
        rank, ranks = self._rank_of()
        if saved is None or self._pool is None or self._origins is None or self._pool.size == 0:
            return
        rows = saved[rank].get("gt_pm1") if len(saved) == ranks else None
        if rows is None or rows.shape != (self._pool.size, 1 + len(like)):
            log.warning("processes, batch_size or queue_size are others than before: the pair pool fills afresh")
            return
        self._origins.load_state_dict(saved[rank], Pair(rows, rows, ("",) * len(rows)))
        held, origins = saved[rank]["held"], rows.tolist()
        parts = {name: part for name, part in vars(like).items() if isinstance(part, Tensor)}
        pool = {name: part.new_empty((len(rows), *part.shape[1:])) for name, part in parts.items()}
        batches = [list(draws) for draws in sorted({tuple(draws) for _, *draws in origins[:held]})]
        # The workers of training's own loader are at work: these come and go.
        for batch in DataLoader(
            self.datasets["train"], batch_sampler=batches, num_workers=self.num_workers, collate_fn=by_kind
        ):
            pair = self._pair([self._to_device(kind, like.gt_pm1.device) for kind in batch], "degradation")
            draws = torch.cat([kind["draw"] for kind in batch]).tolist()
            for place, (index, *others) in enumerate(origins[:held]):
                if others == draws:
                    for name, part in pool.items():
                        part[place] = getattr(pair, name)[index]
        self._pool.load_state_dict({**saved[rank], **pool}, like)

    def _pool_size(self) -> int:
        if self._queue_size is not None:
            return self._queue_size
        return getattr(self.datasets["train"].dataset, "queue_size", 0)

    def _loader(self, dataset: Numbered, **options: Any) -> DataLoader[Batch]:
        return DataLoader(
            dataset,
            self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            worker_init_fn=bear_one_sigterm,
            pin_memory=torch.cuda.is_available(),
            collate_fn=by_kind,
            **options,
        )

    def _batches_done(self) -> int:
        """Batches that this process has trained on since step 0. Lightning keeps the number across a resume."""
        assert self.trainer is not None
        return self.trainer.fit_loop.total_batch_idx + 1

    def _rank_of(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    @staticmethod
    def _to_device(batch: Batch, device: torch.device) -> Batch:
        return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
