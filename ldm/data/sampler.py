"""The order in which training sees its pictures: a function of (seed, epoch), resumable at any batch."""

from collections.abc import Callable, Iterator

from torch.utils.data import Sampler

from basicsr.utils.rng import numpy_rng


class TrainingSampler(Sampler[int]):
    """Draws for one rank: each epoch a fresh permutation of the data set, dealt evenly to the ranks.

    Yields `draw = epoch * length + index`, from which a data set derives all its randomness. Where to start is asked of
    `batches_done` at each `iter()`: the number of batches that this rank has trained on since step 0. Workers fetch
    ahead, so what the loader has handed out would be the wrong thing to count.

    An epoch has the same number of whole batches on every rank; the remainder, another one each epoch, is left out.
    """

    def __init__(
        self, length: int, batch_size: int, seed: int, batches_done: Callable[[], int], rank: int = 0, ranks: int = 1
    ) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.batches_done = batches_done
        self.rank = rank
        self.ranks = ranks
        self.batches_per_epoch = length // (batch_size * ranks)

    def __len__(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def __iter__(self) -> Iterator[int]:
        epoch, batch = divmod(self.batches_done(), self.batches_per_epoch)
        order = numpy_rng("order", self.seed, epoch).permutation(self.length)
        mine = order[self.rank :: self.ranks][: len(self)]
        for index in mine[batch * self.batch_size :]:
            yield epoch * self.length + int(index)
